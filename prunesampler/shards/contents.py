"""What is in the files of samples, in whatever kind of shard they lie."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt

from prunesampler.errors import CorruptFileError
from prunesampler.shards.gathering import GatherReader
from prunesampler.shards.index import ShardIndex
from prunesampler.shards.locations import Locations
from prunesampler.shards.packing import BLOCK, check_header, check_headers
from prunesampler.shards.ranges import RangeReader
from prunesampler.shards.sources import FileSource, StreamSource, open_source
from prunesampler.shards.urls import local_path
from prunesampler.tables.columns import Int64s

__all__ = ["Contents"]

_OPEN_FILES = 32


class Contents:
    """The files of samples: read at their offsets, or streamed where that cannot be. Not for several threads at once.

    Args:
        index: of the shards.
        locations: of samples in them.
    """

    def __init__(self, index: ShardIndex, locations: Locations) -> None:
        self._index, self._locations = index, locations
        self._reader = RangeReader(index, _OPEN_FILES)
        self._gather = GatherReader(index, _OPEN_FILES)
        self._open = ExitStack()
        self._streamed: tuple[int, FileSource | StreamSource] | None = None

    def __enter__(self) -> Contents:
        return self

    def __exit__(self, *error: object) -> None:
        self._reader.close()
        self._gather.close()
        self._open.close()

    def put(self, places: Int64s, room: npt.NDArray[np.uint8], starts: Int64s) -> None:
        """Put the contents of samples where they are wanted.

        Args:
            places: (P,) positions in ``locations``; those in shards that are streamed ascend, from call to call too.
            room: uint8. Each file takes whole blocks of it, and the block before them; what is left of these is
                undefined.
            starts: for each file of each of them, in this order, where its first byte comes to stand.

        Raises:
            OSError: a shard cannot be read.
            MismatchError: a shard has changed since it was indexed.
            CorruptFileError: a shard is cut short or damaged.
        """
        held = self._locations
        bounds, files = held.files_of(places)
        numbers, inverse = np.unique(held.shards[places], return_inverse=True)
        local = np.array([self._is_local(shard) for shard in numbers.tolist()])[inverse]
        owners = np.repeat(np.arange(len(places)), np.diff(bounds))
        (direct,) = np.nonzero(local[owners])
        self._put_local(places[owners[direct]], files[direct], room, starts[direct])
        others = np.flatnonzero(~local)
        for sample, contents in zip(others.tolist(), self._apart(places[others]), strict=True):
            for start, content in zip(starts[bounds[sample] : bounds[sample + 1]].tolist(), contents, strict=True):
                room[start : start + len(content)] = np.frombuffer(content, np.uint8)

    def _is_local(self, shard: int) -> bool:
        return self._index.records[shard].seekable and local_path(self._index.shards[shard]) is not None

    def _put_local(self, places: Int64s, files: Int64s, room: npt.NDArray[np.uint8], starts: Int64s) -> None:
        held, shards = self._locations, self._locations.shards[places]
        sizes, blocks = held.sizes[files], room.reshape(-1, BLOCK)
        self._gather.fill(shards, held.offsets[files] - BLOCK, BLOCK + sizes, starts - BLOCK, blocks)
        names = held.names(places, files)
        check_headers(self._index.shards, shards, blocks[starts // BLOCK - 1], names, sizes)

    def _apart(self, places: Int64s) -> Iterator[list[bytes]]:
        """Of what is no local tar, the contents of each sample's files."""
        shards = self._locations.shards[places].tolist()
        ranged = np.array([self._index.records[shard].seekable for shard in shards], bool)
        fetched = iter(self._reader.fetch(self._locations, places[ranged]))
        for shard, place, at_once in zip(shards, places.tolist(), ranged.tolist(), strict=True):
            yield next(fetched) if at_once else self._stream(shard, place)

    def _stream(self, shard: int, place: int) -> list[bytes]:
        url = self._index.shards[shard]
        if self._streamed is None or self._streamed[0] != shard:
            self._open.close()
            self._streamed = shard, self._open.enter_context(open_source(url))
        source, contents = self._streamed[1], []
        for file in self._locations.files(place):
            offset, size = int(self._locations.offsets[file]), int(self._locations.sizes[file])
            data = source.take(offset - BLOCK, BLOCK + size)
            if len(data) != BLOCK + size:
                raise CorruptFileError(f"{url} is cut short")
            check_header(url, data[:BLOCK], self._locations.name(place, file), size)
            contents.append(data[BLOCK:])
        return contents
