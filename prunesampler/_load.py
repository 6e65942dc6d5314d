"""Any file of ours, read as what it is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from prunesampler.errors import MismatchError
from prunesampler.tables.parquet import kind_of
from prunesampler.tables.schedule import Schedule
from prunesampler.tables.score_table import Coreset, ScoreTable

if TYPE_CHECKING:
    from prunesampler.condensation.dataset import CondensedDataset
    from prunesampler.shards.index import ShardIndex


def load(path: str | os.PathLike[str]) -> ScoreTable | Coreset | Schedule | ShardIndex | CondensedDataset:
    """Read a file of scores, of a coreset, of a schedule, of a shard index or of condensed images, whichever it is.

    A folder is that of a run: its scores are read.

    Raises:
        FileNotFoundError: no such file.
        CorruptFileError: damaged, cut short, edited, or not a file of ours.
        MismatchError: of a newer format.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ScoreTable({"el2n": [0.5, 0.25]}).save(f"{folder}/scores.parquet")
    ...     load(folder)
    ScoreTable(rows=2, of=2, without={'el2n': 0})
    """
    kind, kinds = kind_of(path), {each._kind: each for each in (ScoreTable, Coreset, Schedule)}
    if kind == "shards":
        from prunesampler.shards.index import ShardIndex  # it waits for torch, which the others do not need

        return ShardIndex.load(path)
    if kind == "condensed":
        from prunesampler.condensation.dataset import CondensedDataset

        return CondensedDataset.load(path)
    if kind not in kinds:
        raise MismatchError(f"{path} holds {kind!r}, which this version does not know: update prunesampler")
    return kinds[kind].load(path)
