"""The k-th lowest of rows that are never held whole."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prunesampler.blocks.engine import Engine
from prunesampler.blocks.reading import Range
from prunesampler.columns import Int64s

__all__ = ["Candidates", "Cuts", "find_cuts"]

HELD = 1_000_000
"""Candidates that are sorted at once; more are counted first."""

_DIGITS, _BITS = 6, 16  # of a rank: two of the value, four of the key
_ALL = 2**32


@dataclass(frozen=True)
class Candidates:
    """Rows of a block among which something is to be cut off, each in one group.

    Args:
        group: (B,) int64.
        value: (B,) float32, not NaN.
        key: (B,) uint64, what decides between equal values; distinct.
    """

    group: Int64s
    value: npt.NDArray[np.float32]
    key: npt.NDArray[np.uint64]

    @property
    def bits(self) -> Int64s:
        """(B,) 32-bit integers in the order of the values."""
        bits = (self.value + np.float32(0)).view(np.uint32)  # −0 is 0
        return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.int64)


@dataclass(frozen=True)
class Cuts:
    """For each group the value and the key of the last row that belongs to its lowest ones.

    >>> candidates = Candidates(np.zeros(2, np.int64), np.array([0.5, 0.25], "f4"), np.arange(2, dtype="u8"))
    >>> Cuts.all_or_none([True]).within(candidates), Cuts.all_or_none([False]).within(candidates)
    (array([ True,  True]), array([False, False]))
    """

    bits: Int64s
    key: npt.NDArray[np.uint64]

    @classmethod
    def all_or_none(cls, whole: Sequence[bool]) -> Cuts:
        """Of groups that are in as a whole, or not at all."""
        return cls(np.where(np.array(whole, bool), _ALL, -1).astype(np.int64), np.zeros(len(whole), np.uint64))

    def within(self, candidates: Candidates) -> npt.NDArray[np.bool_]:
        """(B,) which of the rows are among the lowest ones of their group."""
        bits, cut = candidates.bits, self.bits[candidates.group]
        tied: npt.NDArray[np.bool_] = (bits == cut) & (candidates.key <= self.key[candidates.group])
        return (bits < cut) | tied


def find_cuts(
    engine: Engine,
    candidates: Callable[[Range], Candidates],
    blocks: Sequence[Range],
    counts: Sequence[int],
    sizes: Sequence[int],
) -> Cuts:
    """Where the lowest ``counts[g]`` of the ``sizes[g]`` candidates in each group g end.

    Values and keys are narrowed down 16 bits at a time, by counting, until few enough candidates are left to sort.

    Args:
        engine: what does the work.
        candidates: those of a block; runs where the engine does.
        blocks: all of them.
        counts: (G,) how many are wanted; at or below 0 none, at or above the size all.
        sizes: (G,) how many there are.

    >>> from prunesampler.blocks.engine import Serial
    >>> def candidates(rows):
    ...     row = np.arange(*rows)
    ...     return Candidates(row % 2, -row.astype("f4"), row.astype("u8"))
    >>> cuts = find_cuts(Serial(), candidates, [(0, 5), (5, 10)], counts=[2, 0], sizes=[5, 5])
    >>> cuts.within(candidates((0, 10))).nonzero()[0]
    array([6, 8])
    """
    cuts = Cuts.all_or_none([count > 0 for count in counts])
    open_ = np.array([0 < count < size for count, size in zip(counts, sizes, strict=True)], bool)
    wanted = np.where(open_, counts, 0).astype(np.int64)
    remaining = int(np.array(sizes)[open_].sum())
    search = _Search(candidates, open_, np.zeros_like(wanted), np.zeros(len(open_), np.uint64), 0)
    while remaining > HELD and search.digits < _DIGITS:
        search, wanted, remaining = _narrowed(engine, search, wanted, blocks)
    if open_.any():
        found = pa.concat_tables([pa.table(_NONE), *engine.map(functools.partial(_collected, search), blocks).parts()])
        group, bits, key = (found[name].to_numpy() for name in ("group", "bits", "key"))
        order = np.lexsort((key, bits, group))
        starts = np.searchsorted(group[order], np.flatnonzero(open_))
        last = order[starts + wanted[open_] - 1]
        cuts.bits[open_], cuts.key[open_] = bits[last], key[last]
    return cuts


_NONE = {"group": np.empty(0, np.int64), "bits": np.empty(0, np.int64), "key": np.empty(0, np.uint64)}


@dataclass(frozen=True)
class _Search:
    """For each open group the first digits of its last row."""

    candidates: Callable[[Range], Candidates]
    open: npt.NDArray[np.bool_]
    bits: Int64s
    key: npt.NDArray[np.uint64]
    digits: int

    def left(self, rows: Range) -> tuple[Int64s, Int64s, npt.NDArray[np.uint64]]:
        """Groups, bits and keys of the rows of a block that begin with these digits."""
        found = self.candidates(rows)
        group, bits, key = found.group, found.bits, found.key
        left = self.open[group]
        if self.digits:
            shift = max(0, 2 - self.digits) * _BITS
            left &= (bits >> shift) == (self.bits[group] >> shift)
        if self.digits > 2:
            down = np.uint64((_DIGITS - self.digits) * _BITS)
            left &= (key >> down) == (self.key[group] >> down)
        return group[left], bits[left], key[left]

    def next_digit(self, bits: Int64s, key: npt.NDArray[np.uint64]) -> Int64s:
        if self.digits < 2:
            return bits >> (1 - self.digits) * _BITS & 0xFFFF
        return (key >> np.uint64((_DIGITS - 1 - self.digits) * _BITS) & np.uint64(0xFFFF)).astype(np.int64)


def _narrowed(engine: Engine, search: _Search, wanted: Int64s, blocks: Sequence[Range]) -> tuple[_Search, Int64s, int]:
    codes = counts = np.empty(0, np.int64)
    for part in engine.map(functools.partial(_counted, search), blocks).parts():
        codes, at = np.unique(np.concatenate([codes, part["code"].to_numpy()]), return_inverse=True)
        more, counts = np.concatenate([counts, part["count"].to_numpy()]), np.zeros(len(codes), np.int64)
        np.add.at(counts, at, more)
    bits, key, wanted = search.bits.copy(), search.key.copy(), wanted.copy()
    remaining = 0
    for group in np.flatnonzero(search.open).tolist():
        first, end = np.searchsorted(codes, [group << _BITS, (group + 1) << _BITS])
        reached = np.cumsum(counts[first:end])
        place = int(np.searchsorted(reached, wanted[group]))
        digit, count = int(codes[first + place] & 0xFFFF), int(counts[first + place])
        wanted[group] -= reached[place] - count
        remaining += count
        if search.digits < 2:
            bits[group] |= digit << (1 - search.digits) * _BITS
        else:
            key[group] |= np.uint64(digit << (_DIGITS - 1 - search.digits) * _BITS)
    return _Search(search.candidates, search.open, bits, key, search.digits + 1), wanted, remaining


def _counted(search: _Search, rows: Range) -> pa.Table:
    group, bits, key = search.left(rows)
    codes, counts = np.unique((group << _BITS) | search.next_digit(bits, key), return_counts=True)
    return pa.table({"code": codes, "count": counts})


def _collected(search: _Search, rows: Range) -> pa.Table:
    return pa.table(dict(zip(_NONE, search.left(rows), strict=True)))
