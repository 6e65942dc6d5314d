"""Merging and selecting on a Ray cluster, for files of scores that are too long for one machine."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from prunesampler.errors import PruneSamplerError, UnsupportedError
from prunesampler.selection.out_of_core.engine import Blocks, Function
from prunesampler.selection.out_of_core.merging import merge as merge_files
from prunesampler.selection.out_of_core.reading import Header
from prunesampler.selection.out_of_core.selecting import select as select_from_file
from prunesampler.selection.select import Selection

__all__ = ["RayEngine", "merge", "select"]

_BLOCK_BYTES = 32 << 20  # what Ray reserves for a task's result before it has seen one


def merge(paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Header:
    """Average runs of one dataset, as :func:`prunesampler.merge` does, by Ray Data: a million rows a task.

    Ray is told where its cluster is as always, by ``ray.init`` or ``RAY_ADDRESS``; else it starts on this machine.

    Args:
        paths: at least two files of scores, each of another run, that every node can read under these paths.
        out: the file of the averages, which this process writes; to the byte what the whole tables would give.

    Returns:
        What the new file says of itself: ``len()``, ``digest``, ``num_rows``, ``directions``, ``protocols``.

    Raises:
        UnsupportedError: Ray is not installed.
        OSError: a file cannot be read, or ``out`` cannot be written.
        ArgumentError, MismatchError: as :func:`prunesampler.merge` does.
        CorruptFileError: a file is damaged.
    """
    return merge_files(RayEngine(), [os.path.abspath(path) for path in paths], out)


def select(
    path: str | os.PathLike[str], out: str | os.PathLike[str], keep: float | str, **options: Any
) -> dict[str, Any]:
    """Keep rows by their scores, as :func:`prunesampler.select` does, by Ray Data.

    The exact limits are found by counting: no task holds more than a million rows, nor does this process.

    Args:
        path: a file of scores that every node can read under this path.
        out: the coreset's file, which this process writes; to the byte what the whole table would give.
        keep, options: as of :func:`prunesampler.select`, but for ``eligible``.

    Returns:
        The ``selection`` of the coreset.

    Raises:
        UnsupportedError: Ray is not installed.
        OSError: a file cannot be read or written.
        ArgumentError: as :func:`prunesampler.select` does.
        CorruptFileError: the file is damaged.

    Warns:
        PruneSamplerWarning: as :func:`prunesampler.select` does.
    """
    selection = Selection(keep, **options)  # type: ignore[arg-type]
    header, _ = select_from_file(RayEngine(), os.path.abspath(path), out, selection)
    found: dict[str, Any] = header.metadata["selection"]
    selection.warn(found["eligible"], stacklevel=2)
    return found


class RayEngine:
    """Ray Data as what work on blocks is done by: one task an item.

    Raises:
        UnsupportedError: Ray is not installed.
    """

    def __init__(self) -> None:
        try:
            import ray.data
        except ImportError as error:
            raise UnsupportedError(f"the engine needs Ray ({error}): pip install 'prunesampler[ray]'") from error
        self._data = ray.data

    def map(self, function: Function, items: Sequence[Any]) -> Blocks:
        """See :class:`prunesampler.selection.out_of_core.engine.Engine`."""
        numbers = self._data.from_items(list(range(len(items))), override_num_blocks=len(items))
        context = numbers.context
        context.execution_options.preserve_order = True
        context.enable_progress_bars = context.print_on_execution_start = False
        context.target_max_block_size = _BLOCK_BYTES
        context.raise_original_map_exception = True
        work = functools.partial(_of_item, function, list(items))
        return _Dataset(numbers.map_batches(work, batch_size=1, batch_format="pyarrow"))


class _Dataset:
    def __init__(self, dataset: Any) -> None:
        self._dataset = _raised_here(dataset.materialize)

    def parts(self, columns: Sequence[str] | None = None, rows: int | None = None) -> Iterator[pa.Table]:
        if not self._dataset.count():
            return
        dataset = self._dataset if columns is None else self._dataset.select_columns(list(columns))
        yield from dataset.iter_batches(batch_size=rows, batch_format="pyarrow")

    def map(self, function: Function) -> Blocks:
        return _Dataset(self._dataset.map_batches(function, batch_size=None, batch_format="pyarrow"))

    def sorted(self, column: str) -> Blocks:
        return _Dataset(self._dataset.sort(column))

    def held(self) -> Blocks:
        return self  # as all are


def _of_item(function: Function, items: Sequence[Any], number: pa.Table) -> pa.Table:
    return function(items[number["item"][0].as_py()])


def _raised_here(work: Callable[[], Any]) -> Any:
    """Do it; what a task raised on purpose comes out as it was raised there."""
    try:
        return work()
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            raised = getattr(cause, "cause", cause)
            if isinstance(raised, PruneSamplerError | OSError):
                raise raised from error
            cause = cause.__cause__
        raise
