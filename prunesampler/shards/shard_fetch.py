"""What of a shard is fetched: all of it, or where little is kept, the kept bytes alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from prunesampler.errors import CorruptFileError
from prunesampler.shards.index_file import Shard
from prunesampler.shards.range_reader import Locations
from prunesampler.shards.sources import check_unchanged, range_blocks
from prunesampler.shards.tar import BLOCK

_CONNECTIONS = 16  # for the ranges of one shard
_WASTE = 0.25  # bytes fetched between the kept ones, at most, as a share of these
_PAGE = 4096


class Fetch(NamedTuple):
    """What is fetched of a shard, and how it is called in a cache.

    Attributes:
        name: hexadecimal, of the shard as it was indexed and the ranges.
        ranges: (first, end) bytes, ascending and apart.
        rows: which of the shard's rows are in them; None: all.
    """

    name: str
    ranges: list[tuple[int, int]]
    rows: npt.NDArray[np.bool_] | None

    @property
    def disk_bytes(self) -> int:
        """On disk, in pages, with what a file system needs for many ranges."""
        pages = sum(-(-end // _PAGE) - first // _PAGE for first, end in self.ranges)
        return (pages + len(self.ranges) // 100 + 1) * _PAGE


def whole_shard(shard: Shard, end: int) -> Fetch:
    """All of a shard; ``end`` is that of its last file, for one of unknown size."""
    size = shard.size if shard.size >= 0 else end
    return Fetch(_name(shard, "all"), [(0, size)], None)


def kept_ranges(shard: Shard, locations: Locations, kept: npt.NDArray[np.bool_], below: float) -> Fetch | None:
    """The ranges of the kept rows of a shard; None where these are not below this share of its bytes.

    The smallest gaps are fetched too, so that there are as few requests as a quarter more bytes allows.

    Args:
        shard: as it was indexed.
        locations: of all rows of the shard.
        kept: (n,) which of these rows are kept.
        below: in [0, 1].
    """
    places = np.flatnonzero(kept)
    firsts = locations.offsets[locations.starts[places]] - BLOCK
    last = locations.starts[places + 1] - 1
    ends = locations.offsets[last] + locations.sizes[last]
    wanted = int((ends - firsts).sum())
    if wanted >= below * (shard.size if shard.size >= 0 else last_byte(locations)):
        return None
    gaps = np.maximum(firsts[1:] - ends[:-1], 0)
    order = np.argsort(gaps, kind="stable")
    open_ = np.ones(len(gaps), bool)
    open_[order[np.cumsum(gaps[order]) <= _WASTE * wanted]] = False
    apart = np.flatnonzero(open_)
    starts, stops = firsts[np.append(0, apart + 1)].tolist(), ends[np.append(apart, len(ends) - 1)].tolist()
    ranges = list(zip(starts, stops, strict=True))
    return Fetch(_name(shard, str(ranges)), ranges, kept)


def last_byte(locations: Locations) -> int:
    """Where the last file of a shard's rows ends."""
    return int(locations.offsets[-1] + locations.sizes[-1])


def fetch_ranges(shard: Shard, ranges: list[tuple[int, int]], file: int) -> None:
    """Write ranges of a remote shard to the same places of a file, which has holes between them.

    Raises:
        OSError: the shard is not there, or cannot be read in several attempts; or the file cannot be written.
        MismatchError: it has another size than when it was indexed, or changes meanwhile.
        CorruptFileError: it ends too early.
    """
    check_unchanged(shard.url, shard.size)
    os.ftruncate(file, max(shard.size, ranges[-1][1]))
    versions: set[str | None] = set()

    def fetch(part: tuple[int, int]) -> None:
        at, end = part
        with closing(range_blocks(shard.url, at, end, shard.size, versions)) as blocks:
            for block in blocks:
                _write_at(file, block, at)
                at += len(block)
        if at != end:
            raise CorruptFileError(f"{shard.url} is cut short: it ends at byte {at}, before {end}")

    if len(ranges) == 1:
        fetch(ranges[0])
        return
    with ThreadPoolExecutor(min(_CONNECTIONS, len(ranges))) as pool:
        _finish(pool.map(fetch, ranges))


def _finish(results: Iterator[None]) -> None:
    for _ in results:
        pass


def _write_at(file: int, block: bytes | memoryview, offset: int) -> None:
    view = memoryview(block)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _name(shard: Shard, what: str) -> str:
    text = "\0".join((shard.url, str(shard.size), shard.digest, what))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]
