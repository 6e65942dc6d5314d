"""Which kept samples of which shards fall to one worker of one rank."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from prunesampler.errors import StateError
from prunesampler.shards.index import ShardIndex
from prunesampler.tables.columns import Int64s

__all__ = ["Portion", "Remainder", "Slice", "portion"]

Remainder = Literal["pad", "drop", "exact"]


class Slice(NamedTuple):
    """Kept samples of one shard, by their position among its kept ones: from ``start`` to below ``stop``."""

    shard: int
    start: int
    stop: int


def portion(
    shards: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    *,
    rank: int = 0,
    num_replicas: int = 1,
    worker: int = 0,
    num_workers: int = 1,
    remainder: Remainder = "pad",
) -> list[Slice]:
    """The share of one worker: the kept samples, put in a row shard after shard, are cut into equal lengths.

    The ranks' lengths are equal, ``"pad"`` (the first samples come again at the end) or ``"drop"``, or they differ by
    one at most, ``"exact"``; those of the workers of a rank differ by one at most. So no sample is left out or comes
    twice but for the remainder, however few the shards are; a shard that is cut is read by two workers or more.

    Args:
        shards: (S,) int64 shard numbers, in the order in which they are put.
        counts: (S,) int64 kept samples in each, at least 0.

    Returns:
        Slices of at least one sample, disjoint.

    >>> two, five = np.array([0, 1]), np.array([3, 2])
    >>> [portion(two, five, rank=rank, num_replicas=2) for rank in (0, 1)]
    [[Slice(shard=0, start=0, stop=3)], [Slice(shard=1, start=0, stop=2), Slice(shard=0, start=0, stop=1)]]
    """
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    if remainder == "exact":
        first, last = total * rank // num_replicas, total * (rank + 1) // num_replicas
    else:
        length = total // num_replicas if remainder == "drop" else -(-total // num_replicas)
        first, last = rank * length, (rank + 1) * length
    length = last - first
    first, last = first + length * worker // num_workers, first + length * (worker + 1) // num_workers
    if first == last:
        return []
    turn = first // total * total
    pieces = [(first - turn, min(last - turn, total)), (0, last - turn - total)]
    slices = []
    for start, stop in pieces:
        for i in range(int(np.searchsorted(ends, start, "right")), len(shards)):
            begin = int(ends[i] - counts[i])
            if begin >= stop:
                break
            low, high = max(start - begin, 0), min(stop - begin, int(counts[i]))
            if low < high:
                slices.append(Slice(int(shards[i]), low, high))
    return slices


class Portion:
    """What one worker is to deliver in one pass; memory for a shard is taken when its first sample comes."""

    def __init__(self, index: ShardIndex, bits: npt.NDArray[np.uint8], slices: list[Slice], count: int | None) -> None:
        self.slices = slices
        self._index, self._bits, self._count, self._delivered = index, bits, count, 0
        self._slices: dict[int, list[Slice]] = {}
        for one in slices:
            self._slices.setdefault(one.shard, []).append(one)
        self._masks: dict[int, npt.NDArray[np.bool_]] = {}

    def __contains__(self, shard: int) -> bool:
        return shard in self._slices

    def takes(self, shard: int, row: int) -> bool:
        """Whether a sample falls to this worker, which counts it as delivered."""
        if shard not in self._slices:
            return False
        taken = bool(self._mask(shard)[row - int(self._index.first_rows[shard])])
        self._delivered += taken
        return taken

    def take(self, shard: int) -> Int64s:
        """The rows of a shard that fall to this worker, ascending; they count as delivered."""
        if shard not in self._slices:
            return np.zeros(0, np.int64)
        rows: Int64s = np.flatnonzero(self._mask(shard)) + self._index.first_rows[shard]
        self._delivered += len(rows)
        return rows

    def _mask(self, shard: int) -> npt.NDArray[np.bool_]:
        if shard in self._masks:
            return self._masks[shard]
        rows = self._index.rows_of(shard)
        around = np.unpackbits(self._bits[rows.start // 8 : rows.stop // 8 + 1], bitorder="little")
        kept = np.flatnonzero(around[rows.start % 8 :][: len(rows)])
        mask = np.zeros(len(rows), dtype=bool)
        for one in self._slices[shard]:
            mask[kept[one.start : one.stop]] = True
        self._masks[shard] = mask
        return mask

    def check(self) -> None:
        """At the end of a pass.

        Raises:
            StateError: not all has come.
        """
        if self._count is not None and self._delivered != self._count:
            raise StateError(
                f"{self._count} kept samples fell to this worker and {self._delivered} came: shards were split once "
                "more behind kept.shards (leave out split_by_node and split_by_worker, and give WebDataset "
                "workersplitter=None), or a handler skipped some that could not be read"
            )
