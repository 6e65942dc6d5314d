"""Choosing an exact number of rows by their hardness, within classes where that is wanted."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from prunesampler._random import hash64
from prunesampler.errors import ArgumentError

__all__ = ["Method", "Pool", "even_sizes", "left_out", "shares", "strata_of"]

Method = Literal["stratified", "top", "bottom", "window", "random"]

_Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Pool:
    """Rows to choose from, by their places 0 … E−1, and the way to choose among any part of them (``members``).

    Attributes:
        hardness: (E,) floats, higher is harder, NaN where a row has no score; infinite ones form a stratum.
        key: (E,) uint64, distinct; what decides between equals.
        labels: (E,) int32 class indices, −1 for none; None where classes do not matter.
        method: as :func:`prunesampler.selection.select.select` describes them.
        offset: the hardest to leave out, a share of the scored members, or a number for the whole pool.
        strata: number of strata.

    >>> pool = Pool(np.array([0.1, 0.9, 0.5]), np.arange(3, dtype=np.uint64), None, "top", 0, 50)
    >>> np.sort(pool.choose(np.arange(3), 2))
    array([1, 2])
    """

    hardness: npt.NDArray[np.floating[Any]]
    key: npt.NDArray[np.uint64]
    labels: npt.NDArray[np.int32] | None
    method: Method
    offset: float
    strata: int

    def choose_with_floor(self, members: _Array, budget: int, floor: int, *, balanced: bool) -> _Array:
        """``budget`` members, among them ``floor`` of each class, or all of a smaller one.

        Raises:
            ArgumentError: the floors of all classes need more than ``budget``.
        """
        choose = self.choose_balanced if balanced else self.choose
        sizes = {label: len(group) for label, group in self._by_label(members) if label >= 0}
        if (needed := sum(min(floor, size) for size in sizes.values())) > budget:
            raise ArgumentError(
                "min_per_class", f"needs {needed} rows of {len(sizes)} classes, keep gives {budget}", floor
            )
        settled: list[_Array] = []
        while True:
            chosen = choose(members, budget)
            counts = {label: len(group) for label, group in self._by_label(chosen)}
            short = {label for label, size in sizes.items() if counts.get(label, 0) < min(floor, size)}
            if not short:
                return np.concatenate([*settled, chosen])
            rest: list[_Array] = []
            for label, group in self._by_label(members):
                if label in short:
                    settled.append(self.choose(group, min(floor, sizes.pop(label))))
                    budget -= len(settled[-1])
                else:
                    rest.append(group)
            members = np.concatenate(rest)

    def without(self, spare: npt.NDArray[np.bool_], floor: int) -> _Array:
        """All but the ``spare`` ones, whatever the method; of a class left below ``floor`` the hardest of them stay."""
        kept = ~spare
        for label, group in self._by_label(np.flatnonzero(spare)) if floor else ():
            assert self.labels is not None
            missing = floor - int(np.count_nonzero(kept & (self.labels == label)))
            if label >= 0:
                kept[group[_lowest(-self.hardness[group], self.key[group], missing)]] = True
        return np.flatnonzero(kept)

    def choose_balanced(self, members: _Array, budget: int) -> _Array:
        """``budget`` members, of each class its share by largest remainder (Hamilton's method)."""
        labels, groups = zip(*self._by_label(members), strict=True)
        sizes = shares(labels, [len(group) for group in groups], budget, int(self.key.min()))
        return np.concatenate([self.choose(group, size) for group, size in zip(groups, sizes, strict=True)])

    def choose(self, members: _Array, budget: int) -> _Array:
        """``budget`` members by the method; those without a score first."""
        unscored = np.isnan(self.hardness[members])
        scored, without = members[~unscored], members[unscored]
        if len(without):
            without = without[_lowest(self.key[without], self.key[without], min(budget, len(without)))]
        budget -= len(without)
        scored = self._easier(scored, max(budget, len(scored) - left_out(self.offset, len(scored), self._scored)))
        if self.method == "stratified":
            scored = self._stratified(scored, budget)
        elif self.method == "random":
            scored = scored[_lowest(self.key[scored], self.key[scored], budget)]
        elif self.method == "bottom":
            scored = self._easier(scored, budget)
        else:
            scored = scored[_lowest(-self.hardness[scored], self.key[scored], budget)]
        return np.concatenate([without, scored])

    def _easier(self, members: _Array, count: int) -> _Array:
        hardest = _lowest(-self.hardness[members], self.key[members], len(members) - count)
        return members[~hardest]

    @functools.cached_property
    def _scored(self) -> int:
        return int(np.count_nonzero(~np.isnan(self.hardness)))

    def _stratified(self, members: _Array, budget: int) -> _Array:
        hardness = self.hardness[members].astype(np.float64)
        finite = np.isfinite(hardness)
        stratum = np.full(len(members), self.strata, np.uint16)
        if finite.any():
            low, high = hardness[finite].min(), hardness[finite].max()
            stratum[finite] = strata_of(hardness[finite], low, high, self.strata)
        groups = [members[group] for _, group in _groups(stratum)]
        sizes = even_sizes([len(group) for group in groups], budget)
        chosen = [
            group[_lowest(self.key[group], self.key[group], size)] for group, size in zip(groups, sizes, strict=True)
        ]
        return np.concatenate([members[:0], *chosen])

    def _by_label(self, members: _Array) -> Iterator[tuple[int, _Array]]:
        assert self.labels is not None
        return ((label, members[group]) for label, group in _groups(self.labels[members]))


def shares(labels: Sequence[int], counts: Sequence[int], budget: int, salt: int) -> list[int]:
    """How many of each class to keep: its share of ``budget`` by largest remainder, ties decided by ``salt``.

    >>> shares([0, 1], [60, 40], 10, 0)
    [6, 4]
    """
    sizes, remainders = np.divmod(np.array(counts) * budget, sum(counts))
    ties = hash64(salt, np.array(labels) + 1)  # a class index must not decide
    sizes += _lowest(-remainders, ties, budget - int(sizes.sum()))
    return [int(size) for size in sizes]


def left_out(offset: float, scored: int, of: int) -> int:
    """How many of so many scored rows are left out as the hardest; an int ``offset`` is of the ``of`` in the pool.

    >>> left_out(0.29, 100, 100), left_out(10, 30, 60)
    (29, 5)
    """
    if isinstance(offset, int):
        return offset * scored // max(1, of)
    return math.floor(Fraction(repr(offset)) * scored)  # 0.29 of 100 are 29, in floats 28.999…


def strata_of(hardness: npt.NDArray[np.float64], low: float, high: float, strata: int) -> npt.NDArray[np.uint16]:
    """The stratum of each value between ``low`` and ``high``, of equal width.

    >>> strata_of(np.array([0.0, 0.4, 1.0]), 0.0, 1.0, 2)
    array([0, 0, 1], dtype=uint16)
    """
    share = (hardness - low) / ((high - low) or 1)
    return np.minimum(share * strata, strata - 1).astype(np.uint16)


def even_sizes(counts: Sequence[int], budget: int) -> list[int]:
    """How many of each stratum to keep: evenly, from the smallest on; what one lacks goes to the larger ones.

    >>> even_sizes([10, 1, 5], 9)
    [4, 1, 4]
    """
    sizes = [0] * len(counts)
    order = sorted(range(len(counts)), key=counts.__getitem__)
    for remaining, stratum in zip(range(len(order), 0, -1), order, strict=True):
        sizes[stratum] = min(counts[stratum], budget // remaining)
        budget -= sizes[stratum]
    return sizes


def _lowest(values: _Array, ties: _Array, count: int) -> npt.NDArray[np.bool_]:
    """A mask of the ``count`` lowest values; of equal ones those with the lowest tie key."""
    if count >= len(values):
        return np.ones(len(values), np.bool_)
    if count <= 0:
        return np.zeros(len(values), np.bool_)
    last = np.partition(values, count - 1)[count - 1]
    mask: npt.NDArray[np.bool_] = values < last
    tied = np.flatnonzero(values == last)
    missing = count - int(mask.sum())
    mask[tied[np.argpartition(ties[tied], missing - 1)[:missing]]] = True
    return mask


def _groups(codes: _Array) -> Iterator[tuple[int, _Array]]:
    """Each distinct code, ascending, and the places where it stands, ascending."""
    order = np.argsort(codes, kind="stable")
    values, starts = np.unique(codes[order], return_index=True)
    return zip(values.tolist(), np.split(order, starts)[1:], strict=True)
