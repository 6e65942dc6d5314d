"""Bytes of local shards, read to where they are wanted: neighbours by one call, nothing copied twice."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from prunesampler.columns import Int64s
from prunesampler.errors import CorruptFileError
from prunesampler.shards.handles import Handles
from prunesampler.shards.index import ShardIndex

__all__ = ["ScatterReader"]

_GAP = 16 << 10
_MOST = 300  # of what is wanted in one call, which takes 1024 buffers: two for each, and the gaps


class ScatterReader:
    """Fills buffers from local shards. Not for several threads at once.

    Args:
        index: of the shards.
        open_files: that stay open, at least 1.
    """

    def __init__(self, index: ShardIndex, open_files: int) -> None:
        self._index, self._handles = index, Handles(index, open_files)
        self._gap = memoryview(bytearray(_GAP))

    def close(self) -> None:
        """Close all files."""
        self._handles.close()

    def fill(self, shards: Int64s, offsets: Int64s, sizes: Int64s, buffers: Sequence[Sequence[memoryview]]) -> None:
        """Read runs of bytes.

        Args:
            shards, offsets, sizes: (W,) int64, what is wanted, in any order.
            buffers: W times, the buffers that it fills, two at most, one after the other.

        Raises:
            OSError: a shard cannot be read.
            MismatchError: a shard has another size than when it was indexed.
            CorruptFileError: a shard is cut short.
        """
        if not len(shards):
            return
        order = np.lexsort((offsets, shards))
        shards, offsets = shards[order], offsets[order]
        ends = offsets + sizes[order]
        gaps = np.append(0, offsets[1:] - ends[:-1])
        apart = (np.diff(shards, prepend=-1) != 0) | (gaps < 0) | (gaps > _GAP)
        starts = np.flatnonzero(apart)
        apart |= (np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))) % _MOST == 0
        starts = np.flatnonzero(apart)
        stops = np.append(starts[1:], len(order))
        gaps[starts] = 0
        before, places, gap_list = -1, order.tolist(), gaps.tolist()
        runs = (starts, stops, shards[starts], offsets[starts], ends[stops - 1])
        for start, stop, shard, first, end in zip(*(each.tolist() for each in runs), strict=True):
            if shard != before:
                before, file = shard, self._handles.of(shard)
            run: list[memoryview] = []
            for place, gap in zip(places[start:stop], gap_list[start:stop], strict=True):
                if gap:
                    run.append(self._gap[:gap])
                run += buffers[place]
            if os.preadv(file, run, first) != end - first:
                self._read_apart(shard, file, first, run)

    def _read_apart(self, shard: int, file: int, first: int, run: list[memoryview]) -> None:
        """One call gives 2 GiB at most."""
        for buffer in run:
            while buffer:
                count = os.preadv(file, [buffer], first)
                if not count:
                    raise CorruptFileError(f"{self._index.shards[shard]} is cut short")
                buffer, first = buffer[count:], first + count
