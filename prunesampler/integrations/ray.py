"""Merging and selecting on a Ray cluster, for files of scores that are too long for one machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from prunesampler.selection.engine import RayEngine
from prunesampler.selection.select import Selection, select_file
from prunesampler.tables.merge import merge_files
from prunesampler.tables.score_file import ScoreFile

__all__ = ["RayEngine", "merge", "select"]


def merge(paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> ScoreFile:
    """Average runs of one dataset, as :func:`prunesampler.merge` does, on Ray: a million rows a task.

    Ray is told where its cluster is as always, by ``ray.init`` or ``RAY_ADDRESS``; else it starts on this machine.

    Args:
        paths: at least two files of scores, each of another run, that every node can read under these paths.
        out: the file of the averages, which this process writes.

    Returns:
        What the new file says of itself: ``len()``, ``digest``, ``num_rows``, ``directions``, ``protocols``.

    Raises:
        UnsupportedError: Ray is not installed.
        OSError: a file cannot be read, or ``out`` cannot be written.
        ArgumentError, MismatchError: as :func:`prunesampler.merge` does.
        CorruptFileError: a file is damaged.
    """
    return merge_files(RayEngine().map, [os.path.abspath(path) for path in paths], out)


def select(
    path: str | os.PathLike[str], out: str | os.PathLike[str], keep: float | str, **options: Any
) -> dict[str, Any]:
    """Keep rows by their scores, as :func:`prunesampler.select` does, on Ray.

    The exact limits are found by counting: no task holds more than a million rows, nor does this process.

    Args:
        path: a file of scores that every node can read under this path.
        out: the coreset's file, which this process writes.
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
    found, _ = select_file(RayEngine().map, os.path.abspath(path), out, selection)
    selection.warn(found["eligible"], stacklevel=2)
    return found
