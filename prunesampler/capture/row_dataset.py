"""Rows travel with the batches that they produced.

While a loader builds its iterator, its dataset and its collate function are proxies that put the rows beside the
batch. Nothing is inferred from the order in which batches arrive, so ``in_order=False``, prefetching, worker processes
and early exits cannot shift a row.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from prunesampler.capture.collate_order import CollateOrder
from prunesampler.capture.rows import UNKNOWN, Collated, OtherRows, RowBatch, RowSource, joined_rows
from prunesampler.errors import UnsupportedError


class _StreamDataset(IterableDataset[RowBatch]):
    def __init__(self, source: RowSource) -> None:
        self.source = source

    def __iter__(self) -> Iterator[RowBatch]:
        return self.source.iter_rows()


class _RowDataset(Dataset[Any]):
    """Fetches like the dataset it wraps, rows beside the samples; everything else is the dataset's own."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getitems__(self, indices: list[int]) -> _Fetched:
        dataset = self._dataset
        fetch_many = getattr(dataset, "__getitems__", None)
        samples = fetch_many(indices) if fetch_many else [dataset[i] for i in indices]
        try:
            rows = np.fromiter(map(operator.index, indices), np.int64, len(indices))
        except TypeError:
            fault = f"the sampler must yield positions in the dataset as ints, got {indices[0]!r}"
            return _Fetched(UNKNOWN, samples, fault)
        if isinstance(samples, OtherRows):
            return _Fetched(samples.rows, list(samples))
        if (rows < 0).any():
            rows = np.where(rows < 0, rows + len(dataset), rows)
        if isinstance(samples, list) and len(samples) != len(rows):
            fault = f"the dataset's __getitems__ gave {len(samples)} samples for {len(rows)} rows"
            return _Fetched(rows, samples, fault)
        return _Fetched(rows, samples)

    def __getitem__(self, index: Any) -> Any:
        return self._dataset[index]

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        # A spawned worker looks attributes up before _dataset is restored.
        if name == "_dataset":
            raise AttributeError(name)
        return getattr(self._dataset, name)


class _Fetched(NamedTuple):
    rows: NDArray[np.int64]
    samples: Any
    fault: str | None = None


class RowCollate:
    """Collates like the function it wraps, and has the rows follow the samples."""

    def __init__(self, collate_fn: Callable[[Any], Any]) -> None:
        self._collate_fn = collate_fn
        self._order = CollateOrder(collate_fn)

    def __call__(self, fetched: Any) -> Collated:
        """Of the samples of a map-style dataset, or of single samples of a stream."""
        if isinstance(fetched, RowBatch):  # a stream's batch
            return Collated(fetched.rows, self._collate_fn(fetched.batch))
        if isinstance(fetched, list):
            rows, samples, fault = joined_rows(fetched), [item.batch for item in fetched], None
        else:
            rows, samples, fault = fetched
        if fault is not None:
            cure = "give row_fn=, a function from the batch to its rows"
            return Collated(rows, self._collate_fn(samples), doubt=UnsupportedError(f"{fault}: {cure}"))
        if isinstance(samples, list) and len(samples) != len(rows):  # several batches of a stream
            return Collated(rows, self._collate_fn(samples))
        batch, sources, doubt = self._order.collate(self._collate_fn, samples)
        if sources is None:
            return Collated(rows, batch, doubt=doubt)
        return Collated(rows[sources], batch, len(rows))


class PairCollate(RowCollate):
    """The same for pipelines, whose batches are followed further: a doubt is raised at once."""

    def __call__(self, fetched: Any) -> Any:
        """As above."""
        item = super().__call__(fetched)
        return RowBatch(item.known_rows(), item.batch)


class _WorkerInit:
    """Lets a worker know the user's own dataset, in ``get_worker_info()`` and in its ``worker_init_fn``."""

    def __init__(self, worker_init_fn: Callable[[int], None] | None) -> None:
        self._worker_init_fn = worker_init_fn

    def __call__(self, worker: int) -> None:
        info: Any = get_worker_info()
        own = info.dataset.source if isinstance(info.dataset, _StreamDataset) else info.dataset._dataset
        object.__setattr__(info, "dataset", own)  # it refuses assignment
        if self._worker_init_fn is not None:
            self._worker_init_fn(worker)


def _carriers(loader: DataLoader[Any]) -> dict[str, Any]:
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset):
        if not isinstance(dataset, RowSource):
            return {}
        carrier: Any = _StreamDataset(dataset)
    elif loader.batch_sampler is None:
        return {}
    else:
        carrier = _RowDataset(dataset)
    return {
        "dataset": carrier,
        "collate_fn": RowCollate(cast(Any, loader.collate_fn)),
        "worker_init_fn": _WorkerInit(loader.worker_init_fn),
    }


def carrying_rows(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A copy that gives :class:`RowBatch` for good, workers and all; of a loader over a :class:`RowSource`."""
    carrying: DataLoader[Any] = object.__new__(type(loader))
    collate = PairCollate(cast(Any, loader.collate_fn))
    vars(carrying).update(vars(loader), _iterator=None, **{**_carriers(loader), "collate_fn": collate})
    return carrying


@contextmanager
def carrying(loader: DataLoader[Any]) -> Iterator[None]:
    """Within this context an iterator of the loader gives :class:`Collated`, where its batches are made of rows."""
    fields = vars(loader)  # `dataset` refuses assignment through the loader
    carriers = _carriers(loader)
    plain = {name: fields[name] for name in carriers}
    fields.update(carriers)
    try:
        yield
    finally:
        fields.update(plain)
