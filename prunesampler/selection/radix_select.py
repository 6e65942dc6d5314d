"""The lowest rows of each group, found by counting: exact, over any number of blocks, in few passes over them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from prunesampler._random import hash64, mix
from prunesampler.selection.engine import Map
from prunesampler.tables.columns import Int64s

HELD = 2_000_000
"""Rows that are sorted at once; where more could be the last one, they are counted further first."""

_TIES = 0x74696573  # keeps the keys that break ties apart from the orders that are drawn from the same seed
_VALUE, _RANK = 32, 96  # bits of the value, and of the value with the key
_CODES, _LEAST = 18, 4  # bits that are counted at once: of group and digit together, and at least of the digit
_DENSE = 2**20  # number of codes up to which a table of all of them is counted in

UInt64s = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]


def tie_keys(seed: int, rows: Int64s) -> UInt64s:
    """What decides between rows of equal scores, and draws rows at random: (R,) distinct numbers."""
    return hash64(mix(seed, _TIES), rows)


@dataclass(frozen=True)
class Ranked:
    """Rows in an order: the lowest value comes first, and of equal ones the lowest tie key.

    Attributes:
        group: (B,) int64, the group of each row; None where all are in one.
        value: (B,) uint32.
        row: (B,) int64, distinct.
        seed: of the tie keys.
    """

    group: Int64s | None
    value: npt.NDArray[np.uint32]
    row: Int64s
    seed: int

    @classmethod
    def by_float(cls, group: Int64s | None, value: npt.NDArray[np.float32], row: Int64s, seed: int) -> Ranked:
        """In the order of floats, none of which is NaN."""
        bits = (value + np.float32(0)).view(np.uint32)  # −0 is 0
        # Negative floats have the highest bit set, and the higher the rest, the lower they are.
        ordered = bits ^ ((bits.view(np.int32) >> 31).view(np.uint32) | np.uint32(1 << 31))
        return cls(group, ordered, row, seed)

    @classmethod
    def at_random(cls, group: Int64s | None, row: Int64s, seed: int) -> Ranked:
        """In the order of the tie keys."""
        return cls(group, (tie_keys(seed, row) >> np.uint64(32)).astype(np.uint32), row, seed)

    def keys(self, places: Int64s) -> UInt64s:
        """The tie keys of some of them."""
        return tie_keys(self.seed, self.row[places])

    def bits(self, places: Int64s, start: int, width: int) -> Int64s:
        """Some bits of value and key of some of them, from the value's highest on; none of both."""
        whole, size = (self.keys(places), _RANK) if start >= _VALUE else (self.value[places].astype(np.uint64), _VALUE)
        digit: UInt64s = whole >> np.uint64(size - start - width) & np.uint64((1 << width) - 1)
        return digit.astype(np.int64)

    def of_group(self, each: npt.NDArray[Any], places: Int64s | None = None) -> Any:
        """For each of the rows what ``each`` holds for its group; one number if all are in one group."""
        if self.group is None:
            return each.item()
        return each[self.group if places is None else self.group[places]]


@dataclass(frozen=True)
class Limits:
    """The last row of each group that is among its lowest ones, by value and tie key: (G,) each."""

    value: Int64s
    key: UInt64s

    def within(self, ranked: Ranked) -> Mask:
        """(B,) whether a row is among the lowest of its group."""
        limit = ranked.of_group(self.value)
        inside: Mask = ranked.value < limit
        tied = np.flatnonzero(ranked.value == limit)
        inside[tied] = ranked.keys(tied) <= ranked.of_group(self.key, tied)
        return inside


Ranking = Callable[[int], Iterator[Ranked]]
"""The rows of a block, in parts."""


def first_digits(run: Map, ranking: Ranking, blocks: Sequence[int], groups: int, rows: int) -> Int64s:
    """How many rows of each group have each first digit of their value, (G, 2**bits): one pass over the blocks.

    There are about ``rows``; a digit has fewer bits where these are few.
    """
    bits = max(_LEAST, min(_CODES, rows.bit_length()) - (groups - 1).bit_length())
    return _total(run, functools.partial(_count_first, ranking, groups, bits), blocks, groups, bits)


def find_limits(
    run: Map, ranking: Ranking, blocks: Sequence[int], counts: Int64s, wanted: Sequence[Int64s]
) -> list[Limits]:
    """Where the lowest so many rows of each group end, for each of ``wanted``, (G,): at or below 0 none, above all.

    The value and then the tie key of the last row are narrowed down some bits at a time, by counting, until few
    enough rows are left to sort. With few groups that is one more pass over the blocks, after :func:`first_digits`.
    """
    groups, size = counts.shape
    all_or_none = [np.where(each > 0, 1 << _VALUE, -1).astype(np.int64) for each in wanted]
    found = [Limits(value, np.zeros(groups, np.uint64)) for value in all_or_none]
    targets = np.concatenate(wanted)  # of each group once for each of ``wanted``
    sought = (targets > 0) & (targets < np.tile(counts.sum(axis=1), len(wanted)))
    if not sought.any():
        return found
    nothing = np.zeros(len(targets), np.int64)
    search = _Search(ranking, groups, size.bit_length() - 1, 0, sought, targets, nothing, nothing.astype(np.uint64))
    search, left = search.narrowed(np.tile(counts, (len(wanted), 1)))
    while left > max(HELD, 4 * int(sought.sum())) and search.done < _RANK:
        count = functools.partial(_count_next, search)
        search, left = search.narrowed(_total(run, count, blocks, len(targets), search.bits))
    target, value, key = map(np.concatenate, zip(*run(functools.partial(_collect, search), blocks), strict=True))
    order = np.lexsort((key, value, target))
    places = np.flatnonzero(sought)
    last = order[np.searchsorted(target[order], places) + search.wanted[places] - 1]
    for number, limits in enumerate(found):
        its = places // groups == number
        limits.value[places[its] % groups], limits.key[places[its] % groups] = value[last[its]], key[last[its]]
    return found


@dataclass(frozen=True)
class _Search:
    """For each target, a group of which a row is sought, the first ``done`` bits of that row's value and key."""

    ranking: Ranking
    groups: int
    bits: int
    done: int
    sought: Mask
    wanted: Int64s
    value: Int64s
    key: UInt64s

    @property
    def width(self) -> int:
        """How many bits come next: none of the key together with some of the value."""
        return min(self.bits, (_VALUE if self.done < _VALUE else _RANK) - self.done)

    def left(self, block: int) -> Iterator[tuple[Int64s, Ranked, Int64s]]:
        """Targets of the rows of a block that begin with these bits, the rows, and their places."""
        prefix = np.where(self.sought, self.value, -1)
        for rows in self.ranking(block):
            for start in range(0, len(prefix), self.groups):
                its = slice(start, start + self.groups)
                begins = rows.value >> np.uint32(max(0, _VALUE - self.done))
                places = np.flatnonzero(begins == rows.of_group(prefix[its]))
                if self.done > _VALUE:
                    keys = rows.keys(places) >> np.uint64(_RANK - self.done)
                    places = places[keys == rows.of_group(self.key[its], places)]
                yield start + (np.zeros_like(places) if rows.group is None else rows.group[places]), rows, places

    def narrowed(self, counts: Int64s) -> tuple[_Search, int]:
        """The search with the next digit, and how many rows begin with it."""
        reached = np.cumsum(counts, axis=1)
        digit = (reached < self.wanted[:, None]).sum(axis=1) * self.sought
        target = np.arange(len(digit))
        its, before = counts[target, digit], reached[target, digit] - counts[target, digit]
        search = replace(self, done=self.done + self.width, wanted=self.wanted - before)
        if self.done < _VALUE:
            search = replace(search, value=self.value << self.width | digit)
        else:
            search = replace(search, key=self.key << np.uint64(self.width) | digit.astype(np.uint64))
        return search, int(its[self.sought].sum())


_Counts = tuple[Int64s, Int64s]


def _total(run: Map, count: Callable[[int], _Counts], blocks: Sequence[int], groups: int, bits: int) -> Int64s:
    counts = np.zeros(groups << bits, np.int64)
    for codes, found in run(count, blocks):
        counts[codes] += found
    return counts.reshape(groups, -1)


def _count_first(ranking: Ranking, groups: int, bits: int, block: int) -> _Counts:
    digits = ((rows.group, (rows.value >> np.uint32(_VALUE - bits)).astype(np.int64)) for rows in ranking(block))
    codes = (digit if group is None else (group << bits) + digit for group, digit in digits)
    return _histogram(codes, groups << bits)


def _count_next(search: _Search, block: int) -> _Counts:
    codes = (
        (target << search.bits) + rows.bits(places, search.done, search.width)
        for target, rows, places in search.left(block)
    )
    return _histogram(codes, len(search.sought) << search.bits)


def _histogram(codes: Iterator[Int64s], size: int) -> _Counts:
    """The codes below ``size`` that come, and how often."""
    if size > _DENSE:
        return np.unique(np.concatenate([np.empty(0, np.int64), *codes]), return_counts=True)
    every = np.zeros(size, np.int64)
    for part in codes:
        if len(part):
            low = int(part.min())
            counts = np.bincount(part - low)
            every[low : low + len(counts)] += counts
    found = np.flatnonzero(every)
    return found, every[found]


def _collect(search: _Search, block: int) -> tuple[Any, ...]:
    parts = [(target, rows.value[at].astype(np.int64), rows.keys(at)) for target, rows, at in search.left(block)]
    return tuple(map(np.concatenate, zip(*parts, strict=True)))
