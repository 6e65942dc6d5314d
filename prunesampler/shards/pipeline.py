"""A webdataset pipeline whose batches know their rows.

Every stage runs as it is, on samples without rows. How their rows get past it depends on how the stage takes and gives
samples: one by one (``map``, ``decode``, ``to_tuple``), as they are (``shuffle``), or in batches. Stages that are not
webdataset's are trusted only as far as their rows can be checked.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset

from prunesampler.capture.row_dataset import PairCollate, carrying_rows
from prunesampler.capture.row_loader import row_loader_class
from prunesampler.capture.rows import RowBatch, RowSource
from prunesampler.errors import ArgumentError, StateError, UnsupportedError, check_bool, missing
from prunesampler.shards.index import ShardIndex
from prunesampler.shards.kept_stream import Keep, keep, shard_and_row
from prunesampler.shards.urls import check_commands
from prunesampler.tables.coreset import Coreset

ROW = "__row__"
"""Under this key a dict holds its row while it passes a stage of the user's own."""

Invoke = Callable[..., Iterable[Any]]


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
        """The index's fingerprint."""
        return self._index.fingerprint

    @property
    def num_replicas(self) -> int:
        """Ranks that the shards are split over."""
        import webdataset

        if self._reader is not self:
            return self._reader.num_replicas
        splits = any(_function_of(stage) is webdataset.split_by_node for stage in self.pipeline)
        return int(webdataset.utils.pytorch_worker_info()[1]) if splits else 1

    def prunable(self, seed: int) -> None:
        """Make the memory that worker processes will share; StateError if they have started already."""
        import webdataset

        if self._reader._kept is not None:
            return
        first = self.pipeline[0]
        if isinstance(first, DataLoader) and first.persistent_workers and vars(first)["_iterator"] is not None:
            raise StateError(
                "the loader's persistent workers have started already and cannot be pruned any more: call attach "
                "before the first iter(loader)"
            )
        if self._reader is not self:
            self._reader.prunable(seed)
            return
        rank, num_replicas = webdataset.utils.pytorch_worker_info()[0], self.num_replicas
        rank = int(rank) if num_replicas > 1 else 0
        self._kept = keep(None, self._index, seed=seed, rank=rank, num_replicas=num_replicas)

    def prune(self, rows: Coreset | None) -> None:
        """Hand out only the rows of a coreset, from the next pass on; None: all, as the pipeline has them."""
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
                    "the pipeline gives samples without __key__ and __url__, which webdataset's tarfile_to_samples "
                    "would set, so their rows cannot be known"
                )
            yield RowBatch(np.atleast_1d(item.rows), item.batch)

    def __iter__(self) -> Iterator[Any]:
        return (item.batch for item in self.iter_rows())

    def iterator1(self) -> Iterator[Any]:
        """One round of the stages, each sample or batch with its rows."""
        first, *stages = self.pipeline
        source = first.iter_rows() if isinstance(first, RowSource) else iter(self._invoke(first))
        kept = self._kept if self._kept is not None and self._kept.active else None
        if kept is not None:
            kept.begin()
            head = list(itertools.islice(source, 1))
            source = itertools.chain(head, source)
            if head and _is_shard(head[0]):
                source = kept.shards(source)
                replaced = _stage_kinds()["splitters"]
                stages = [stage for stage in stages if _function_of(stage) not in replaced]
        source = self._with_rows(source, kept)
        while stages:
            count = _tar_stages(stages)
            if count:
                source = self._read(source, kept, stages[:count])
            else:
                source = self._with_rows(rows_through(stages[0], source, self._invoke), kept)
            stages = stages[count or 1 :]
        return source

    def _read(self, source: Iterator[Any], kept: Keep | None, stages: list[Any]) -> Iterator[Any]:
        """Samples of shards with their rows; webdataset's ``stages`` read those that cannot be read at offsets."""

        def stream(items: Iterator[Any]) -> Iterator[Any]:
            for stage in stages:
                items = iter(self._invoke(stage, items))
            return items

        if kept is None:
            return self._with_rows(stream(source), None)
        return (RowBatch(np.asarray(row, np.int64), sample) for row, sample in kept.read(source, stream))

    def _with_rows(self, source: Iterable[Any], kept: Keep | None) -> Iterator[Any]:
        """Samples get their rows when they come from the tars; those that are not kept are dropped here."""
        identified = None
        for item in source:
            if isinstance(item, RowBatch):  # so are all that follow
                yield item
                yield from source
                return
            identified = isinstance(item, dict) and "__key__" in item and "__url__" in item
            if identified:
                shard, row = shard_and_row(item, self._index)
                if kept is None or kept.takes(shard, row):
                    yield RowBatch(np.asarray(row, np.int64), item)
            else:
                yield item
        if kept is not None and identified is not False:  # all samples were read, or none came
            kept.end()

    def _invoke(self, stage: Any, *args: Any) -> Iterable[Any]:
        return cast(Iterable[Any], self.invoke(stage, *args))  # type: ignore[attr-defined]

    @property
    def _reader(self) -> TrackedPipeline:
        """The pipeline that reads shards, inside loaders or other pipelines."""
        first = self.pipeline[0]
        inner = getattr(first.dataset, "source", None) if isinstance(first, DataLoader) else first
        return inner._reader if isinstance(inner, TrackedPipeline) else self

    def __reduce_ex__(self, protocol: Any) -> Any:
        mro = type(self).__mro__
        return _rebuild, (mro[mro.index(TrackedPipeline) + 1], dict(vars(self)))


def track(pipeline: Any, index: ShardIndex, *, allow_commands: bool = False) -> Any:
    """Follow every sample of a webdataset pipeline from its shard to its batch, worker processes included.

    A sample is known by its shard and key when it comes from the tar, and its row goes beside it from there on:
    through shuffles, ``decode``, ``to_tuple``, ``batched`` inside or outside the workers, and your own maps. So
    :func:`prunesampler.with_rows`, :func:`prunesampler.score` and :func:`prunesampler.attach` work on the result, and
    on a ``DataLoader`` or ``WebLoader`` made over it. A generator of your own as a stage must give one sample for each
    that it takes, or dicts that keep ``"__row__"``.

    Once ``attach`` prunes, what is not kept is dropped before it is decoded, as with :func:`prunesampler.shards.keep`,
    whose equal split replaces ``split_by_node`` and ``split_by_worker``.

    Args:
        pipeline: a ``wds.WebDataset``, ``wds.DataPipeline`` or ``wds.WebLoader``, which is not changed. Or URLs, which
            become a ``WebDataset`` that reads them in order, split over ranks and workers.
        index: of its shards, or of more.
        allow_commands: accept ``pipe:`` among URLs, and run them.

    Returns:
        A pipeline like the given one, a :class:`~prunesampler.capture.rows.RowStream`.

    Raises:
        ArgumentError: an argument breaks its rule; in a pass, a sample that is not in the index.
        UnsupportedError: not a pipeline of webdataset; in a pass, a stage that cannot be followed.
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
    try:
        import webdataset
    except ImportError as error:
        raise missing("webdataset", error) from error
    if not isinstance(index, ShardIndex):
        raise ArgumentError("index", "must be a ShardIndex", index)
    if isinstance(pipeline, str | os.PathLike | list | tuple):
        given = os.fspath(pipeline) if isinstance(pipeline, os.PathLike) else pipeline
        urls = webdataset.shardlists.expand_urls(given) if isinstance(given, str) else list(map(os.fspath, given))
        check_commands("pipeline", urls, check_bool("allow_commands", allow_commands))
        pipeline = webdataset.WebDataset(
            urls, shardshuffle=False, nodesplitter=webdataset.split_by_node, empty_check=False
        )
    if not isinstance(pipeline, webdataset.DataPipeline):
        raise UnsupportedError(
            f"expected a pipeline of webdataset, got {type(pipeline).__name__}: give its WebDataset, DataPipeline or "
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


def rows_through(stage: Any, source: Iterator[Any], invoke: Invoke) -> Iterator[Any]:
    """What a stage makes of a stream of samples with rows, :class:`RowBatch`; other items are passed through.

    ``invoke`` runs a stage on a source, as ``DataPipeline.invoke`` does. A stage is refused (UnsupportedError) when it
    cannot be told which of its inputs an output comes from.
    """
    function, kinds = _function_of(stage), _stage_kinds()
    if function in kinds["any"] or type(stage) in kinds["any"]:
        return iter(invoke(stage, source))
    if function in kinds["batched"]:
        return iter(invoke(_batched_with_rows(stage), source))
    if function in kinds["unbatched"]:
        return _unbatched(stage, source, invoke)
    return _one_by_one(stage, source, invoke, known=function in kinds["one"])


class _WithoutRows:
    """The samples of a stream without their rows, which it remembers: those of the sample that was taken last."""

    def __init__(self, source: Iterator[Any], tag: bool) -> None:
        self._source, self._tag = source, tag
        self._taken = 0
        self.rows: NDArray[np.int64] | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        item = next(self._source)
        self._taken += 1
        if not isinstance(item, RowBatch):
            self.rows = None
            return item
        self.rows = item.rows
        if self._tag and isinstance(item.batch, dict):
            return {**item.batch, ROW: item.rows}
        return item.batch

    def count(self) -> int:
        """How many samples were taken since it was asked last."""
        taken, self._taken = self._taken, 0
        return taken


def _one_by_one(stage: Any, source: Iterator[Any], invoke: Invoke, *, known: bool) -> Iterator[Any]:
    samples = _WithoutRows(source, tag=not known)
    for out in invoke(stage, samples):
        if samples.rows is None:
            yield out
            continue
        rows = samples.rows
        taken = samples.count()
        if isinstance(out, dict) and ROW in out:
            rows = np.asarray(out[ROW], np.int64)
            out = {name: value for name, value in out.items() if name != ROW}
        elif not known and taken > 1:
            raise UnsupportedError(
                f"the stage {getattr(stage, '__name__', stage)!r} took several samples before it gave one, so its rows "
                f"cannot be followed: use webdataset's own stages (map, select, shuffle, batched), or let its dicts "
                f'keep "{ROW}"'
            )
        yield RowBatch(rows, out)


def _unbatched(stage: Any, source: Iterator[Any], invoke: Invoke) -> Iterator[Any]:
    batches = _WithoutRows(source, tag=False)
    place = 0
    for out in invoke(stage, batches):
        place = 0 if batches.count() else place + 1
        if batches.rows is None:
            yield out
        elif place >= batches.rows.size:
            raise UnsupportedError(f"expected at most {batches.rows.size} samples of a batch of as many rows; got more")
        else:
            yield RowBatch(np.atleast_1d(batches.rows)[place], out)


def _batched_with_rows(stage: Any) -> Any:
    import webdataset

    bound = inspect.signature(stage.f).bind(None, *stage.args, **stage.kw)
    bound.apply_defaults()
    _, size, collation, partial = bound.args
    collate = functools.partial(_collate_with_rows, PairCollate(collation or list), collation or list)
    return webdataset.filters.batched(size, collation_fn=collate, partial=partial)


def _collate_with_rows(follow: PairCollate, collation: Callable[[list[Any]], Any], items: list[Any]) -> Any:
    return follow(items) if all(isinstance(item, RowBatch) for item in items) else collation(items)


def _function_of(stage: Any) -> Any:
    """What a stage calls: webdataset's filter, or the function in a ``functools.partial``."""
    for name in ("f", "func"):
        stage = getattr(stage, name, stage)
    return stage


@functools.cache
def _stage_kinds() -> dict[str, set[Any]]:
    """webdataset's stages by how they take and give samples; and those that split shards."""
    import webdataset
    from webdataset import filters

    def functions(names: str) -> set[Any]:
        return {getattr(filters, name).f for name in names.split()}

    splitters = {webdataset.split_by_node, webdataset.split_by_worker, webdataset.single_node_only}
    checks = {webdataset.compat.check_empty, webdataset.non_empty, webdataset.resampled.f}
    return {
        "any": {*functions("shuffle rsample slice"), filters.detshuffle, filters.Cached, *splitters, *checks},
        "batched": functions("batched"),
        "unbatched": functions("unbatched unlisted"),
        "one": functions(
            "map decode map_dict map_tuple to_tuple rename rename_keys extract_keys xdecode select associate log_keys "
            "info"
        ),
        "splitters": {*splitters, webdataset.compat.check_empty},
    }


def _tar_stages(stages: list[Any]) -> int:
    """How many stages, from the first one on, read shards as webdataset does without options; 0 for none."""
    import webdataset
    from webdataset import filters, handlers, tariterators

    defaults = None, False, handlers.reraise_exception, filters.reraise_exception

    def without_options(stage: Any) -> bool:
        options = {**getattr(stage, "kw", {}), **({} if hasattr(stage, "f") else vars(stage))}
        return all(value in defaults for value in options.values())

    separate = [webdataset.cache.StreamingOpen, tariterators.tar_file_expander, tariterators.group_by_keys]
    for known in ([tariterators.tarfile_samples], separate):
        found = stages[: len(known)]
        types = [_function_of(stage) if hasattr(stage, "f") else type(stage) for stage in found]
        if types == known and all(map(without_options, found)):
            return len(known)
    return 0


def _is_shard(item: Any) -> bool:
    return isinstance(item, dict) and "url" in item and "__key__" not in item


def _rebuild(plain: type, state: dict[str, Any]) -> Any:
    pipeline: Any = object.__new__(row_loader_class(TrackedPipeline, cast(Any, plain)))
    vars(pipeline).update(state)
    return pipeline
