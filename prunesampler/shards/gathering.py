"""Blocks of local tars, gathered: neighbours are read by one call, and all put in their places at once."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from prunesampler.errors import CorruptFileError
from prunesampler.shards.handles import Handles
from prunesampler.shards.index import ShardIndex
from prunesampler.shards.packing import BLOCK, padded
from prunesampler.tables.columns import Int64s

__all__ = ["GatherReader"]

_GAP = 32 << 10
_LARGE = 32 << 10


class GatherReader:
    """Fills a buffer from local shards. Not for several threads at once.

    Args:
        index: of the shards.
        open_files: that stay open, at least 1.
    """

    def __init__(self, index: ShardIndex, open_files: int) -> None:
        self._index, self._handles = index, Handles(index, open_files)
        self._read = np.empty((0, BLOCK), np.uint8)

    def close(self) -> None:
        """Close all files."""
        self._handles.close()

    def fill(self, shards: Int64s, offsets: Int64s, sizes: Int64s, starts: Int64s, room: npt.NDArray[np.uint8]) -> None:
        """Read runs of bytes that begin with a block, in the shard and where they are wanted.

        Args:
            shards, offsets, sizes: (W,) int64, what is wanted, in any order; no byte twice.
            starts: (W,) int64, where in ``room`` each begins.
            room: (R, 512) uint8; what else is in it, also behind a run, is undefined afterwards.

        Raises:
            OSError: a shard cannot be read.
            MismatchError: a shard has another size than when it was indexed.
            CorruptFileError: a shard is cut short.
        """
        if not len(shards):
            return
        order = np.lexsort((offsets, shards))
        shards, offsets, sizes, starts = (each[order] for each in (shards, offsets, sizes, starts))
        if sizes.mean() >= _LARGE:  # then a call for each costs less than to copy once more
            self._read_all(shards, offsets, offsets + sizes, starts, room)
            return
        ends = offsets + padded(sizes)
        apart = np.append(True, (np.diff(shards) != 0) | (ends[:-1] < offsets[1:] - _GAP))
        (firsts,) = np.nonzero(apart)
        lasts = np.append(firsts[1:], len(order)) - 1
        lengths = ends[lasts] - offsets[firsts]
        stops = np.cumsum(lengths)
        if self._read.size < stops[-1]:
            self._read = np.empty((int(stops[-1]) * 5 // 4 // BLOCK, BLOCK), np.uint8)
        self._read_all(shards[firsts], offsets[firsts], offsets[lasts] + sizes[lasts], stops - lengths, self._read)
        moved = np.repeat(stops - ends[lasts], lasts - firsts + 1)
        counts = padded(sizes) // BLOCK
        steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        source = np.zeros(len(room), np.int64)
        source[np.repeat(starts // BLOCK, counts) + steps] = np.repeat((offsets + moved) // BLOCK, counts) + steps
        np.take(self._read, source, axis=0, out=room, mode="clip")

    def _read_all(
        self, shards: Int64s, firsts: Int64s, ends: Int64s, starts: Int64s, blocks: npt.NDArray[np.uint8]
    ) -> None:
        """Read each of these to its start."""
        room, before = blocks.reshape(-1).data, -1
        parts = zip(*(each.tolist() for each in (shards, firsts, ends, starts)), strict=True)
        for shard, first, end, start in parts:
            if shard != before:
                before, file = shard, self._handles.of(shard)
            wanted = end - first
            read = os.preadv(file, [room[start : start + wanted]], first)
            while read < wanted:  # one call gives 2 GiB at most
                more = os.preadv(file, [room[start + read : start + wanted]], first + read)
                if not more:
                    raise CorruptFileError(f"{self._index.shards[shard]} is cut short")
                read += more
