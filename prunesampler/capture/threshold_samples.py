"""Rows with a class of their own that does not exist: what wrong labels are told from right ones by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from prunesampler._random import mix
from prunesampler.errors import ArgumentError, UnsupportedError, check_int

_LABELS = ("labels", "label", "targets", "target", "y")
_SAMPLES = 0x6661_6B65  # keeps these rows apart from what else a seed draws


class ThresholdSamples(Dataset[Any]):
    """A dataset in which len(dataset) // (num_classes + 1) random rows are labelled as one class more, ``num_classes``.

    No image is of that class, so a model learns these rows only by heart, as it does wrong labels: rows whose margin is
    as low as theirs are likely mislabelled (Pleiss et al. 2020, "Identifying Mislabeled Data using the Area Under the
    Margin Ranking"). **The model needs one output more.** Train one run on ``part=0`` and one on ``part=1``, whose rows
    are others, each with ``attach(..., keep=None, audit="aum")``, and give both tables to
    ``audit([first, second], method="aum")``.

    Args:
        dataset: map-style; its samples are (input, label, …), or dicts with ``labels``, ``label``, ``targets``,
            ``target`` or ``y``.
        num_classes: of the dataset.
        part: an int in [0, num_classes], which rows; those of different parts are disjoint.
        seed: an int >= 0, of the draw.

    Attributes:
        rows: (K,) int64 ascending, the rows that bear the class ``num_classes``.

    >>> dataset = [(image, 0) for image in range(6)]
    >>> [label for _, label in ThresholdSamples(dataset, 2)].count(2)
    2
    """

    def __init__(self, dataset: Any, num_classes: int, *, part: int = 0, seed: int = 0) -> None:
        self.dataset, self.num_classes = dataset, check_int("num_classes", num_classes, 2)
        check_int("part", part, 0, num_classes)
        size = len(dataset) // (num_classes + 1)
        if not size:
            raise ArgumentError("dataset", f"must have at least {num_classes + 1} rows", len(dataset))
        order = np.random.default_rng(mix(check_int("seed", seed), _SAMPLES)).permutation(len(dataset))
        self.rows = np.sort(order[part * size : (part + 1) * size]).astype(np.int64)
        self._fake = np.zeros(len(dataset), np.bool_)
        self._fake[self.rows] = True

    def __len__(self) -> int:
        return len(self._fake)

    def __getitem__(self, row: int) -> Any:
        sample = self.dataset[row]
        return self._relabelled(sample) if self._fake[row] else sample

    def __getitems__(self, rows: Sequence[int]) -> list[Any]:
        whole = getattr(self.dataset, "__getitems__", None)
        samples = [self.dataset[row] for row in rows] if whole is None else whole(rows)
        return [self._relabelled(each) if self._fake[row] else each for row, each in zip(rows, samples, strict=True)]

    def _relabelled(self, sample: Any) -> Any:
        if isinstance(sample, Mapping):
            name = next((name for name in _LABELS if name in sample), None)
            if name is not None:
                return {**sample, name: self._like(sample[name])}
        elif isinstance(sample, tuple | list) and len(sample) > 1:
            parts = [*sample]
            parts[1] = self._like(sample[1])
            return tuple(parts) if isinstance(sample, tuple) else parts
        raise UnsupportedError(f"no label in a sample of type {type(sample).__name__}: expected (input, label, …)")

    def _like(self, label: Any) -> Any:
        if isinstance(label, Tensor | np.ndarray) and label.ndim:
            raise UnsupportedError(f"labels must be class indices, got one of shape {tuple(label.shape)}")
        if isinstance(label, Tensor):
            return label.new_full((), self.num_classes)
        return self.num_classes
