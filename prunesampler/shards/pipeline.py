"""A webdataset pipeline whose batches know their rows."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, cast

import numpy as np
from torch.utils.data import DataLoader, IterableDataset

from prunesampler.capture.row_dataset import carrying_rows
from prunesampler.capture.row_loader import row_loader_class
from prunesampler.capture.rows import RowBatch, RowSource
from prunesampler.errors import ArgumentError, StateError, UnsupportedError
from prunesampler.shards.carry import carried, function_of
from prunesampler.shards.index import ShardIndex
from prunesampler.shards.kept_stream import Keep, keep
from prunesampler.shards.matching import shard_and_row
from prunesampler.tables.coreset import Coreset

__all__ = ["TrackedPipeline", "track"]


class TrackedPipeline(IterableDataset[Any]):
    """A ``DataPipeline`` that is also a :class:`~prunesampler.capture.rows.RowStream`. Made by :func:`track`.

    Iterated, it gives what it gave before; :func:`prunesampler.with_rows` gives the rows too. Stages may still be
    added, in the fluid form or with ``append``.
    """

    pipeline: list[Any]
    _index: ShardIndex
    _kept: Keep | None

    @property
    def num_rows(self) -> int:
        """Samples in the index."""
        return len(self._index)

    @property
    def fingerprint(self) -> str:
        """Of the index."""
        return self._index.fingerprint

    @property
    def num_replicas(self) -> int:
        """Ranks that the shards are split over."""
        import webdataset

        if self._reader is not self:
            return self._reader.num_replicas
        splits = any(function_of(stage) is webdataset.split_by_node for stage in self.pipeline)
        return int(webdataset.utils.pytorch_worker_info()[1]) if splits else 1

    def prunable(self, seed: int) -> None:
        """Make the memory that worker processes will share, before they start.

        Raises:
            StateError: they have started.
        """
        import webdataset

        reader = self._reader
        if reader._kept is None:
            first = self.pipeline[0]
            if isinstance(first, DataLoader) and first.persistent_workers and vars(first)["_iterator"] is not None:
                raise StateError(
                    "the loader's persistent workers have started and cannot be reached any more: call attach before "
                    "the first iter(loader)"
                )
            num_replicas = reader.num_replicas
            rank = int(webdataset.utils.pytorch_worker_info()[0]) if num_replicas > 1 else 0
            reader._kept = keep(None, reader._index, seed=seed, rank=rank, num_replicas=num_replicas)

    def prune(self, rows: Coreset | None) -> None:
        """Hand out the rows of a coreset alone, from the next pass on; None: all, as the pipeline has them."""
        kept = self._reader._kept
        if kept is not None:
            kept.switch(rows)

    def adopt(self, loader: Any) -> None:
        """Track a pipeline around a ``DataLoader`` over this one too, in place."""
        tracked = track(loader, self._index)
        vars(loader).update(vars(tracked))
        loader.__class__ = type(tracked)

    def iter_rows(self) -> Iterator[RowBatch]:
        """One pass: int64 rows of each batch (one, of a single sample), with the batch."""
        for item in super().__iter__():
            if not isinstance(item, RowBatch):
                raise UnsupportedError(
                    "the pipeline gives samples that never had __key__ and __url__, as webdataset's tarfile_to_samples "
                    "gives them, so their rows cannot be known"
                )
            yield RowBatch(np.atleast_1d(item.rows), item.batch)

    def __iter__(self) -> Iterator[Any]:
        return (item.batch for item in self.iter_rows())

    def iterator1(self) -> Iterator[Any]:
        """One round of the stages, each sample or batch with its rows."""
        first, *stages = self.pipeline
        source = first.iter_rows() if isinstance(first, RowSource) else iter(self.invoke(first))  # type: ignore[attr-defined]
        kept = self._kept if self._kept is not None and self._kept.active else None
        if kept is not None:
            kept.begin()
            head = list(itertools.islice(source, 1))
            source = itertools.chain(head, source)
            if head and _is_shard(head[0]):
                source = kept.shards(source)
                stages = [stage for stage in stages if function_of(stage) not in _splitters()]
        source = self._named(source, kept)
        while stages:
            count = _readers(stages)
            source = self._read(source, kept, stages[:count]) if count else self._next(source, kept, stages[0])
            stages = stages[count or 1 :]
        return source

    def _next(self, source: Iterator[Any], kept: Keep | None, stage: Any) -> Iterator[Any]:
        return self._named(carried(stage, source, self.invoke), kept)  # type: ignore[attr-defined]

    def _read(self, source: Iterator[Any], kept: Keep | None, stages: list[Any]) -> Iterator[Any]:
        """What is kept of shards, with its rows; ``stages`` are webdataset's, for those that cannot be sought in."""

        def stream(items: Iterator[Any]) -> Iterator[Any]:
            for stage in stages:
                items = self.invoke(stage, items)  # type: ignore[attr-defined]
            return items

        if kept is None:
            return self._named(stream(source), None)
        return (RowBatch(np.asarray(row, np.int64), sample) for row, sample in kept.read(source, stream))

    def _named(self, source: Iterable[Any], kept: Keep | None) -> Iterator[Any]:
        """Samples get their rows where they come from the tars, and those that are not kept end here."""
        here = None
        for item in source:
            if isinstance(item, RowBatch):  # so are all that follow
                yield item
                yield from source
                return
            here = isinstance(item, dict) and "__key__" in item and "__url__" in item
            if here:
                shard, row = shard_and_row(item, self._index)
                if kept is None or kept.takes(shard, row):
                    yield RowBatch(np.asarray(row, np.int64), item)
            else:
                yield item
        if kept is not None and here is not False:  # all was read, or nothing came
            kept.end()

    @property
    def _reader(self) -> TrackedPipeline:
        """The pipeline that reads shards, inside loaders or other pipelines."""
        first = self.pipeline[0]
        inner = getattr(first.dataset, "source", None) if isinstance(first, DataLoader) else first
        return inner._reader if isinstance(inner, TrackedPipeline) else self

    def __reduce_ex__(self, protocol: Any) -> Any:
        mro = type(self).__mro__
        return _rebuild, (mro[mro.index(TrackedPipeline) + 1], dict(vars(self)))


def track(pipeline: Any, index: ShardIndex) -> Any:
    """Follow every sample of a webdataset pipeline from its shard to its batch, worker processes included.

    A sample is known by its shard and key where it comes from the tar, and its row goes beside it from there on:
    through shuffles, ``decode``, ``to_tuple``, ``batched`` inside or outside the workers, and maps of one's own. So
    :func:`prunesampler.with_rows`, :func:`prunesampler.score` and :func:`prunesampler.attach` work on the result, and
    on a ``DataLoader`` or ``WebLoader`` made over it. A generator of one's own as a stage must give one sample for each
    that it takes, or dicts that keep ``"__row__"``.

    Once ``attach`` prunes, what is not kept is dropped before it is decoded, as with :func:`prunesampler.shards.keep`,
    whose equal shares take the place of ``split_by_node`` and ``split_by_worker``.

    Args:
        pipeline: a ``wds.WebDataset``, ``wds.DataPipeline`` or ``wds.WebLoader``; it stays as it is. Or URLs, which
            become a ``WebDataset`` that reads them in order, split over ranks and workers.
        index: of its shards, or more.

    Returns:
        A pipeline like the given one, a :class:`~prunesampler.capture.rows.RowStream`.

    Raises:
        ArgumentError: an argument breaks its rule; in a pass, a sample that is not in the index.
        UnsupportedError: no pipeline of webdataset; in a pass, a stage that cannot be followed.
        ImportError: webdataset is not installed.

    >>> import tempfile, webdataset as wds, prunesampler
    >>> from prunesampler.shards import build_index, track
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with wds.TarWriter(f"{folder}/0.tar") as writer:
    ...         for i in range(6):
    ...             _ = writer.write({"__key__": f"{i}", "cls": i % 3})
    ...     index = build_index(f"{folder}/0.tar", progress=False)
    >>> read = [{"__key__": key, "__url__": index.shards[0], "cls": int(key) % 3} for key in "025134"]
    >>> dataset = track(wds.DataPipeline([read], wds.to_tuple("cls"), wds.batched(4)), index)
    >>> [(rows.tolist(), batch[0].tolist()) for rows, batch in prunesampler.with_rows(dataset)]
    [([0, 2, 5, 1], [0, 2, 2, 1]), ([3, 4], [0, 1])]
    """
    import webdataset

    if not isinstance(index, ShardIndex):
        raise ArgumentError("index", "must be a ShardIndex", index)
    if isinstance(pipeline, str | os.PathLike | list | tuple):
        urls = os.fspath(pipeline) if isinstance(pipeline, os.PathLike) else pipeline
        pipeline = webdataset.WebDataset(
            urls, shardshuffle=False, nodesplitter=webdataset.split_by_node, empty_check=False
        )
    if not isinstance(pipeline, webdataset.DataPipeline):
        raise UnsupportedError(
            f"a {type(pipeline).__name__} is no pipeline of webdataset: give its WebDataset, DataPipeline or "
            "WebLoader; a DataLoader is made over track(dataset, index)"
        )
    if isinstance(pipeline, TrackedPipeline):
        return pipeline
    tracked = copy.copy(pipeline)
    first, *rest = pipeline.pipeline
    if isinstance(first, DataLoader):
        inner = copy.copy(first)
        vars(inner).update(dataset=track(first.dataset, index), _iterator=None)
        first = carrying_rows(inner)
    elif isinstance(first, webdataset.DataPipeline):
        first = track(first, index)
    vars(tracked).update(pipeline=[first, *rest], _index=index, _kept=None)
    tracked.__class__ = row_loader_class(TrackedPipeline, cast(Any, type(pipeline)))
    return tracked


def _is_shard(item: Any) -> bool:
    return isinstance(item, dict) and "url" in item and "__key__" not in item


def _readers(stages: list[Any]) -> int:
    """How many stages, from the first one on, read shards as webdataset does without options; 0 for none."""
    import webdataset
    from webdataset import filters, handlers, tariterators

    harmless = None, False, handlers.reraise_exception, filters.reraise_exception

    def plain(stage: Any) -> bool:
        options = {**getattr(stage, "kw", {}), **({} if hasattr(stage, "f") else vars(stage))}
        return all(value in harmless for value in options.values())

    apart = [webdataset.cache.StreamingOpen, tariterators.tar_file_expander, tariterators.group_by_keys]
    for known in ([tariterators.tarfile_samples], apart):
        found = stages[: len(known)]
        kinds = [function_of(stage) if hasattr(stage, "f") else type(stage) for stage in found]
        if kinds == known and all(map(plain, found)):
            return len(known)
    return 0


@cache
def _splitters() -> set[Any]:
    import webdataset

    splitters = {webdataset.split_by_node, webdataset.split_by_worker, webdataset.single_node_only}
    return {*splitters, webdataset.compat.check_empty}


def _rebuild(plain: type, state: dict[str, Any]) -> Any:
    pipeline: Any = object.__new__(row_loader_class(TrackedPipeline, cast(Any, plain)))
    vars(pipeline).update(state)
    return pipeline
