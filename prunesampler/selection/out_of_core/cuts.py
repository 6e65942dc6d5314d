"""The k-th lowest of rows that are never held whole."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prunesampler.selection.out_of_core.engine import Engine
from prunesampler.selection.select import tie_keys
from prunesampler.tables.columns import Int64s

__all__ = ["Candidates", "Cuts", "find_cuts"]

HELD = 2_000_000
"""Candidates that are sorted at once; more are counted first."""

_FIRST, _RANK = 32, 96  # bits of what decides first, and with the key
_CODES, _LEAST = 18, 4  # bits that are counted at once, of group and rank together, and at least of the rank
_DENSE = 2**20  # numbers of codes that are counted in a table of all
_ALL = 2**32

_UInt32s = npt.NDArray[np.uint32]
_UInt64s = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Candidates:
    """Rows among which something is to be cut off, each in one group; the lowest come first.

    Args:
        group: (B,) int64, or None for one group.
        first: (B,) uint32, what decides.
        row: (B,) int64, distinct; decides between equals, by a key of the seed.
        seed: of the keys.

    >>> Candidates.by_value(None, np.array([0.5, -0.0, 0.0, -np.inf], "f4"), np.arange(4), 0).first.argsort()
    array([3, 1, 2, 0])
    """

    group: Int64s | None
    first: _UInt32s
    row: Int64s
    seed: int

    @classmethod
    def by_value(cls, group: Int64s | None, value: npt.NDArray[np.float32], row: Int64s, seed: int) -> Candidates:
        """In the order of floats, none of which is NaN."""
        bits = (value + np.float32(0)).view(np.uint32)  # −0 is 0
        # Negative floats have the highest bit set, and the higher the rest, the lower they are.
        first = bits ^ ((bits.view(np.int32) >> 31).view(np.uint32) | np.uint32(1 << 31))
        return cls(group, first, row, seed)

    @classmethod
    def by_lot(cls, group: Int64s | None, row: Int64s, seed: int) -> Candidates:
        """In the order of the keys."""
        return cls(group, (tie_keys(seed, row) >> np.uint64(32)).astype(np.uint32), row, seed)

    def key(self, places: Int64s) -> _UInt64s:
        """What decides between equals."""
        return tie_keys(self.seed, self.row[places])

    def of(self, each: npt.NDArray[Any], places: Int64s | None = None) -> Any:
        """Of each of the rows what ``each`` holds for its group; one number if all are in one group."""
        if self.group is None:
            return each.item()
        return each[self.group if places is None else self.group[places]]


@dataclass(frozen=True)
class Cuts:
    """For each group, by what decides first and by key, the last row that belongs to its lowest ones.

    >>> candidates = Candidates.by_value(None, np.array([0.5, 0.25], "f4"), np.arange(2), seed=0)
    >>> Cuts.all_or_none([True]).within(candidates), Cuts.all_or_none([False]).within(candidates)
    (array([ True,  True]), array([False, False]))
    """

    first: Int64s
    key: _UInt64s

    @classmethod
    def all_or_none(cls, whole: Sequence[bool] | npt.NDArray[np.bool_]) -> Cuts:
        """Of groups that are in as a whole, or not at all."""
        return cls(np.where(np.asarray(whole, bool), _ALL, -1).astype(np.int64), np.zeros(len(whole), np.uint64))

    def within(self, candidates: Candidates) -> npt.NDArray[np.bool_]:
        """(B,) which of the rows are among the lowest ones of their group."""
        cut = candidates.of(self.first)
        inside: npt.NDArray[np.bool_] = candidates.first < cut
        tied = np.flatnonzero(candidates.first == cut)
        inside[tied] = candidates.key(tied) <= candidates.of(self.key, tied)
        return inside


Found = Callable[[int], Iterator[Candidates]]
"""The candidates of a block, in parts."""


def find_cuts(
    engine: Engine,
    candidates: Found,
    blocks: Sequence[int],
    groups: int,
    wanted: Callable[[Int64s], Sequence[Sequence[int]]],
) -> list[Cuts]:
    """Where the lowest so many candidates of each group end.

    What they are ranked by is narrowed down some bits at a time, by counting, until few enough candidates are left to
    sort: with one group, or a few, the blocks are read twice.

    Args:
        engine: what does the work.
        candidates: those of a block; runs where the engine does.
        blocks: all of them.
        groups: how many there are, G.
        wanted: from the sizes of the groups, (G,), to numbers of rows for each of them, (G,), once or several times;
            at or below 0 none, at or above the size all.

    Returns:
        The cuts for each of these.

    >>> from prunesampler.selection.out_of_core.engine import Threads
    >>> def candidates(block):
    ...     row = np.arange(5 * block, 5 * block + 5)
    ...     yield Candidates.by_value(row % 2, -row.astype("f4"), row, seed=0)
    >>> with Threads() as threads:
    ...     (cuts,) = find_cuts(threads, candidates, [0, 1], 2, lambda sizes: [[2, 0]])
    >>> [(cuts.within(part).nonzero()[0] + 5 * block).tolist() for block in (0, 1) for part in candidates(block)]
    [[], [6, 8]]
    """
    bits = max(_LEAST, _CODES - (groups - 1).bit_length())
    counts = _counted(engine, functools.partial(_digits, candidates, groups, bits), blocks, groups << bits)
    sizes = counts.reshape(groups, -1).sum(axis=1)
    layers = [np.array(each, np.int64) for each in wanted(sizes)]
    found = [Cuts.all_or_none(layer > 0) for layer in layers]
    open_ = np.concatenate([(layer > 0) & (layer < sizes) for layer in layers])
    if not open_.any():
        return found
    search = _Search(candidates, groups, np.zeros(len(open_), np.int64), np.zeros(len(open_), np.uint64), 0, bits)
    search, left, remaining = search.narrowed(np.tile(counts, len(layers)), open_, np.concatenate(layers))
    while remaining > max(HELD, 4 * int(open_.sum())) and search.done < _RANK:
        counts = _counted(engine, functools.partial(_next_digits, search), blocks, len(open_) << search.bits)
        search, left, remaining = search.narrowed(counts, open_, left)
    parts = engine.map(functools.partial(_collected, search), blocks).parts()
    target, first, key = (
        np.concatenate(each)
        for each in zip(*([part[name].to_numpy() for name in _COLUMNS] for part in parts), strict=True)
    )
    order = np.lexsort((key, first, target))
    last = order[np.searchsorted(target[order], np.flatnonzero(open_)) + left[open_] - 1]
    for cuts, layer in zip(found, np.split(np.arange(len(open_)), len(layers)), strict=True):
        its = open_[layer]
        at = last[np.isin(target[last], layer[its])]
        cuts.first[its], cuts.key[its] = first[at], key[at]
    return found


_COLUMNS = ("target", "first", "key")


@dataclass(frozen=True)
class _Search:
    """For each target, a group for which a row is sought, the first bits of that row's rank; −1 if none is sought."""

    candidates: Found
    groups: int
    first: Int64s
    key: _UInt64s
    done: int
    bits: int

    @property
    def width(self) -> int:
        """How many bits come next: none of the key together with those before it."""
        return min(self.bits, (_FIRST if self.done < _FIRST else _RANK) - self.done)

    def left(self, block: int) -> Iterator[tuple[Int64s, Candidates, Int64s]]:
        """Targets of the rows of a block that begin with these bits, and their places among the candidates."""
        for found in self.candidates(block):
            for start in range(0, len(self.first), self.groups):
                first, key = (each[start : start + self.groups] for each in (self.first, self.key))
                mask = (found.first >> np.uint32(max(0, _FIRST - self.done))) == found.of(first)
                places = np.flatnonzero(mask)
                if self.done > _FIRST:
                    begins = found.key(places) >> np.uint64(_RANK - self.done)
                    places = places[begins == found.of(key, places)]
                group = np.zeros(len(places), np.int64) if found.group is None else found.group[places]
                yield start + group, found, places

    def narrowed(self, counts: Int64s, open_: npt.NDArray[np.bool_], wanted: Int64s) -> tuple[_Search, Int64s, int]:
        """The search with the next bits, how many are wanted of the rows that begin with them, and their number."""
        width = self.width
        first, key, wanted = self.first.copy(), self.key.copy(), wanted.copy()
        first[~open_] = -1
        remaining = 0
        counts = counts.reshape(len(open_), -1)
        for target in np.flatnonzero(open_).tolist():
            reached = np.cumsum(counts[target])
            digit = int(np.searchsorted(reached, wanted[target]))
            count = int(counts[target, digit])
            wanted[target] -= reached[digit] - count
            remaining += count
            if self.done < _FIRST:
                first[target] = first[target] << width | digit
            else:
                key[target] = int(key[target]) << width | digit
        return _Search(self.candidates, self.groups, first, key, self.done + width, self.bits), wanted, remaining


def _counted(engine: Engine, codes: Callable[[int], pa.Table], blocks: Sequence[int], size: int) -> Int64s:
    counts = np.zeros(size, np.int64)
    for part in engine.map(codes, blocks).parts():
        np.add.at(counts, part["code"].to_numpy(), part["count"].to_numpy())
    return counts


def _digits(candidates: Found, groups: int, bits: int, block: int) -> pa.Table:
    shift = np.uint32(_FIRST - bits)
    return _histogram(
        (
            digit if found.group is None else (found.group << bits) + digit
            for found in candidates(block)
            for digit in [(found.first >> shift).astype(np.int64)]
        ),
        groups << bits,
    )


def _next_digits(search: _Search, block: int) -> pa.Table:
    def codes() -> Iterator[Int64s]:
        mask = np.uint64((1 << search.width) - 1)
        for target, found, places in search.left(block):
            if search.done < _FIRST:
                rank = found.first[places].astype(np.uint64) >> np.uint64(_FIRST - search.done - search.width)
            else:
                rank = found.key(places) >> np.uint64(_RANK - search.done - search.width)
            yield (target << search.bits) + (rank & mask).astype(np.int64)

    return _histogram(codes(), len(search.first) << search.bits)


def _histogram(codes: Iterator[Int64s], size: int) -> pa.Table:
    """How often each code below ``size`` comes; those that do."""
    if size > _DENSE:
        code, counts = np.unique(np.concatenate([np.empty(0, np.int64), *codes]), return_counts=True)
        return pa.table({"code": code, "count": counts})
    every = np.zeros(size, np.int64)
    for part in codes:
        if len(part):
            low = int(part.min())
            counts = np.bincount(part - low)
            every[low : low + len(counts)] += counts
    code = np.flatnonzero(every)
    return pa.table({"code": code, "count": every[code]})


def _collected(search: _Search, block: int) -> pa.Table:
    columns = [
        (target, found.first[places].astype(np.int64), found.key(places))
        for target, found, places in search.left(block)
    ]
    return pa.table(
        dict(zip(_COLUMNS, map(np.concatenate, zip(*columns, strict=True)), strict=True)) if columns else {}
    )
