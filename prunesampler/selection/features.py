"""What geometry works on: (N, d) numbers, a row of them for each row of the dataset, read as float32 in blocks."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prunesampler.errors import ArgumentError
from prunesampler.tables.columns import Int64s

BLOCK = 1024
"""Rows of a block where each is compared with one point: few enough to stay in a processor's cache."""

_HELD = 1 << 30  # bytes of some rows of a file, up to which they are copied into memory


class Features:
    """The features of some rows of a dataset, (E, d); all arithmetic is float32, whatever they are stored as.

    ``np.asarray(features)`` holds all of them at once.

    Args:
        given: (N, d), row i being that of row i of the dataset: a NumPy array, also a memory-mapped one, a tensor, or
            the path of an ``.npy`` file, which is memory-mapped. Float16, float32 or float64, all finite, but for rows
            that have none, NaN all of them. A tensor on a GPU stays there, and what is computed of it is computed
            there.

    Raises:
        ArgumentError: another shape or type, or a value that is NaN beside others, or infinite in float32.
        OSError: the file cannot be read.

    >>> features = Features(np.array([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]]))
    >>> features.only([0, 2]).at([1])
    tensor([[1., 0.]])
    >>> features.directions().at([0])
    tensor([[0.6000, 0.8000]])
    """

    def __init__(self, given: Any) -> None:
        self._values = self._dataset = _tensor(given)
        self._rows: Tensor | None = None
        self._norms: Tensor | None = None
        absent = []
        for start, block in zip(range(0, len(self), BLOCK), self.blocks(), strict=True):
            absent.append(block.isnan().all(1))
            bad = ~(block.isfinite().all(1) | absent[-1])
            if bad.any():
                raise ArgumentError("features", "must be finite in float32", f"row {start + int(bad.int().argmax())}")
        self._absent = torch.cat(absent).cpu().numpy()

    def _but(self, **changes: Any) -> Features:
        part = object.__new__(Features)
        vars(part).update(vars(self) | changes)
        return part

    def __len__(self) -> int:
        return len(self._values) if self._rows is None else len(self._rows)

    def __repr__(self) -> str:
        return f"Features({len(self)} × {self.width}, {str(self._values.dtype).removeprefix('torch.')})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self.at(slice(None)).cpu().numpy().astype(dtype or np.float32)

    @property
    def num_rows(self) -> int:
        """N, of the dataset."""
        return len(self._dataset)

    @property
    def present(self) -> Int64s:
        """The rows of the dataset that have features, ascending."""
        return np.flatnonzero(~self._absent)

    @property
    def width(self) -> int:
        """d."""
        return self._values.shape[1]

    @property
    def device(self) -> torch.device:
        """Where they are, and what is computed of them."""
        return self._values.device

    def only(self, rows: npt.ArrayLike) -> Features:
        """Those of some rows of the dataset, in this order, together in memory unless that were over a gigabyte.

        Raises:
            ArgumentError: one of them has no features.
        """
        rows = np.array(rows, np.int64)  # torch warns of read-only ones
        if (missing := np.flatnonzero(self._absent[rows])).size:
            raise ArgumentError("features", "must not be NaN for rows that may be kept", f"row {rows[missing[0]]}")
        at = torch.as_tensor(rows, device=self.device)
        if len(at) == self.num_rows and torch.equal(at, torch.arange(len(at), device=self.device)):
            return self._but(_values=self._dataset, _rows=None, _norms=None)
        if len(at) * self.width * self._dataset.element_size() > _HELD:
            return self._but(_values=self._dataset, _rows=at, _norms=None)
        return self._but(_values=self._dataset[at], _rows=None, _norms=None)

    def directions(self) -> Features:
        """Each divided by its length, for products that are cosines.

        Raises:
            ArgumentError: one of them is zero, which has no direction.
        """
        norms = torch.cat([block.double().norm(dim=1) for block in self.blocks()]).float()
        if not norms.all():
            found = f"the one at position {int((norms == 0).int().argmax())}"
            raise ArgumentError("features", "must not be zero where their directions are compared", found)
        return self._but(_norms=norms)

    def at(self, positions: Any) -> Tensor:
        """(k, d) float32, the features at some positions, or of a slice of them; not to be written into."""
        if not isinstance(positions, slice):
            positions = torch.as_tensor(positions, device=self.device)
        found = self._values[positions if self._rows is None else self._rows[positions]].float()
        return found if self._norms is None else found / self._norms[positions, None]

    def blocks(self, size: int = BLOCK) -> Iterator[Tensor]:
        """(B, d) float32, so many rows at a time."""
        return (self.at(slice(start, start + size)) for start in range(0, len(self), size))

    def mean(self) -> Tensor:
        """(d,) float64."""
        total = torch.zeros(self.width, dtype=torch.float64, device=self.device)
        for block in self.blocks():
            total += block.sum(0, dtype=torch.float64)
        return total / len(self)

    def distances(self, point: Tensor) -> Tensor:
        """(E,) Euclidean distances to a point, (d,): of the differences, so that equal rows are at exactly 0."""
        point = point.to(self.device, torch.float32)
        found = torch.empty(len(self), device=self.device)
        difference = torch.empty(BLOCK, self.width, device=self.device)
        for start, block in zip(range(0, len(self), BLOCK), self.blocks(), strict=True):
            part = torch.sub(block, point, out=difference[: len(block)])
            torch.linalg.vector_norm(part, dim=1, out=found[start : start + len(block)])
        return found


def lowest(values: Tensor, ties: npt.NDArray[np.uint64]) -> int:
    """The position of the lowest value, of equal ones that of the lowest tie key."""
    equal = (values == values.min()).nonzero()[:, 0].cpu().numpy()
    return int(equal[ties[equal].argmin()])


def _tensor(given: Any) -> Tensor:
    rule = "must be (N, d) numbers of float16, float32 or float64: an array, a tensor or the path of an .npy file"
    if isinstance(given, str | os.PathLike):
        if Path(given).suffix != ".npy":
            raise ArgumentError("features", rule, given)
        try:
            given = np.load(given, mmap_mode="c", allow_pickle=False)  # nothing is ever written
        except ValueError as error:  # no such format, or objects, which are not unpickled
            raise ArgumentError("features", rule, given) from error
    if not isinstance(given, Tensor):
        array = np.asarray(given)
        if array.dtype.kind != "f" or array.dtype.itemsize > 8:
            raise ArgumentError("features", rule, f"{array.dtype} of shape {array.shape}")
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nor do we write
            given = torch.from_numpy(np.ascontiguousarray(array) if min(array.strides, default=0) < 0 else array)
    given = given.detach()
    if given.ndim != 2 or not given.numel() or not given.is_floating_point():
        raise ArgumentError("features", rule, f"{given.dtype} of shape {tuple(given.shape)}")
    tensor: Tensor = given
    return tensor
