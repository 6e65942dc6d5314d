"""Local shards that are open, few at a time."""

from __future__ import annotations

import os
from collections import OrderedDict

from prunesampler.shards.index import ShardIndex
from prunesampler.shards.parts import check_size
from prunesampler.shards.urls import local_path

__all__ = ["Handles"]


class Handles:
    """Descriptors of local shards. Usable after a fork; not by several threads at once.

    Args:
        index: of the shards.
        limit: files that stay open, at least 1.
    """

    def __init__(self, index: ShardIndex, limit: int) -> None:
        self._index, self._limit = index, limit
        self._files: OrderedDict[int, int] = OrderedDict()
        self._process = os.getpid()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close all."""
        while self._files:
            os.close(self._files.popitem()[1])

    def of(self, number: int) -> int:
        """The descriptor of a shard, good until the next call.

        Raises:
            OSError: it cannot be opened.
            MismatchError: it has another size than when it was indexed.
        """
        if self._process != os.getpid():  # the parent's are its own
            self.close()
            self._process = os.getpid()
        file = self._files.get(number)
        if file is not None:
            self._files.move_to_end(number)
            return file
        while len(self._files) >= self._limit:
            os.close(self._files.popitem(last=False)[1])
        record = self._index.records[number]
        path = local_path(record.url)
        assert path is not None
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            check_size(record, os.fstat(file).st_size)
        except BaseException:
            os.close(file)
            raise
        self._files[number] = file
        return file
