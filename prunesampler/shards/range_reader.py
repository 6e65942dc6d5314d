"""Samples read at their offsets: few files open, neighbours in one read."""

from __future__ import annotations

import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prunesampler.errors import ArgumentError, CorruptFileError
from prunesampler.shards.http_file import check_size
from prunesampler.shards.index import ShardIndex
from prunesampler.shards.sources import read_at, read_range
from prunesampler.shards.tar import BLOCK, check_header
from prunesampler.shards.urls import local_path
from prunesampler.tables.atomic import check_regular_file
from prunesampler.tables.columns import Int64s

_LOCAL_GAP, _REMOTE_GAP = 16 << 10, 1 << 20
_CONNECTIONS = 16


class Locations:
    """Where the files of (K,) ascending rows, or of all, lie: about 40 bytes a row, 20 a file, and the keys."""

    def __init__(self, index: ShardIndex, rows: Int64s | None = None) -> None:
        self._all = rows is None
        self.rows = np.arange(len(index)) if rows is None else rows
        table = index.take(self.rows)
        self.shards = table["shard"].to_numpy()  # (K,) int32 numbers
        self.keys, members = table["key"].combine_chunks(), table["members"].combine_chunks()
        files = members.flatten()
        # (K + 1,): row rows[i] has the files from starts[i] to below the next
        self.starts = members.offsets.to_numpy().astype(np.int64) - members.offsets[0].as_py()
        encoded = files.field("extension").dictionary_encode()
        self.extensions: list[str] = encoded.dictionary.to_pylist()
        self.codes = encoded.indices.to_numpy()  # (M,) int32 positions in extensions
        self.offsets, self.sizes = files.field("offset").to_numpy(), files.field("size").to_numpy()

    def __len__(self) -> int:
        return len(self.rows)

    def places(self, rows: Int64s) -> Int64s:
        """The positions of rows, in any order; ArgumentError for one that is not held."""
        if self._all:
            return rows
        places = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        missing = self.rows[places] != rows
        if missing.any():
            rule = "must be of the coreset: give the loader sampler=PrunedSampler(dataset, coreset=coreset)"
            raise ArgumentError("row", rule, int(rows[missing][0]))
        return places

    def files_of(self, places: Int64s) -> tuple[Int64s, Int64s]:
        """The files of several rows: where those of each begin, (P + 1,), and their numbers, (M,)."""
        counts = self.starts[places + 1] - self.starts[places]
        starts = np.append(0, np.cumsum(counts))
        return starts, np.arange(starts[-1]) + np.repeat(self.starts[places] - starts[:-1], counts)

    def named(self, keys: pa.LargeStringArray, files: Int64s) -> pa.LargeStringArray:
        """(M,) names of files, if these are the keys of their rows."""
        extensions = pa.array(self.extensions, pa.large_string()).take(pa.array(self.codes[files]))
        return pc.binary_join_element_wise(keys, extensions, pa.scalar(".", pa.large_string()))


class ByteRange(NamedTuple):
    """Bytes of a shard from ``first`` to below ``end``, and the positions in the request of what lies in it."""

    shard: int
    first: int
    end: int
    wanted: list[int]


def merged_ranges(
    shards: Int64s, firsts: Int64s, ends: Int64s, gaps: Int64s, longest: int = 8 << 20
) -> list[ByteRange]:
    """Ranges that cover (W,) wanted ones, in the order of shards and offsets.

    One is joined to the one before it if at most ``gaps`` bytes lie between them, and both have at most ``longest``.
    """
    ranges: list[ByteRange] = []
    order = np.lexsort((firsts, shards))
    columns = (column[order].tolist() for column in (shards, firsts, ends, gaps))
    for place, shard, first, end, gap in zip(order.tolist(), *columns, strict=True):
        last = ranges[-1] if ranges else None
        if last and last.shard == shard and first <= last.end + gap and max(end, last.end) - last.first <= longest:
            last.wanted.append(place)
            ranges[-1] = last._replace(end=max(end, last.end))
        else:
            ranges.append(ByteRange(shard, first, end, [place]))
    return ranges


class RangeReader:
    """Reads seekable shards at offsets. Usable after a fork; not by several threads at once.

    Args:
        index: of the shards.
        open_files: how many stay open, at most.
        remote_gap: bytes that are read too, rather than making another request.
    """

    def __init__(self, index: ShardIndex, open_files: int, remote_gap: int = _REMOTE_GAP) -> None:
        self._index, self._limit, self._remote_gap = index, open_files, remote_gap
        self._files: OrderedDict[int, int] = OrderedDict()  # shard → descriptor, the one used last at the end

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        while self._files:
            os.close(self._files.popitem()[1])

    def hold(self, shard: int, file: int) -> None:
        """Read a shard from this descriptor, as long as it is among those used last."""
        self.drop(shard)
        while len(self._files) >= self._limit:
            os.close(self._files.popitem(last=False)[1])
        self._files[shard] = file

    def drop(self, shard: int) -> None:
        """Close the descriptor that a shard is read from, if any."""
        if shard in self._files:
            os.close(self._files.pop(shard))

    def __contains__(self, shard: int) -> bool:
        return shard in self._files

    def read(self, shards: Int64s, firsts: Int64s, ends: Int64s) -> list[memoryview]:
        """Bytes of (W,) shards from ``firsts`` to below ``ends``, in the order in which they are asked for."""
        urls = {number: self._index.shards[number] for number in np.unique(shards).tolist()}
        remote = {number for number, url in urls.items() if number not in self and local_path(url) is None}
        gaps = [self._remote_gap if number in remote else _LOCAL_GAP for number in shards.tolist()]
        ranges, found = merged_ranges(shards, firsts, ends, np.array(gaps)), [memoryview(b"")] * len(shards)
        starts, stops = firsts.tolist(), ends.tolist()
        apart = [part for part in ranges if part.shard in remote]
        with ThreadPoolExecutor(_CONNECTIONS) if apart else nullcontext() as pool:
            fetched = iter(()) if pool is None else pool.map(self._fetch, apart)
            for part in ranges:
                view = memoryview(next(fetched) if part.shard in remote else self._read_file(part))
                if len(view) != part.end - part.first:
                    raise CorruptFileError(f"{urls[part.shard]} is cut short")
                for wanted in part.wanted:
                    found[wanted] = view[starts[wanted] - part.first : stops[wanted] - part.first]
        return found

    def samples(self, locations: Locations, places: Int64s) -> list[dict[str, Any]]:
        """Samples as raw webdataset gives them: ``__key__``, ``__url__``, extension in lower case → bytes.

        ``places`` (P,) are positions in ``locations``, in any order, of rows in seekable shards.
        """
        starts, ends = locations.starts[places], locations.starts[places + 1]
        firsts = locations.offsets[starts] - BLOCK
        stops = locations.offsets[ends - 1] + locations.sizes[ends - 1]
        shards = locations.shards[places].astype(np.int64)
        parts, samples = self.read(shards, firsts, stops), []
        columns = (places, shards, starts, ends, firsts)
        for data, place, shard, start, end, first in zip(parts, *(column.tolist() for column in columns), strict=True):
            url, key = self._index.shards[shard], locations.keys[place].as_py()
            sample = {"__key__": key, "__url__": url}
            files = (locations.codes, locations.offsets, locations.sizes)
            for code, offset, size in zip(*(column[start:end].tolist() for column in files), strict=True):
                extension, at = locations.extensions[code], offset - first
                check_header(url, bytes(data[at - BLOCK : at]), f"{key}.{extension}", size)
                if extension.lower() in sample:
                    raise CorruptFileError(f"{url}: sample {key!r} has two files {extension.lower()!r}")
                sample[extension.lower()] = bytes(data[at : at + size])
            samples.append(sample)
        return samples

    def _fetch(self, part: ByteRange) -> bytes:
        record = self._index.records[part.shard]
        return read_range(record.url, part.first, part.end, record.size)

    def _read_file(self, part: ByteRange) -> bytes:
        if part.shard not in self:
            record = self._index.records[part.shard]
            path = local_path(record.url)
            assert path is not None
            check_regular_file(path)
            check_size(record.url, record.size, os.stat(path).st_size)
            self.hold(part.shard, os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        self._files.move_to_end(part.shard)
        return read_at(self._files[part.shard], part.first, part.end - part.first)
