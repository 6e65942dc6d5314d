"""Seeded orders that are computed instead of stored: a position in, a row out.

Everything here is a pure function of integers. There is no generator with a state, so any process can enter an order
at any position at the same cost: that makes resuming exact and instant.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from prunesampler._random import hash64, mix
from prunesampler.errors import check_int
from prunesampler.tables.columns import Int64s

_ROUNDS = 6
_SMALL = 4096


class Permutation:
    """A seeded bijection of range(n) that holds O(sqrt n) numbers instead of n.

    A position is written as two digits, of moduli a and b just above sqrt n. Each round adds a keyed random
    number, chosen by one digit, to the other digit; every round can be undone, so the whole is a bijection of
    range(a * b). The few results at or above n go through it again until they are below (cycle walking, Black and
    Rogaway, 2002). Up to 4,096 rows the shuffle is stored, and all orders are equally likely.
    """

    def __init__(self, n: int, key: int) -> None:
        self.n, self.key = check_int("n", n, 1, 2**40), key
        self._stored = np.argsort(hash64(key, np.arange(n)), kind="stable") if n <= _SMALL else None
        self._high = math.isqrt(n - 1) + 1
        self._low = -(-n // self._high)
        self._tables = [] if n <= _SMALL else [self._table(number) for number in range(_ROUNDS)]

    def _table(self, number: int) -> Int64s:
        chooser, modulus = (self._high, self._low) if number % 2 else (self._low, self._high)
        hashed = hash64(mix(self.key, number), np.arange(chooser))
        return (hashed % np.uint64(modulus)).astype(np.int64)

    def __call__(self, positions: Int64s) -> Int64s:
        """The numbers at these positions: int64 (P,) in [0, n) to int64 (P,) in [0, n)."""
        if self._stored is not None:
            return self._stored[positions]
        rows = self._shuffle(positions)
        (outside,) = np.nonzero(rows >= self.n)
        while outside.size:
            rows[outside] = self._shuffle(rows[outside])
            outside = outside[rows[outside] >= self.n]
        return rows

    def _shuffle(self, positions: Int64s) -> Int64s:
        high = positions // self._low
        low = positions - high * self._low
        scratch = np.empty_like(high)
        for number, table in enumerate(self._tables):
            digit, chooser, modulus = (low, high, self._low) if number % 2 else (high, low, self._high)
            digit += np.take(table, chooser, out=scratch, mode="clip")
            # As unsigned numbers a negative difference is huge, so the minimum is the sum modulo the modulus.
            np.subtract(digit, modulus, out=scratch)
            np.minimum(digit.view(np.uint64), scratch.view(np.uint64), out=digit.view(np.uint64))
        high *= self._low
        high += low
        return high


_permutation = functools.lru_cache(maxsize=8)(Permutation)


def stream_rows(positions: npt.ArrayLike, *, size: int, seed: int, shuffle: bool) -> Int64s:
    """The numbers at these positions of an endless stream of passes over range(size), each in an order of its own."""
    positions = np.asarray(positions, dtype=np.int64)
    if not shuffle:
        return positions % size
    return by_pass(positions, size, lambda number: _permutation(size, mix(seed, number)))


def by_pass(positions: Int64s, size: int, order_of: Callable[[int], Callable[[Int64s], Int64s]]) -> Int64s:
    """Look each position up in the order of its own pass of ``size``; fast where neighbours are of the same pass.

    ``order_of`` gives the order of a pass by its number: from int64 in [0, size) to the numbers there.
    """
    passes = positions // size
    within = positions - passes * size
    changes = np.flatnonzero(np.diff(passes, prepend=-1)).tolist()
    rows = np.empty_like(positions)
    for start, stop in itertools.pairwise([*changes, len(positions)]):
        rows[start:stop] = order_of(int(passes[start]))(within[start:stop])
    return rows


def rank_length(length: int, num_replicas: int, drop_last: bool, start: int = 0) -> int:
    """How many positions of [start, length) each rank reads; the same for all ranks.

    ``drop_last`` leaves the uneven tail out instead of padding it.
    """
    unread = max(length - start, 0)
    return unread // num_replicas if drop_last else -(-unread // num_replicas)


def rank_positions(first: int, last: int, *, start: int, length: int, rank: int, num_replicas: int) -> Int64s:
    """The epoch positions of one rank's steps first, ..., last - 1.

    Ranks take the unread positions from ``start`` on in turn, as in torch's DistributedSampler, and a tail that is too
    short for all is padded from the beginning of the same epoch of ``length`` positions.
    """
    return (start + rank + np.arange(first, last, dtype=np.int64) * num_replicas) % length
