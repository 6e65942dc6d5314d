"""Rows beside the samples, through the stages of a webdataset pipeline.

Every stage is run as it is, on samples without rows; a row finds its way by how the stage takes and gives: one by one
(``map``, ``decode``, ``to_tuple``), as it comes (``shuffle``), or in batches. Of a stage that is none of webdataset's
it is only believed what can be seen.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunesampler.capture.rows import RowBatch, joined_rows
from prunesampler.errors import UnsupportedError

__all__ = ["ROW", "carried", "function_of"]

ROW = "__row__"
"""Under this key a dict holds its row while it passes a stage of the user's own."""

Invoke = Callable[..., Iterable[Any]]


def carried(stage: Any, source: Iterator[Any], invoke: Invoke) -> Iterator[Any]:
    """What a stage makes of a stream of samples with rows, :class:`RowBatch`; others are passed through.

    Raises:
        UnsupportedError: a stage's outputs cannot be told to be of one input each.
    """
    kind = function_of(stage)
    kinds = _kinds()
    if kind in kinds["any"] or type(stage) in kinds["any"]:
        return iter(invoke(stage, source))
    if kind in kinds["batched"]:
        return iter(invoke(_gathering(stage), source))
    if kind in kinds["unbatched"]:
        return _apart(stage, source, invoke)
    return _one_by_one(stage, source, invoke, known=kind in kinds["one"])


def function_of(stage: Any) -> Any:
    """What a stage calls: webdataset's filter, or the function that ``functools.partial`` holds."""
    for name in ("f", "func"):
        stage = getattr(stage, name, stage)
    return stage


class _Feed:
    """The samples of a stream, without the rows; knows the row of the one that was taken last."""

    def __init__(self, source: Iterator[Any], tag: bool) -> None:
        self._source, self._tag = source, tag
        self.rows: NDArray[np.int64] | None = None
        self.taken = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        item = next(self._source)
        self.taken += 1
        if not isinstance(item, RowBatch):
            self.rows = None
            return item
        self.rows = item.rows
        if self._tag and isinstance(item.batch, dict):
            return {**item.batch, ROW: item.rows}
        return item.batch


def _one_by_one(stage: Any, source: Iterator[Any], invoke: Invoke, *, known: bool) -> Iterator[Any]:
    feed = _Feed(source, tag=not known)
    for out in invoke(stage, feed):
        if feed.rows is None:
            yield out
            continue
        rows = feed.rows
        if isinstance(out, dict) and ROW in out:
            rows = np.asarray(out[ROW], np.int64)
            out = {name: value for name, value in out.items() if name != ROW}
        elif not known and feed.taken > 1:
            raise UnsupportedError(
                f"the stage {getattr(stage, '__name__', stage)!r} took several samples before it gave one, so its rows "
                f"cannot be followed: use webdataset's own stages (map, select, shuffle, batched), or let its dicts "
                f'keep "{ROW}"'
            )
        feed.taken = 0
        yield RowBatch(rows, out)


def _apart(stage: Any, source: Iterator[Any], invoke: Invoke) -> Iterator[Any]:
    feed = _Feed(source, tag=False)
    given = 0
    for out in invoke(stage, feed):
        given = 1 if feed.taken else given + 1
        feed.taken = 0
        if feed.rows is None:
            yield out
        elif given > feed.rows.size:
            raise UnsupportedError(f"a batch of {feed.rows.size} rows came apart into more samples")
        else:
            yield RowBatch(np.atleast_1d(feed.rows)[given - 1], out)


def _gathering(stage: Any) -> Any:
    import webdataset

    bound = inspect.signature(stage.f).bind(None, *stage.args, **stage.kw)
    bound.apply_defaults()
    _, size, collation, partial = bound.args
    return webdataset.filters.batched(size, collation_fn=_Gather(collation), partial=partial)


class _Gather:
    def __init__(self, collation: Callable[[list[Any]], Any] | None) -> None:
        self._collation = collation

    def __call__(self, items: list[Any]) -> Any:
        collation = self._collation or list
        if not all(isinstance(item, RowBatch) for item in items):
            return collation(items)
        return RowBatch(joined_rows(items), collation([item.batch for item in items]))


@cache
def _kinds() -> dict[str, set[Any]]:
    """webdataset's stages by how they take and give."""
    import webdataset
    from webdataset import filters

    def functions(*names: str) -> set[Any]:
        return {getattr(filters, name).f for name in names}

    splitters = {webdataset.split_by_node, webdataset.split_by_worker, webdataset.single_node_only}
    checks = {webdataset.compat.check_empty, webdataset.non_empty, webdataset.resampled.f}
    return {
        "any": {*functions("shuffle", "rsample", "slice"), filters.detshuffle, filters.Cached, *splitters, *checks},
        "batched": functions("batched"),
        "unbatched": functions("unbatched", "unlisted"),
        "one": functions(
            "map",
            "decode",
            "map_dict",
            "map_tuple",
            "to_tuple",
            "rename",
            "rename_keys",
            "extract_keys",
            "xdecode",
            "select",
            "associate",
            "log_keys",
            "info",
        ),
    }
