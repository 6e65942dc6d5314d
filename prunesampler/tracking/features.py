"""The features of every row: what a layer of a model makes of it, in memory or in a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from prunesampler.capture.find import find_logits, find_targets
from prunesampler.capture.last_layer import LastLayer
from prunesampler.capture.rows import RowSource
from prunesampler.errors import ArgumentError, CorruptFileError, MismatchError, UnsupportedError, check_choice
from prunesampler.tables.atomic import atomic_write, naming, sync_folder
from prunesampler.tracking.eval_pass import EvalPass, called

_FLUSH = 64  # batches


def features(
    model: nn.Module,
    loader: DataLoader[Any] | RowSource,
    *,
    layer: str | None = None,
    path: str | os.PathLike[str] | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    device: torch.device | str | int | None = None,
    row_fn: Callable[[Any], Any] | None = None,
    input_fn: Callable[[Any], Any] | None = None,
    logits_fn: Callable[[Any], Tensor] | None = None,
    num_rows: int | None = None,
    progress: bool = True,
    keys: Any = None,
    fingerprint: str | None = None,
) -> npt.NDArray[np.float32] | npt.NDArray[np.float16]:
    """What a layer makes of every row, in eval mode, in one pass; labels are not needed.

    With ``path`` the features go to a ``.npy`` file that is mapped, not held, in memory; ``<path>.json`` beside it
    says of which dataset, model and layer they are. The same call resumes where it was broken off (batches whose rows
    are all there are read, but not computed), and opens the file once it is whole.

    Args:
        model: any module; the inner one of a DistributedDataParallel or of ``torch.compile`` is called.
        loader: as :func:`prunesampler.score` has it, without augmentation.
        layer: name of a module of ``model.named_modules()``, whose output is taken, flattened to (B, d); by default
            the input of the linear layer that gives the logits (the penultimate layer's output).
        path: of the file, ending in ``.npy``; None keeps the features in memory.
        dtype: ``"float32"``, or ``"float16"`` for half of the memory.
        device: where batches go; by default the device of the model's parameters.
        row_fn: as in :func:`prunesampler.score`; so are ``input_fn``, ``logits_fn``, ``num_rows``, ``progress``,
            ``keys`` and ``fingerprint``.

    Returns:
        (N, d), row i of the dataset at index i, NaN for rows that the loader did not hand out; read-only from a file.

    Raises:
        ArgumentError: an argument breaks its rule, or a feature is too large for float16.
        UnsupportedError: rows or inputs cannot be found; the logits are not what a linear layer gives (name a layer).
        MismatchError: ``path`` holds features of another dataset, model or layer, or is another file.
        CorruptFileError: what was written so far is damaged.
        WriteError: the file cannot be written.

    >>> from torch.utils.data import TensorDataset
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> features(model, DataLoader(TensorDataset(torch.ones(4, 2)), batch_size=2), progress=False).shape
    (4, 3)
    """
    check_choice("dtype", dtype, ("float32", "float16"))
    batches = EvalPass(
        model,
        loader,
        device=device,
        row_fn=row_fn,
        input_fn=input_fn,
        logits_fn=logits_fn,
        num_rows=num_rows,
        progress=progress,
        keys=keys,
        fingerprint=fingerprint,
        title="features",
    )
    model = batches.model
    if layer is not None and (not isinstance(layer, str) or layer not in dict(model.named_modules())):
        raise ArgumentError("layer", f"must be the name of a module of this {type(model).__name__}, or None", layer)
    out: _Memory | _File = _Memory(batches.num_rows, dtype)
    if path is not None:
        identity = {"fingerprint": batches.fingerprint, "model": _digest(model), "layer": layer, "dtype": dtype}
        out = _File(path, batches.num_rows, dtype, identity)
        if out.whole:
            return out.finished()
    head = LastLayer(model) if layer is None else None
    with head or nullcontext(), _output_of(model, layer) as outputs:
        for rows, batch in batches.batches():
            if out.has(rows.numpy()):
                continue
            output = called(model, batches.inputs(batch, _targets(batch)))
            if head is not None:
                found = head.inputs((find_logits if logits_fn is None else batches.finder.logits)(output))[1]
            else:
                found = _the_output(outputs, layer)
            out.put(rows.numpy(), _of_rows(found, len(rows), dtype, layer))
    return out.finished()


def _targets(batch: Any) -> Any:
    try:
        return find_targets(batch)
    except UnsupportedError:
        return None


@contextmanager
def _output_of(model: nn.Module, layer: str | None) -> Iterator[list[Any]]:
    outputs: list[Any] = []
    if layer is None:
        yield outputs
        return
    hook = model.get_submodule(layer).register_forward_hook(lambda module, given, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


def _the_output(outputs: list[Any], layer: str | None) -> Any:
    if len(outputs) != 1:
        raise UnsupportedError(f"layer {layer!r} was called {len(outputs)} times in a forward: name one called once")
    return outputs.pop()


def _of_rows(found: Any, size: int, dtype: str, layer: str | None) -> npt.NDArray[Any]:
    if not isinstance(found, Tensor) or found.dim() < 1 or len(found) != size:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UnsupportedError(f"layer {layer!r} must give a tensor with one entry for each of {size} rows, got {got}")
    flat = found.reshape(size, -1).float()
    values = flat.to(getattr(torch, dtype))
    if not torch.equal(values.isinf(), flat.isinf()):
        raise ArgumentError("dtype", 'must be "float32", as a feature is larger than float16 can hold', dtype)
    return values.cpu().numpy()


def _digest(model: nn.Module) -> str:
    state = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        state.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


class _Memory:
    """Features in an array."""

    def __init__(self, num_rows: int, dtype: str) -> None:
        self._num_rows, self._dtype = num_rows, dtype
        self._array: npt.NDArray[Any] | None = None

    def has(self, rows: npt.NDArray[np.int64]) -> bool:
        return False

    def put(self, rows: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> None:
        if self._array is None:
            self._array = np.full((self._num_rows, values.shape[1]), np.nan, self._dtype)
        _check_width(values.shape[1], self._array.shape[1])
        self._array[rows] = values

    def finished(self) -> npt.NDArray[Any]:
        if self._array is None:
            raise ArgumentError("loader", "must hand out at least one batch", "none")
        return self._array


class _File:
    """Features in a ``.npy`` file: ``<path>.part`` while rows are missing, which ``<path>.done`` says."""

    def __init__(self, path: str | os.PathLike[str], num_rows: int, dtype: str, identity: Mapping[str, Any]) -> None:
        self._path = Path(path)
        if self._path.suffix != ".npy":
            raise ArgumentError("path", "must end in .npy", str(path))
        self._about, self._part, self._marks = (Path(f"{path}.{end}") for end in ("json", "part", "done"))
        self._num_rows, self._dtype, self._identity = num_rows, dtype, {**identity, "num_rows": num_rows}
        self._waiting: list[npt.NDArray[np.int64]] = []
        self._array: npt.NDArray[Any] | None = None
        self._done: npt.NDArray[Any] = np.zeros(num_rows, np.bool_)
        self.whole = self._path.exists()
        if self.whole or self._part.exists():
            self._check()
            if not self.whole:
                self._array, self._done = self._open(self._part), self._open(self._marks)
                if self._array.shape[:1] != (num_rows,) or self._done.shape != (num_rows,):
                    raise CorruptFileError(f"{self._part} and {self._marks} do not belong together: delete them")

    def _check(self) -> None:
        try:
            found = json.loads(self._about.read_text())
        except (OSError, ValueError):
            raise MismatchError(
                f"{self._path} is not known to be features of this model: there is no {self._about} that says so; "
                "choose another path"
            ) from None
        for name, value in self._identity.items():
            if not isinstance(found, dict) or found.get(name) != value:
                had = found.get(name) if isinstance(found, dict) else None
                raise MismatchError(
                    f"{self._path} holds features of another {name} ({had!r}, now {value!r}): delete it and "
                    f"{self._about}, or choose another path"
                )

    def _open(self, path: Path) -> npt.NDArray[Any]:
        try:
            return np.load(path, mmap_mode="r+", allow_pickle=False)  # type: ignore[no-any-return]
        except (OSError, ValueError) as error:
            raise CorruptFileError(f"{path} is damaged ({error}): delete it to begin anew") from error

    def has(self, rows: npt.NDArray[np.int64]) -> bool:
        return bool(self._done[rows].all())

    def put(self, rows: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> None:
        with naming(self._path):
            if self._array is None:
                self._begin(values.shape[1])
            assert self._array is not None
            _check_width(values.shape[1], self._array.shape[1])
            self._array[rows] = values
            self._waiting.append(rows)
            if len(self._waiting) == _FLUSH:
                self._flush()

    def _begin(self, width: int) -> None:
        with atomic_write(self._about) as file:
            file.write(json.dumps(self._identity, indent=1).encode())
        make = np.lib.format.open_memmap
        self._done = make(self._marks, "w+", np.bool_, (self._num_rows,))
        self._array = make(self._part, "w+", self._dtype, (self._num_rows, width))

    def _flush(self) -> None:
        """Features first, then that they are there."""
        self._array.flush()  # type: ignore[union-attr]
        self._done[np.concatenate(self._waiting)] = True
        self._done.flush()  # type: ignore[attr-defined]
        self._waiting.clear()

    def finished(self) -> npt.NDArray[Any]:
        with naming(self._path):
            if not self.whole:
                if self._array is None:
                    raise ArgumentError("loader", "must hand out at least one batch", "none")
                if self._waiting:
                    self._flush()
                self._array[~self._done] = np.nan
                self._array.flush()  # type: ignore[attr-defined]
                os.replace(self._part, self._path)
                self._marks.unlink()
                sync_folder(self._path.parent)
            return np.load(self._path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


def _check_width(found: int, expected: int) -> None:
    if found != expected:
        raise UnsupportedError(f"features must have one width, got {expected} and then {found}: name another layer")
