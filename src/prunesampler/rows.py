"""Rows travel with the batches that they produced.

While a loader builds its iterator, its dataset and its collate function are stand-ins that put the rows beside
the batch; whoever reads the iterator takes them off again. Nothing is inferred from the order in which batches
arrive, so ``in_order=False``, prefetching, worker processes and early exits cannot shift a row.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, IterableDataset

from prunesampler.errors import UnsupportedError

__all__ = [
    "RowBatch",
    "RowListener",
    "RowLoader",
    "RowPipeline",
    "RowSource",
    "RowStream",
    "carrying_rows",
    "check_followed",
    "check_map_style",
    "joined_rows",
    "plain_class",
    "row_loader_class",
    "row_stream",
    "with_rows",
]

T = TypeVar("T")


class RowBatch(NamedTuple):
    """A batch and the rows that it was made of, in the same order."""

    rows: NDArray[np.int64]
    batch: Any


@runtime_checkable
class RowSource(Protocol):
    """A data pipeline that knows its rows: what :func:`with_rows` accepts beside a ``DataLoader``."""

    def iter_rows(self) -> Iterator[RowBatch]:
        """One pass, each batch with its rows."""
        ...


@runtime_checkable
class RowStream(RowSource, Protocol):
    """A :class:`RowSource` that can also be pruned: what attach accepts beside a map-style dataset.

    Attributes:
        num_rows: of the dataset that its rows are of.
        fingerprint: of that dataset.
        num_replicas: ranks that its rows are split over.
    """

    num_rows: int
    fingerprint: str
    num_replicas: int

    def prunable(self, seed: int) -> None:
        """Get ready for :meth:`prune`, before the first pass and its workers."""
        ...

    def prune(self, rows: Any) -> None:
        """Hand out the rows of a Coreset alone, from the next pass on; None: all."""
        ...

    def adopt(self, loader: Any) -> None:
        """Make a pipeline around a ``DataLoader`` over this one a stream of rows too, in place."""
        ...


def joined_rows(batches: list[RowBatch]) -> NDArray[np.int64]:
    """(B,) the rows of samples, or of batches, one after another."""
    return np.concatenate([np.atleast_1d(batch.rows) for batch in batches]).astype(np.int64)


def row_stream(loader: Any) -> RowStream | None:
    """The stream that a loader hands out, if it does: itself, or the dataset of a ``DataLoader``."""
    stream = getattr(loader, "dataset", None) if isinstance(loader, DataLoader) else loader
    return stream if isinstance(stream, RowStream) else None


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
                f"the sampler must yield positions in the dataset as ints, got {indices[0]!r}: keys of "
                "another kind cannot be rows"
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
        # A spawned worker looks attributes up before __init__'s work was restored.
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
def _carrying_rows(loader: DataLoader[Any]) -> Iterator[None]:
    fields = vars(loader)  # `dataset` refuses assignment through the loader
    plain = {"dataset": fields["dataset"], "collate_fn": fields["collate_fn"]}
    fields.update(_carriers(loader))
    try:
        yield
    finally:
        fields.update(plain)


def check_map_style(loader: DataLoader[Any]) -> None:
    """Refuse a loader whose samples have no row.

    Raises:
        UnsupportedError: not a DataLoader, an ``IterableDataset``, or ``batch_size=None``.
    """
    if not isinstance(loader, DataLoader):
        raise UnsupportedError(
            "loader must be a torch.utils.data.DataLoader over a map-style dataset, or a webdataset pipeline under "
            f"prunesampler.shards.track(pipeline, index), got {type(loader).__name__}"
        )
    if isinstance(loader.dataset, IterableDataset):
        raise UnsupportedError(
            f"an IterableDataset ({type(loader.dataset).__name__}) has no positions to name samples by: use a "
            "map-style dataset, or for webdataset prunesampler.shards.track(pipeline, index)"
        )
    if loader.batch_sampler is None:
        raise UnsupportedError(
            "batch_size=None turns batching off, so there are no batches of rows to follow: give the DataLoader "
            "a batch_size, or a batch_sampler"
        )


def check_followed(loader: Any) -> None:
    """Refuse what is neither a map-style ``DataLoader`` nor a :class:`RowStream`, or a ``DataLoader`` over one.

    Raises:
        UnsupportedError: rows cannot be known.
    """
    if row_stream(loader) is None:
        check_map_style(loader)


def with_rows(loader: DataLoader[T] | RowSource) -> Iterator[tuple[torch.Tensor, T]]:
    """One pass over ``loader``, each batch together with the rows that it was made of.

    Args:
        loader: a ``DataLoader`` over a map-style dataset, with any sampler that yields integer positions, any
            collate function and any workers. Its workers live for this pass only, persistent or not.

    Yields:
        ``(rows, batch)``: ``rows`` int64 on the CPU, one per sample in the batch's order; ``batch`` as the loader
        gives it without us.

    Raises:
        UnsupportedError: an ``IterableDataset``, ``batch_size=None``, a loader that is attached already, or one
            whose ``__iter__`` hides its batches.

    >>> from torch.utils.data import DataLoader
    >>> for rows, batch in with_rows(DataLoader([10, 20, 30], batch_size=2)):
    ...     print(rows.tolist(), batch.tolist())
    [0, 1] [10, 20]
    [2] [30]
    """
    if isinstance(loader, RowSource) and not isinstance(loader, RowPipeline):
        for rows, batch in loader.iter_rows():
            yield torch.from_numpy(rows), batch
        return
    check_followed(loader)
    if isinstance(loader, RowLoader | RowPipeline):
        raise UnsupportedError("loader is attached: loader.pruning follows its rows; detach() it first")
    fields = vars(loader)
    persistent, live = fields["persistent_workers"], fields.get("_iterator")
    # Persistent workers would go on carrying rows into the caller's next plain pass.
    fields["persistent_workers"] = False
    try:
        with _carrying_rows(loader):
            iterator = iter(loader)
    finally:
        fields["persistent_workers"] = persistent
        if persistent:
            fields["_iterator"] = live
    for item in iterator:
        if not isinstance(item, RowBatch):
            raise UnsupportedError(
                f"{type(loader).__name__}.__iter__ does not give what its workers return, so rows cannot travel "
                "with its batches: give the plain DataLoader below it"
            )
        yield torch.from_numpy(item.rows), item.batch


class RowListener(Protocol):
    """What a :class:`RowLoader` tells about its passes. ``token`` is the listener's own name for a pass."""

    def before_pass(self) -> None:
        """``iter(loader)`` was called; the sampler may still be changed."""

    def started(self) -> Any:
        """An iterator begins a pass. Returns the pass."""

    def fetched(self, token: Any, rows: NDArray[np.int64], batch: Any) -> None:
        """The pass is about to hand out ``batch``."""

    def exhausted(self, token: Any) -> None:
        """The pass has no more batches."""


class RowLoader(DataLoader[T]):
    """A ``DataLoader`` that reports the rows of every batch to a listener and hands out the batches as before.

    An existing loader becomes one when its ``__class__`` is set to :func:`row_loader_class` of its own class, so it
    stays the same object. A pickle or a copy of it is the plain loader again.
    """

    _row_listener: RowListener

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]  # torch says that batches are Any
        self._row_listener.before_pass()
        if not isinstance(self, RowLoader):  # the listener has let go of the loader
            return iter(self)
        return super().__iter__()

    def _get_iterator(self) -> Any:
        # Private in torch, yet the one place that every DataLoader subclass reaches, at its own time.
        with _carrying_rows(self):
            iterator = super()._get_iterator()
        iterator.__class__ = _row_iterator_class(cast(Any, type(iterator)))
        vars(iterator).update(_row_listener=self._row_listener, _row_pass=self._row_listener.started())
        return iterator

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = {k: v for k, v in vars(self).items() if k not in ("_row_listener", "pruning", "_iterator")}
        return _rebuild, (plain_class(self), {**state, "_iterator": None})


class RowPipeline(IterableDataset[Any]):
    """A :class:`RowStream` that reports its rows to a listener, as a :class:`RowLoader` does."""

    _row_listener: RowListener

    def __iter__(self) -> Iterator[Any]:
        listener = self._row_listener
        listener.before_pass()
        if not isinstance(self, RowPipeline):
            return iter(self)
        return _reported(listener, listener.started(), cast(RowSource, self).iter_rows())

    def __reduce_ex__(self, protocol: Any) -> Any:
        plain: Any = object.__new__(plain_class(self))
        vars(plain).update({k: v for k, v in vars(self).items() if k not in ("_row_listener", "pruning")})
        return plain.__reduce_ex__(protocol)


def _reported(listener: RowListener, token: Any, batches: Iterator[RowBatch]) -> Iterator[Any]:
    for rows, batch in batches:
        listener.fetched(token, rows, batch)
        yield batch
    listener.exhausted(token)


class _RowIterator:
    _row_listener: RowListener
    _row_pass: Any

    def __next__(self) -> Any:
        try:
            rows, batch = super().__next__()  # type: ignore[misc]
        except StopIteration:
            self._row_listener.exhausted(self._row_pass)
            raise
        self._row_listener.fetched(self._row_pass, rows, batch)
        return batch

    def _reset(self, *args: Any, **kwargs: Any) -> None:
        super()._reset(*args, **kwargs)  # type: ignore[misc]
        self._row_pass = self._row_listener.started()


@cache
def _row_iterator_class(plain: type) -> type:
    return type(plain.__name__, (_RowIterator, plain), {"__module__": plain.__module__})


@cache
def row_loader_class(base: Any, plain: Any) -> type:
    """The subclass of ``plain`` that is a ``base``, a kind of :class:`RowLoader`; made once for each pair.

    >>> from torch.utils.data import DataLoader
    >>> row_loader_class(RowLoader, DataLoader).__mro__[1:3] == (RowLoader, DataLoader)
    True
    """
    return type(plain.__name__, (base, plain), {"__module__": plain.__module__})


def plain_class(loader: RowLoader[Any] | RowPipeline) -> type:
    """The class that an attached loader had before."""
    mro = type(loader).__mro__
    return mro[mro.index(RowPipeline if isinstance(loader, RowPipeline) else RowLoader) + 1]


def _rebuild(plain: type, state: dict[str, Any]) -> Any:
    loader: Any = object.__new__(plain)
    vars(loader).update(state)
    return loader
