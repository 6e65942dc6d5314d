"""Rows travel with the batches that they produced.

While a loader builds its iterator, its dataset and its collate function are proxies that put the rows beside the
batch. Nothing is inferred from the order in which batches arrive, so ``in_order=False``, prefetching, worker processes
and early exits cannot shift a row.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, IterableDataset

from prunesampler.capture.rows import RowBatch, RowSource, joined_rows
from prunesampler.errors import UnsupportedError


class _StreamDataset(IterableDataset[RowBatch]):
    def __init__(self, source: RowSource) -> None:
        self.source = source

    def __iter__(self) -> Iterator[RowBatch]:
        return self.source.iter_rows()


class _RowDataset(Dataset[Any]):
    """Fetches like the dataset it wraps, rows beside the samples; everything else is the dataset's own."""

    def __init__(self, dataset: Any) -> None:
        object.__setattr__(self, "_dataset", dataset)

    def __getitems__(self, indices: list[int]) -> tuple[NDArray[np.int64], Any]:
        dataset = self._dataset
        try:
            rows = np.fromiter((operator.index(i) for i in indices), np.int64, len(indices))
        except TypeError:
            raise UnsupportedError(
                f"the sampler must yield positions in the dataset as ints, got {indices[0]!r}"
            ) from None
        if (rows < 0).any():
            rows = np.where(rows < 0, rows + len(dataset), rows)
        fetch_many = getattr(dataset, "__getitems__", None)
        return rows, fetch_many(indices) if fetch_many else [dataset[i] for i in indices]

    def __getitem__(self, index: Any) -> Any:
        return self._dataset[index]

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        # A spawned worker looks attributes up before _dataset is restored.
        if name == "_dataset":
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # worker_init_fn gives its worker's dataset file handles, seeds and shards.
        setattr(self._dataset, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return _RowDataset, (self._dataset,)


class _RowCollate:
    def __init__(self, collate_fn: Callable[[Any], Any]) -> None:
        self._collate_fn = collate_fn

    def __call__(self, fetched: Any) -> RowBatch:
        if isinstance(fetched, list):  # single samples of a stream
            return RowBatch(joined_rows(fetched), self._collate_fn([item.batch for item in fetched]))
        rows, samples = fetched
        return RowBatch(rows, self._collate_fn(samples))


def _carriers(loader: DataLoader[Any]) -> dict[str, Any]:
    dataset = loader.dataset
    carrier = _StreamDataset(cast(RowSource, dataset)) if isinstance(dataset, IterableDataset) else _RowDataset(dataset)
    return {"dataset": carrier, "collate_fn": _RowCollate(cast(Any, loader.collate_fn))}


def carrying_rows(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A copy that gives :class:`RowBatch` for good, workers and all; of a loader over a :class:`RowSource`."""
    carrying: DataLoader[Any] = object.__new__(type(loader))
    vars(carrying).update(vars(loader), _iterator=None, **_carriers(loader))
    return carrying


@contextmanager
def carrying(loader: DataLoader[Any]) -> Iterator[None]:
    """Within this context an iterator of the loader gives :class:`RowBatch`."""
    fields = vars(loader)  # `dataset` refuses assignment through the loader
    plain = {"dataset": fields["dataset"], "collate_fn": fields["collate_fn"]}
    fields.update(_carriers(loader))
    try:
        yield
    finally:
        fields.update(plain)
