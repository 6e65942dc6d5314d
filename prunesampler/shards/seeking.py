"""Rows of one shard after another, read at their offsets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from prunesampler.shards.index import ShardIndex
from prunesampler.shards.locations import Locations
from prunesampler.shards.ranges import RangeReader
from prunesampler.shards.urls import absolute_path, local_path
from prunesampler.tables.columns import Int64s

__all__ = ["Seeker"]

_AT_ONCE = 1 << 20


class Seeker:
    """Reads samples of local shards as webdataset would, but no others. One file is open at a time.

    Args:
        index: of the shards.
    """

    def __init__(self, index: ShardIndex) -> None:
        self._index = index
        self._reader = RangeReader(index, open_files=1)

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def can_read(self, url: str, shard: int) -> bool:
        """Whether a URL is that of the index for a shard, a local tar that is not compressed."""
        path, known = local_path(url), self._index.shards[shard]
        return path is not None and self._index.seekable(shard) and absolute_path(url) == absolute_path(known)

    def read(self, url: str, rows: Int64s) -> Iterator[tuple[int, dict[str, Any]]]:
        """Rows and samples, some 1 MiB at a time.

        Args:
            url: of the shard, as ``__url__`` will have it.
            rows: (K,) ascending, all of that shard.

        Raises:
            OSError: the shard cannot be read.
            MismatchError: it has changed since it was indexed.
            CorruptFileError: it is cut short.
        """
        if not len(rows):
            return
        locations = Locations(self._index, rows)
        parts = np.cumsum(locations.sizes)[locations.starts[1:] - 1] // _AT_ONCE
        for places in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(parts)) + 1):
            for row, sample in zip(rows[places].tolist(), self._reader.samples(locations, places), strict=True):
                sample.update(__url__=url, __local_path__=local_path(url))
                yield row, sample
