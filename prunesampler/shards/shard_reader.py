"""Samples of local and remote shards in one process, which fetches ahead what the plan says is read next."""

from __future__ import annotations

import functools
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info

from prunesampler.errors import CorruptFileError, MismatchError, PruneSamplerWarning, UnsupportedError, WriteError
from prunesampler.shards.index import ShardIndex
from prunesampler.shards.range_reader import Locations, RangeReader
from prunesampler.shards.read_ahead import ReadAhead
from prunesampler.shards.read_plan import ReadPlan
from prunesampler.shards.shard_cache import Added, ShardCache
from prunesampler.shards.shard_fetch import Fetch, fetch_ranges, kept_ranges, last_byte, whole_shard
from prunesampler.shards.urls import local_path
from prunesampler.tables.columns import Int64s

_CONNECTIONS = 8  # over which the workers of a loader fetch ahead
_DIRECT_GAP = 64 << 10
_BROKEN = (MismatchError, CorruptFileError)

_Found = list[dict[str, Any] | None]


class ShardReader:
    """Reads rows, each shard from the file that it is, from the cache, or where that has no room from its source.

    Args:
        index: of the shards.
        plan: what is read next.
        cache: for remote shards; None where all are local.
        ahead: shards that are fetched after the present block.
        ranges_below: the share of a shard's bytes below which only kept ranges are fetched.
        skip: leave out the rows of shards that cannot be read.
    """

    def __init__(
        self,
        index: ShardIndex,
        plan: ReadPlan,
        cache: ShardCache | None,
        *,
        ahead: int,
        ranges_below: float,
        skip: bool,
    ) -> None:
        self._index, self._plan, self._cache, self._skip = index, plan, cache, skip
        self._next, self._below = ahead, ranges_below
        block = plan.block * plan.nodes
        self._files = RangeReader(index, open_files=block + 1)
        self._held: dict[int, Fetch] = {}  # what the open file of a shard has
        self._table = functools.lru_cache(2 * block + 2)(self._read_table)
        self._reading = threading.Lock()
        workers = get_worker_info()
        threads = max(1, _CONNECTIONS // (1 if workers is None else workers.num_workers))
        self._ahead = ReadAhead(self._fetch_ahead, threads)
        self._warm = False  # whether a batch was read
        self._ranges = True  # whether servers give any, as far as is known
        self._refetched: set[str] = set()
        self._warned: set[object] = set()

    def read(self, rows: Int64s) -> tuple[Int64s, list[dict[str, Any]]]:
        """The rows of (P,) that can be read, all or an error unless some are to be left out, and their raw samples.

        Where none of them can be read, rows of the shard that is read next take their place.

        Raises:
            OSError: a shard is missing, or cannot be read.
            MismatchError: a shard has changed.
            CorruptFileError: a shard is damaged or cut short; or no shard can be read.
        """
        shards = np.searchsorted(self._index.first_rows, rows, "right") - 1
        needed = np.unique(shards)
        if self._cache is not None:
            self._fetch_next(needed)
        places = {int(shard): np.flatnonzero(shards == shard) for shard in needed if not self._plan.skipped[shard]}
        found: _Found = [None] * len(rows)
        missing = [shard for shard, at in places.items() if not self._tried(shard, at, rows, found)]
        if missing:
            left = {shard: places[shard] for shard in missing}
            try:
                self._read_missing(left, rows, found)
            except UnsupportedError:
                if not self._ranges:
                    raise
                self._ranges = False
                self._read_missing(left, rows, found)
        self._warm = True
        there = [sample for sample in found if sample is not None]
        if len(there) == len(rows):
            return rows, there
        if there:
            return rows[[sample is not None for sample in found]], there
        return self.read(self._instead(int(needed[0]), len(rows)))

    def _instead(self, shard: int, count: int) -> Int64s:
        for other in self._plan.after(shard):
            if not self._plan.skipped[other]:
                rows: Int64s = np.flatnonzero(self._plan.kept(other))[:count] + self._index.first_rows[other]
                return rows
        raise CorruptFileError(f"none of the shards that are kept can be read, {self._index.shards[shard]} among them")

    def _tried(self, shard: int, at: Int64s, rows: Int64s, found: _Found) -> bool:
        """Read the rows of one shard; whether that is done, with or without success."""
        try:
            return self._read_held(shard, at, rows, found)
        except (OSError, *_BROKEN) as error:
            self._leave_out(shard, error)
            return True

    def _read_held(self, shard: int, at: Int64s, rows: Int64s, found: _Found) -> bool:
        """Read the rows of one shard, unless its file is not here."""
        url = self._index.shards[shard]
        within = rows[at] - self._index.first_rows[shard]
        fetch = None
        if local_path(url) is None:
            fetch = self._open(shard, within)
            if fetch is None:
                return False
        try:
            samples = self._files.samples(self._locations(shard), within)
        except _BROKEN:
            if fetch is None or self._cache is None or fetch.name in self._refetched:
                raise
            self._refetched.add(fetch.name)  # it may be the copy that is damaged
            self._files.drop(shard)
            self._cache.remove(fetch.name)
            return False
        for place, sample in zip(at.tolist(), samples, strict=True):
            found[place] = sample
        return True

    def _open(self, shard: int, within: Int64s) -> Fetch | None:
        """What is held of a remote shard, open, if it has these of its rows."""
        assert self._cache is not None
        held = self._held.get(shard) if shard in self._files else None
        if held is not None and _covers(held, within):
            return held
        for fetch in self._fetches(shard):
            if _covers(fetch, within) and (file := self._cache.open(fetch.name)) is not None:
                self._files.hold(shard, file)
                self._held = {each: what for each, what in self._held.items() if each in self._files}
                self._held[shard] = fetch
                return fetch
        return None

    def _fetches(self, shard: int) -> list[Fetch]:
        """All of a shard, and what is to be fetched of it if that is not here; perhaps the same."""
        record = self._index.records[shard]
        whole = whole_shard(record, record.size if record.size >= 0 else last_byte(self._locations(shard)))
        kept = self._plan.kept(shard)
        if self._plan.keeps_all or not kept.any() or not self._ranges:
            return [whole]
        part = kept_ranges(record, self._locations(shard), kept, self._below)
        return [whole] if part is None else [whole, part]

    def _read_missing(self, places: dict[int, Int64s], rows: Int64s, found: _Found) -> None:
        """Read rows of shards that are not here: fetch these, or where there is no room for them the rows alone."""
        apart = []
        if not self._warm and self._ranges:  # the first batch does not wait for whole shards
            apart = [shard for shard in places if self._fetches(shard)[-1].rows is None]
        waited = [shard for shard in places if shard not in apart]
        if waited:
            with ThreadPoolExecutor(min(_CONNECTIONS, len(waited))) as pool:
                outcomes = list(pool.map(self._fetch_now, waited))
            for shard, outcome in zip(waited, outcomes, strict=True):
                if isinstance(outcome, Exception):
                    self._leave_out(shard, outcome)
                elif outcome != "here" or not self._tried(shard, places[shard], rows, found):
                    apart.append(shard)
        if apart and self._read_directly(apart, places, rows, found) is not None:
            for shard in apart:  # which of them it is
                error = self._read_directly([shard], places, rows, found)
                if error is not None:
                    self._leave_out(shard, error)

    def _read_directly(
        self, shards: list[int], places: dict[int, Int64s], rows: Int64s, found: _Found
    ) -> Exception | None:
        """Read rows from the shards themselves; returns what stands against it."""
        at = np.concatenate([places[shard] for shard in shards])
        wanted, inverse = np.unique(rows[at], return_inverse=True)
        with self._reading:
            locations = Locations(self._index, wanted)
        try:
            samples = RangeReader(self._index, 1, _DIRECT_GAP).samples(locations, np.arange(len(wanted)))
        except (OSError, *_BROKEN) as error:
            return error
        for place, number in zip(at.tolist(), inverse.tolist(), strict=True):
            found[place] = dict(samples[number])
        return None

    def _fetch_now(self, shard: int) -> Added | Exception:
        try:
            return self._add(shard, wait=True)
        except WriteError as error:
            self._warn("full", f"{error}: rows are read from the shards themselves, one by one, which is slow")
            return "no room"
        except (OSError, *_BROKEN) as error:
            return error

    def _fetch_ahead(self, shard: int) -> bool:
        return bool(self._plan.skipped[shard]) or self._add(shard, wait=False) != "no room"

    def _add(self, shard: int, *, wait: bool) -> Added:
        assert self._cache is not None
        fetches = self._fetches(shard)
        if any(self._cache.touch(fetch.name) for fetch in fetches):
            return "here"
        record, fetch = self._index.records[shard], fetches[-1]
        write = functools.partial(fetch_ranges, record, fetch.ranges)
        return self._cache.add(fetch.name, fetch.disk_bytes, write, wait=wait)

    def _fetch_next(self, needed: Int64s) -> None:
        """Have the threads fetch what is read next, as far as the cache has room for it."""
        assert self._cache is not None
        upcoming = self._plan.upcoming(needed, self._next)
        if upcoming is None:
            upcoming = [int(shard) for shard in needed]
            self._warn(
                "order",
                f"a batch of rows from {len(needed)} remote shards, which are all fetched for it: give the loader "
                "sampler=dataset.sampler(), which reads a few shards at a time",
            )
        left, wanted = self._cache.limit, []
        for shard in upcoming:
            left -= max(self._index.records[shard].size, 0)
            if left < 0:
                break
            if local_path(self._index.shards[shard]) is None:
                wanted.append(shard)
        self._ahead.want(wanted)

    def _locations(self, shard: int) -> Locations:
        with self._reading:  # the index's file is read by one thread at a time
            return self._table(shard)

    def _read_table(self, shard: int) -> Locations:
        rows = self._index.rows_of(shard)
        return Locations(self._index, np.arange(rows.start, rows.stop))

    def _leave_out(self, shard: int, error: Exception) -> None:
        if not self._skip:
            raise error
        self._plan.skipped[shard] = 1
        number = int(self._plan.kept(shard).sum())
        self._warn(shard, f"{number} samples are left out, as {self._index.shards[shard]} cannot be read: {error}")

    def _warn(self, what: object, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(message, PruneSamplerWarning, stacklevel=4)


def _covers(fetch: Fetch, within: Int64s) -> bool:
    return fetch.rows is None or bool(fetch.rows[within].all())
