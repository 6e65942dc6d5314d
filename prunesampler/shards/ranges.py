"""Reading at offsets: few files open, neighbours in one read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from prunesampler.errors import CorruptFileError
from prunesampler.shards.handles import Handles
from prunesampler.shards.index import ShardIndex
from prunesampler.shards.locations import Locations
from prunesampler.shards.packing import BLOCK, check_header
from prunesampler.shards.parts import read_part
from prunesampler.shards.urls import local_path
from prunesampler.tables.columns import Int64s

__all__ = ["Range", "RangeReader", "merged_ranges"]

_LOCAL_GAP, _REMOTE_GAP = 16 << 10, 1 << 20
_LONGEST = 8 << 20
_CONNECTIONS = 16


class Range(NamedTuple):
    """Bytes that are read at once.

    Attributes:
        shard: number of the shard.
        first, end: offsets of the first byte, and of the one after the last.
        wanted: positions, in the request, of what lies in it.
    """

    shard: int
    first: int
    end: int
    wanted: list[int]


def merged_ranges(shards: Int64s, firsts: Int64s, ends: Int64s, gap: int, longest: int = _LONGEST) -> list[Range]:
    """Ranges that cover what is wanted, in the order of shards and offsets.

    Args:
        shards, firsts, ends: (W,) int64, what is wanted.
        gap: bytes between two wanted ones that are rather read than left out.
        longest: neighbours are not joined to more than so many bytes.

    >>> merged_ranges(np.array([1, 0, 1]), np.array([50, 0, 0]), np.array([60, 9, 40]), gap=10)
    [Range(shard=0, first=0, end=9, wanted=[1]), Range(shard=1, first=0, end=60, wanted=[2, 0])]
    """
    ranges: list[Range] = []
    order = np.lexsort((firsts, shards)).tolist()
    for place in order:
        shard, first, end = int(shards[place]), int(firsts[place]), int(ends[place])
        last = ranges[-1] if ranges else None
        if last and last.shard == shard and first <= last.end + gap and max(end, last.end) - last.first <= longest:
            ranges[-1] = Range(shard, last.first, max(end, last.end), [*last.wanted, place])
        else:
            ranges.append(Range(shard, first, end, [place]))
    return ranges


class RangeReader:
    """The contents of files in seekable shards. Usable after a fork; not by several threads at once.

    Args:
        index: of the shards.
        open_files: local files that stay open, at least 1.
    """

    def __init__(self, index: ShardIndex, open_files: int) -> None:
        self._index, self._handles = index, Handles(index, open_files)

    def close(self) -> None:
        """Close all files."""
        self._handles.close()

    def fetch(self, locations: Locations, places: Int64s) -> list[list[bytes]]:
        """The files of some rows.

        Args:
            locations: of rows in seekable shards.
            places: (P,) positions in ``locations``, in any order.

        Returns:
            In the order of ``places``, the contents of each row's files.

        Raises:
            OSError: a shard cannot be read.
            MismatchError: a shard has changed since it was indexed.
            CorruptFileError: a shard is cut short.
            UnsupportedError: a server does not give parts of files.
        """
        lasts = locations.starts[places + 1] - 1
        shards, firsts = locations.shards[places].astype(np.int64), locations.offsets[locations.starts[places]] - BLOCK
        parts = self.read(shards, firsts, locations.offsets[lasts] + locations.sizes[lasts])
        return [
            _files(self._index.shards[shard], locations, place, part, first)
            for shard, place, part, first in zip(shards.tolist(), places.tolist(), parts, firsts.tolist(), strict=True)
        ]

    def read(self, shards: Int64s, firsts: Int64s, ends: Int64s) -> list[memoryview]:
        """Bytes of seekable shards, in the order that they are asked for in.

        Args:
            shards, firsts, ends: (W,) int64, number of the shard and what is wanted of it.

        Raises:
            OSError, MismatchError, CorruptFileError, UnsupportedError: as of :meth:`fetch`.
        """
        records, found = self._index.records, [memoryview(b"")] * len(shards)
        local = np.array([local_path(records[shard].url) is not None for shard in shards.tolist()], bool)
        for mine, gap, read in ((local, _LOCAL_GAP, self._read_local), (~local, _REMOTE_GAP, self._read_remote)):
            (chosen,) = np.nonzero(mine)
            if not len(chosen):
                continue
            ranges = merged_ranges(shards[chosen], firsts[chosen], ends[chosen], gap)
            for range_, data in zip(ranges, read(ranges), strict=True):
                if len(data) != range_.end - range_.first:
                    raise CorruptFileError(f"{records[range_.shard].url} is cut short")
                for wanted in chosen[range_.wanted].tolist():
                    found[wanted] = memoryview(data)[firsts[wanted] - range_.first : ends[wanted] - range_.first]
        return found

    def samples(self, locations: Locations, places: Int64s) -> list[dict[str, Any]]:
        """What :meth:`fetch` reads, as raw webdataset gives it: ``__key__``, ``__url__``, extension in lower case."""
        samples = []
        for place, contents in zip(places.tolist(), self.fetch(locations, places), strict=True):
            sample: dict[str, Any] = {
                "__key__": locations.keys[place].as_py(),
                "__url__": self._index.shards[locations.shards[place]],
            }
            for file, content in zip(locations.files(place), contents, strict=True):
                sample[locations.extensions[locations.codes[file]].lower()] = content
            samples.append(sample)
        return samples

    def _read_local(self, ranges: Sequence[Range]) -> list[bytes]:
        return [_pread(self._handles.of(range_.shard), range_.first, range_.end) for range_ in ranges]

    def _read_remote(self, ranges: Sequence[Range]) -> list[bytes]:
        records = self._index.records
        with ThreadPoolExecutor(min(_CONNECTIONS, len(ranges))) as pool:
            return list(pool.map(lambda range_: read_part(records[range_.shard], range_.first, range_.end), ranges))


def _files(url: str, locations: Locations, place: int, data: memoryview, base: int) -> list[bytes]:
    first, end = locations.starts[place : place + 2].tolist()
    key = locations.keys[place].as_py()
    contents = []
    for code, offset, size in zip(
        locations.codes[first:end].tolist(),
        locations.offsets[first:end].tolist(),
        locations.sizes[first:end].tolist(),
        strict=True,
    ):
        start = offset - base
        check_header(url, data[start - BLOCK : start], f"{key}.{locations.extensions[code]}", size)
        contents.append(bytes(data[start : start + size]))
    return contents


def _pread(file: int, first: int, end: int) -> bytes:
    data = os.pread(file, end - first, first)
    while len(data) < end - first and (more := os.pread(file, end - first - len(data), first + len(data))):
        data += more  # one call gives 2 GiB at most
    return data
