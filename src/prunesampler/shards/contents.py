"""What is in the files of samples, in whatever kind of shard they lie."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from prunesampler.columns import Int64s
from prunesampler.errors import CorruptFileError
from prunesampler.shards.index import ShardIndex
from prunesampler.shards.locations import Locations
from prunesampler.shards.packing import BLOCK, check_header
from prunesampler.shards.ranges import RangeReader
from prunesampler.shards.sources import FileSource, StreamSource, open_source

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
        self._open = ExitStack()
        self._streamed: tuple[int, FileSource | StreamSource] | None = None

    def __enter__(self) -> Contents:
        return self

    def __exit__(self, *error: object) -> None:
        self._reader.close()
        self._open.close()

    def of(self, places: Int64s) -> list[list[bytes]]:
        """The contents of each sample's files, in the order of ``places``.

        Args:
            places: (P,) positions in ``locations``; those in shards that are streamed ascend, from call to call too.

        Raises:
            OSError: a shard cannot be read.
            MismatchError: a shard has changed since it was indexed.
            CorruptFileError: a shard is cut short or damaged.
        """
        shards = self._locations.shards[places]
        seekable = np.array([self._index.records[shard].seekable for shard in shards.tolist()], bool)
        (direct,) = np.nonzero(seekable)
        files: list[list[bytes]] = [[]] * len(places)
        for at, contents in zip(direct.tolist(), self._reader.fetch(self._locations, places[direct]), strict=True):
            files[at] = contents
        for at in np.flatnonzero(~seekable).tolist():
            files[at] = self._stream(int(shards[at]), int(places[at]))
        return files

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
