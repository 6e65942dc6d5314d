"""Loaders that report the rows of every batch."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Protocol, TypeVar, cast

import torch
from torch.utils.data import DataLoader, IterableDataset

from prunesampler.capture.row_dataset import carrying
from prunesampler.capture.row_function import RowFunction
from prunesampler.capture.rows import Collated, RowSource, check_followed
from prunesampler.errors import UnsupportedError

T = TypeVar("T")


def with_rows(
    loader: DataLoader[T] | RowSource, *, row_fn: Callable[[Any], Any] | None = None
) -> Iterator[tuple[torch.Tensor, T]]:
    """One pass over ``loader``, each batch together with the rows that it was made of.

    Args:
        loader: a ``DataLoader`` over a map-style dataset, with any sampler that yields integer positions, any
            collate function and any workers. Its workers live for this pass only, persistent or not. With ``row_fn``
            any ``DataLoader`` or ``IterableDataset``.
        row_fn: batch → (B,) int rows, where the batch says them itself: a dataset that returns its index. Without it
            the collated batch is compared with its samples, and rows follow a collate function that sorts or drops.

    Yields:
        ``(rows, batch)``: ``rows`` int64 on the CPU, one per sample in the batch's order; ``batch`` as the loader
        gives it without us.

    Raises:
        UnsupportedError: an ``IterableDataset``, ``batch_size=None``, a loader that is attached already, one
            whose ``__iter__`` hides its batches, or one whose collate function reorders samples beyond recognition.
        ArgumentError: ``row_fn`` returns something else than rows.

    Warns:
        PruneSamplerWarning: what the collate function makes cannot be compared with its samples.

    >>> from torch.utils.data import DataLoader
    >>> for rows, batch in with_rows(DataLoader([10, 20, 30], batch_size=2)):
    ...     print(rows.tolist(), batch.tolist())
    [0, 1] [10, 20]
    [2] [30]
    """
    told = None if row_fn is None else RowFunction(row_fn, loader)
    return rows_of(loader, told)


def rows_of(loader: Any, told: RowFunction | None) -> Iterator[tuple[torch.Tensor, Any]]:
    """As :func:`with_rows`; ``told`` is a ``row_fn`` that was checked."""
    source = isinstance(loader, RowSource) and not isinstance(loader, RowPipeline)
    if not source:
        check_followed(loader, row_fn=told is not None)
    if isinstance(loader, RowLoader | RowPipeline):
        raise UnsupportedError("loader is attached: loader.pruning follows its rows; detach() it first")
    if source:
        batches: Iterator[Any] = (Collated(rows, batch) for rows, batch in loader.iter_rows())
    elif told is not None and (not isinstance(loader, DataLoader) or type(loader).__iter__ is not DataLoader.__iter__):
        batches = iter(loader)  # what it hands out is its own affair
    else:
        batches = _carried(loader)
    for batch in batches:
        item = Collated.of(batch)
        if told is None and item is not batch:
            raise UnsupportedError(
                f"{type(loader).__name__}.__iter__ does not give what its workers return, so rows cannot travel "
                "with its batches: give the plain DataLoader below it, or row_fn=, a function from the batch to its "
                "rows"
            )
        rows = item.known_rows() if told is None else told(item.batch, item.rows)
        yield torch.from_numpy(rows), item.batch


def _carried(loader: DataLoader[Any]) -> Iterator[Any]:
    """One pass whose batches are :class:`Collated`, where they are made of rows."""
    fields = vars(loader)
    persistent, live = fields["persistent_workers"], fields.get("_iterator")
    # Persistent workers would go on carrying rows into the caller's next plain pass.
    fields["persistent_workers"] = False
    try:
        with carrying(loader):
            iterator = iter(loader)
    finally:
        fields["persistent_workers"] = persistent
        if persistent:
            fields["_iterator"] = live
    return cast("Iterator[Any]", iterator)


class RowListener(Protocol):
    """What a :class:`RowLoader` reports its passes to. ``token`` is what :meth:`started` returned for a pass."""

    def before_pass(self) -> None:
        """``iter(loader)`` was called; the sampler may still be changed."""

    def started(self) -> Any:
        """An iterator begins a pass. Returns the pass."""

    def fetched(self, token: Any, item: Collated) -> Any:
        """The pass has ``item.batch``. Returns what it hands out: the same, or a part of it."""

    def exhausted(self, token: Any) -> None:
        """The pass has no more batches."""

    def released(self, token: Any) -> None:
        """Nobody holds the iterator of the pass any more. Whatever is raised here is lost."""


def _released(listener: weakref.ref[RowListener], token: Any) -> None:
    if (alive := listener()) is not None:
        alive.released(token)


class RowLoader(DataLoader[T]):
    """A ``DataLoader`` that reports the rows of every batch to a listener and hands out the batches as before.

    An existing loader becomes one when its ``__class__`` is set to :func:`row_loader_class` of its own class, so it
    stays the same object. A pickle or a copy of it is the plain loader again.
    """

    _row_listener: RowListener

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]  # torch says that batches are Any
        self._row_listener.before_pass()
        if not isinstance(self, RowLoader):  # the listener has detached the loader
            return iter(self)
        return super().__iter__()

    def _get_iterator(self) -> Any:
        # Private in torch, yet the one place that every DataLoader subclass reaches, at its own time.
        # A StatefulDataLoader's first iterator is made again for us: the loop's random numbers must not know.
        again = vars(self).pop("_made_before", False)
        with carrying(self), torch.random.fork_rng(devices=(), enabled=again):
            iterator = super()._get_iterator()
        iterator.__class__ = row_loader_class(_RowIterator, cast(Any, type(iterator)))
        token = self._row_listener.started()
        vars(iterator).update(_row_listener=self._row_listener, _row_pass=token)
        weakref.finalize(iterator, _released, weakref.ref(self._row_listener), token).atexit = False
        return iterator

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = {k: v for k, v in vars(self).items() if k not in ("_row_listener", "pruning", "_iterator")}
        return object.__new__, (plain_class(self),), {**state, "_iterator": None}


class RowPipeline(IterableDataset[Any]):
    """A :class:`RowStream` that reports its rows to a listener, as a :class:`RowLoader` does."""

    _row_listener: RowListener

    def __iter__(self) -> Iterator[Any]:
        listener = self._row_listener
        listener.before_pass()
        if not isinstance(self, RowPipeline):
            return iter(self)
        if isinstance(self, RowSource):
            batches: Iterator[Any] = (Collated(rows, batch) for rows, batch in self.iter_rows())
        else:
            batches = super().__iter__()
        return _reported(listener, listener.started(), batches)

    def __reduce_ex__(self, protocol: Any) -> Any:
        plain: Any = object.__new__(plain_class(self))
        vars(plain).update({k: v for k, v in vars(self).items() if k not in ("_row_listener", "pruning")})
        return plain.__reduce_ex__(protocol)


def _reported(listener: RowListener, token: Any, batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        yield listener.fetched(token, Collated.of(batch))
    listener.exhausted(token)


class _RowIterator:
    _row_listener: RowListener
    _row_pass: Any

    def __next__(self) -> Any:
        try:
            item = Collated.of(super().__next__())  # type: ignore[misc]
        except StopIteration:
            self._row_listener.exhausted(self._row_pass)
            raise
        return self._row_listener.fetched(self._row_pass, item)

    def _reset(self, *args: Any, **kwargs: Any) -> None:
        super()._reset(*args, **kwargs)  # type: ignore[misc]
        self._row_pass = self._row_listener.started()


@cache
def row_loader_class(base: Any, plain: Any) -> type:
    """The subclass of ``plain`` that is a ``base`` too (a :class:`RowLoader`, say), and keeps its name."""
    return type(plain.__name__, (base, plain), {"__module__": plain.__module__})


def plain_class(loader: RowLoader[Any] | RowPipeline) -> type:
    """The class that an attached loader had before."""
    mro = type(loader).__mro__
    return mro[mro.index(RowPipeline if isinstance(loader, RowPipeline) else RowLoader) + 1]
