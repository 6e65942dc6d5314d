"""Batches with the rows that they were made of, and the pipelines that give them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset

from prunesampler.errors import PruneSamplerWarning, UnsupportedError

UNKNOWN = np.empty(0, np.int64)
"""The rows of a batch that carries none."""


class RowBatch(NamedTuple):
    """A batch and the rows that it was made of, in the same order."""

    rows: NDArray[np.int64]
    batch: Any


class Collated(NamedTuple):
    """The same of a collate function that was looked at.

    Attributes:
        rows: (B,) int64; none where the batch carries none.
        batch: as the loader makes it.
        drawn: how many were drawn for it, where its collate function put them in another order, left some out or
            repeated them; else None.
        doubt: what stands against the rows, to be raised or warned of where they matter.
    """

    rows: NDArray[np.int64]
    batch: Any
    drawn: int | None = None
    doubt: UnsupportedError | PruneSamplerWarning | None = None

    @classmethod
    def of(cls, batch: Any) -> Collated:
        """A batch that a loader hands out."""
        if isinstance(batch, Collated):
            return batch
        return cls(*batch) if isinstance(batch, RowBatch) else cls(UNKNOWN, batch)

    def known_rows(self) -> NDArray[np.int64]:
        """The rows, unless there is a doubt about them."""
        if isinstance(self.doubt, Warning):
            warnings.warn(self.doubt, stacklevel=3)
        elif self.doubt is not None:
            raise self.doubt
        return self.rows


class OtherRows(list[Any]):
    """What a dataset's ``__getitems__`` gives where it cannot read all of the rows that it was asked for.

    Attributes:
        rows: (B,) int64, those of the samples in the list.
    """

    def __init__(self, samples: Iterable[Any], rows: NDArray[np.int64]) -> None:
        super().__init__(samples)
        self.rows = rows


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


def check_followed(loader: Any, *, row_fn: bool = False) -> None:
    """Refuse a loader whose samples have no row: neither over a map-style dataset nor over a :class:`RowStream`.

    A function of the user's that tells the rows is enough for any ``DataLoader`` or stream.
    """
    if row_stream(loader) is not None or (row_fn and isinstance(loader, (DataLoader, IterableDataset))):
        return
    if not isinstance(loader, DataLoader):
        raise UnsupportedError(
            "loader must be a torch.utils.data.DataLoader over a map-style dataset, or a webdataset pipeline under "
            f"prunesampler.shards.track(pipeline, index), got {type(loader).__name__}"
        )
    if isinstance(loader.dataset, IterableDataset):
        raise UnsupportedError(
            f"an IterableDataset ({type(loader.dataset).__name__}) has no positions to name samples by: use a "
            "map-style dataset, for webdataset prunesampler.shards.track(pipeline, index), or where its batches hold "
            "ids row_fn=, a function from the batch to its rows (or to ids, with keys={id: row})"
        )
    if loader.batch_sampler is None:
        raise UnsupportedError(
            "batch_size=None turns batching off, so there are no batches of rows to follow: give the DataLoader "
            "a batch_size, or a batch_sampler; or give row_fn=, a function from the batch to its rows"
        )
