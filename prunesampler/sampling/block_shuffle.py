"""A shuffle for rows that lie in groups (shards, row groups of a file): a few groups are mixed at a time.

Groups are permuted, and cut into blocks of a few groups each; the rows of a block are permuted among one another. So a
reader needs one block at hand, and what comes next is known. As in :mod:`prunesampler.sampling.permutation` nothing is
drawn and nothing is kept: the row at a position is computed, in O(groups) once a pass and O(1) a row.
"""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict

import numpy as np

from prunesampler._random import hash64, mix
from prunesampler.errors import ArgumentError, check_int
from prunesampler.sampling.permutation import Permutation, by_pass
from prunesampler.tables.columns import Int64s

_permutation = functools.lru_cache(maxsize=16)(Permutation)


class BlockShuffle:
    """How a :class:`~prunesampler.PrunedSampler` orders rows of groups, as its ``shuffle=``.

    Args:
        first_rows: (G + 1,) ascending int64 from 0 to N; group ``g`` has the rows from ``first_rows[g]`` to below the
            next.
        block: groups that are mixed with one another, at least 1.
        nodes: machines that each read groups of their own: the order is cut into so many equal parts, and position
            ``t`` takes the next row of part ``t % nodes``. 1: all ranks read the same groups.

    >>> shuffle = BlockShuffle([0, 3, 6, 9], block=1)
    >>> order = shuffle.order(shuffle.starts(None), key=0)
    >>> order.groups, order(np.arange(9))
    (array([0, 1, 2]), array([2, 0, 1, 3, 4, 5, 8, 6, 7]))
    """

    def __init__(self, first_rows: Int64s, block: int, nodes: int = 1) -> None:
        self.first_rows = np.asarray(first_rows, np.int64)
        if len(self.first_rows) < 2 or self.first_rows[0] or (np.diff(self.first_rows) < 0).any():
            raise ArgumentError("first_rows", "must be ascending from 0 to the number of rows", first_rows)
        self.block, self.nodes = check_int("block", block, 1), check_int("nodes", nodes, 1)

    def __str__(self) -> str:
        groups = hashlib.sha256(self.first_rows.tobytes()).hexdigest()[:16]
        return f"blocks of {self.block} among {len(self.first_rows) - 1} groups ({groups}) for {self.nodes} nodes"

    @property
    def num_rows(self) -> int:
        """N."""
        return int(self.first_rows[-1])

    def starts(self, rows: Int64s | None) -> Int64s:
        """(G + 1,) where the rows of each group begin among (K,) ascending rows; None: all."""
        return self.first_rows if rows is None else np.searchsorted(rows, self.first_rows)

    def order(self, starts: Int64s, key: int) -> BlockOrder:
        """The order of one pass."""
        return BlockOrder(starts, self.block, self.nodes, key)

    def reads(self, order: BlockOrder, rows: Int64s | None) -> None:
        """Told of the order that is about to be read, of these rows; for a dataset that reads ahead."""


class BlockOrder:
    """The order of one pass: from positions in [0, K) to numbers in [0, K), a bijection.

    Attributes:
        groups: (H,) those that hold a row, in the order of reading; a block is ``block`` neighbours in it.
    """

    def __init__(self, starts: Int64s, block: int, nodes: int, key: int) -> None:
        held = np.flatnonzero(np.diff(starts))
        self.groups: Int64s = held[np.argsort(hash64(mix(key), held), kind="stable")]
        self._firsts = starts[self.groups]
        self._ends = np.cumsum(starts[self.groups + 1] - self._firsts)
        self._begins = np.append(0, self._ends)
        self._blocks = np.append(self._begins[:-1:block], self._ends[-1:])  # where each block begins, and the end
        self._block, self._nodes, self._key = block, nodes, key

    def __call__(self, positions: Int64s) -> Int64s:
        """The numbers at these positions."""
        if self._nodes > 1:
            part, least = positions % self._nodes, len(self) // self._nodes
            positions = positions // self._nodes + part * least + np.minimum(part, len(self) % self._nodes)
        blocks = np.searchsorted(self._blocks, positions, "right") - 1
        ordered = np.argsort(blocks, kind="stable")
        numbers = np.empty_like(positions)
        for at in np.split(ordered, np.flatnonzero(np.diff(blocks[ordered])) + 1) if len(positions) else ():
            number = int(blocks[at[0]])
            first, end = self._blocks[number : number + 2].tolist()
            places = first + _permutation(end - first, mix(self._key, number))(positions[at] - first)
            low = number * self._block
            group = low + np.searchsorted(self._ends[low : low + self._block], places, "right")
            numbers[at] = self._firsts[group] + places - self._begins[group]
        return numbers

    def __len__(self) -> int:
        return int(self._begins[-1])


class BlockStream:
    """An endless stream of passes over (K,) ascending rows, or all of them, each in a block order of its own."""

    def __init__(self, shuffle: BlockShuffle, rows: Int64s | None, seed: int) -> None:
        self._shuffle, self._rows, self._seed = shuffle, rows, seed
        self._starts = shuffle.starts(rows)
        self._orders: OrderedDict[int, BlockOrder] = OrderedDict()  # of the latest passes

    def __call__(self, positions: Int64s) -> Int64s:
        """The numbers at these positions: int64 (P,) to int64 (P,) in [0, K)."""
        return by_pass(positions, int(self._starts[-1]), self._order)

    def _order(self, number: int) -> BlockOrder:
        if number not in self._orders:
            self._orders[number] = self._shuffle.order(self._starts, mix(self._seed, number))
            while len(self._orders) > 2:
                self._orders.popitem(last=False)
        self._shuffle.reads(self._orders[number], self._rows)
        return self._orders[number]
