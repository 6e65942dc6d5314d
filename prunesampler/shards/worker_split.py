"""Which kept samples of which shards one worker of one rank delivers."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from prunesampler.errors import StateError
from prunesampler.shards.index import ShardIndex
from prunesampler.tables.columns import Int64s

Remainder = Literal["pad", "drop", "exact"]


class Slice(NamedTuple):
    """Kept samples of one shard, by their position among its kept ones: from ``start`` to below ``stop``."""

    shard: int
    start: int
    stop: int


def split_samples(
    shards: Int64s,
    counts: Int64s,
    *,
    rank: int = 0,
    num_replicas: int = 1,
    worker: int = 0,
    num_workers: int = 1,
    remainder: Remainder = "pad",
) -> list[Slice]:
    """The samples of one worker: the kept samples of all shards, one shard after the other, are cut into equal lengths.

    ``shards`` are (S,) numbers in the order of reading, ``counts`` (S,) their kept samples. With ``"pad"`` the first
    samples come again at the end; with ``"exact"`` lengths differ by at most one, as those of a rank's workers do.
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
    begins = ends - counts
    turn = first // total * total  # padding wraps around
    slices = []
    for start, stop in ((first - turn, min(last - turn, total)), (0, last - turn - total)):
        lows, highs = np.maximum(start, begins) - begins, np.minimum(stop, ends) - begins
        slices += [Slice(int(shards[i]), int(lows[i]), int(highs[i])) for i in np.flatnonzero(lows < highs)]
    return slices


class WorkerSamples:
    """What one worker delivers in one pass: ``slices`` of the kept rows, which are set in ``bits`` (little-endian)."""

    def __init__(self, index: ShardIndex, bits: npt.NDArray[np.uint8], slices: list[Slice], count: int | None) -> None:
        self.slices = slices
        self._index, self._bits, self._count, self._delivered = index, bits, count, 0
        self._slices: dict[int, list[Slice]] = {}
        for part in slices:
            self._slices.setdefault(part.shard, []).append(part)
        self._masks: dict[int, npt.NDArray[np.bool_]] = {}  # of a shard's rows, made when its first sample comes

    def __contains__(self, shard: int) -> bool:
        return shard in self._slices

    def takes(self, shard: int, row: int) -> bool:
        """Whether a sample is this worker's; if so, it counts as delivered."""
        taken = shard in self and bool(self._mask(shard)[row - int(self._index.first_rows[shard])])
        self._delivered += taken
        return taken

    def take(self, shard: int) -> Int64s:
        """The rows of a shard that are this worker's, ascending; they count as delivered."""
        if shard not in self:
            return np.zeros(0, np.int64)
        rows: Int64s = np.flatnonzero(self._mask(shard)) + self._index.first_rows[shard]
        self._delivered += len(rows)
        return rows

    def _mask(self, shard: int) -> npt.NDArray[np.bool_]:
        if shard not in self._masks:
            rows = self._index.rows_of(shard)
            around = np.unpackbits(self._bits[rows.start // 8 : rows.stop // 8 + 1], bitorder="little")
            kept = np.flatnonzero(around[rows.start % 8 :][: len(rows)])
            self._masks[shard] = np.zeros(len(rows), dtype=bool)
            for part in self._slices[shard]:
                self._masks[shard][kept[part.start : part.stop]] = True
        return self._masks[shard]

    def check(self) -> None:
        """Refuse the end of a pass in which not all samples came."""
        if self._count is not None and self._delivered != self._count:
            raise StateError(
                f"expected {self._count} kept samples in this worker; got {self._delivered}: shards were split once "
                "more after kept.shards (leave out split_by_node and split_by_worker, and give WebDataset "
                "workersplitter=None), or a handler skipped some that could not be read"
            )
