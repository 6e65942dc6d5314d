"""What an epoch is going to read, told by the sampler to the processes that read it, through memory that they share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from prunesampler.sampling.block_shuffle import BlockOrder, BlockShuffle
from prunesampler.tables.columns import Int64s

_SMALL_GAP = 4  # blocks


class ReadPlan(BlockShuffle):
    """The order of shards, and the rows that are kept: a bit a row, and 4 bytes a shard.

    Written by the process that has the sampler (which takes it as its ``shuffle=``), whenever that computes rows of
    another pass than before; read by that process's workers. It is advice alone: a worker that reads it while it is
    written fetches something too much or too late, and reads the right rows all the same.

    Attributes:
        skipped: (S,) uint8, shared: 1 for shards that were left out, as they could not be read.
    """

    def __init__(self, first_rows: Int64s, block: int, rows: Int64s | None = None) -> None:
        super().__init__(first_rows, block)
        shards = len(first_rows) - 1
        self._order = torch.zeros(shards, dtype=torch.int32).share_memory_()
        self._kept = torch.zeros(self.num_rows // 8 + 1, dtype=torch.uint8).share_memory_()
        self._state = torch.zeros(
            3, dtype=torch.int64
        ).share_memory_()  # version, length of the order, whether all rows
        self.skipped = torch.zeros(shards, dtype=torch.uint8).share_memory_()
        self._told: tuple[int, object, object] = 0, None, None  # version, order and rows that were written here last
        self._known: _Known | None = None
        self._tell(np.flatnonzero(np.diff(self.starts(rows))), rows)

    def for_nodes(self, nodes: int) -> ReadPlan:
        """The same memory, for an order of so many nodes."""
        plan: ReadPlan = object.__new__(ReadPlan)
        vars(plan).update(vars(self), nodes=nodes)
        return plan

    def reads(self, order: BlockOrder, rows: Int64s | None) -> None:
        """Written if it is not what is there."""
        version, told, _ = self._told
        if order is not told or version != int(self._state[0]):
            self._tell(order.groups, rows, order)

    def _tell(self, shards: Int64s, rows: Int64s | None, order: BlockOrder | None = None) -> None:
        version, _, told = self._told
        if rows is None:
            self._state[2] = 1
        elif rows is not told or version != int(self._state[0]):
            self._kept.copy_(torch.from_numpy(packed(rows, self.num_rows)))
            self._state[2] = 0
        self._order[: len(shards)] = torch.from_numpy(shards.astype(np.int32))
        self._state[1] = len(shards)
        self._state[0] += 1
        self._told = int(self._state[0]), order, rows

    @property
    def keeps_all(self) -> bool:
        """Whether every row is kept."""
        return bool(self._state[2])

    def kept(self, shard: int) -> npt.NDArray[np.bool_]:
        """Which rows of a shard are kept."""
        first, end = self.first_rows[shard : shard + 2].tolist()
        return np.ones(end - first, bool) if self.keeps_all else unpacked(self._kept.numpy(), first, end)

    def upcoming(self, shards: Int64s, ahead: int) -> list[int] | None:
        """The shards of a batch, the others of their blocks, and so many after these.

        None where the batch does not lie together in the order: its rows are those of a sampler of another kind.
        """
        order, places = self._places()
        found = places[shards]
        blocks = np.unique(found // self.block)
        # the end of an epoch is filled up from its beginning; the ranks of a machine may miss out small blocks
        if (found < 0).any() or np.count_nonzero(np.diff(blocks) > _SMALL_GAP) >= 2 * self.nodes:
            return None
        runs = [order[block * self.block : (block + 1) * self.block + ahead] for block in blocks.tolist()]
        return [int(shard) for shard in dict.fromkeys(np.concatenate([shards, *runs]).tolist())]

    def after(self, shard: int) -> list[int]:
        """All shards of the order, beginning with those after this one."""
        order, places = self._places()
        return [int(each) for each in np.roll(order, -int(places[shard]) - 1)]

    def _places(self) -> tuple[Int64s, Int64s]:
        version = int(self._state[0])
        if self._known is None or self._known.version != version:
            order = self._order[: int(self._state[1])].numpy().astype(np.int64)
            places = np.full(len(self._order), -1)
            places[order] = np.arange(len(order))
            self._known = _Known(version, order, places)
        return self._known.order, self._known.places


class _Known(NamedTuple):
    version: int
    order: Int64s
    places: Int64s  # (S,) of each shard in the order, −1 where it is not in it


def packed(rows: Int64s, count: int) -> npt.NDArray[np.uint8]:
    """Bits (little-endian) of the rows in [0, count) that are in ``rows``."""
    kept = np.zeros((count // 8 + 1) * 8, bool)
    kept[rows] = True
    return np.packbits(kept, bitorder="little")


def unpacked(bits: npt.NDArray[np.uint8], first: int, end: int) -> npt.NDArray[np.bool_]:
    """Whether each row from ``first`` to below ``end`` is in :func:`packed` bits."""
    around = np.unpackbits(bits[first // 8 : end // 8 + 1], bitorder="little")
    return around[first % 8 :][: end - first].astype(bool)
