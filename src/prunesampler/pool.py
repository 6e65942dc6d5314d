"""Choosing an exact number of rows by their hardness, within classes where that is wanted."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from prunesampler.errors import ArgumentError
from prunesampler.order import hash64

__all__ = ["Method", "Pool"]

Method = Literal["stratified", "top", "bottom", "window", "random"]

_Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Pool:
    """Rows to choose from, by their places 0 … E−1, and the way to choose among any part of them (``members``).

    Attributes:
        hardness: (E,) floats, higher is harder, NaN where a row has no score; infinite ones form a stratum.
        key: (E,) uint64, distinct; what decides between equals.
        labels: (E,) int32 class indices, −1 for none; None where classes do not matter.
        method: as :func:`prunesampler.selection.select` describes them.
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
        quotas = np.array([len(group) for group in groups]) * budget
        sizes, remainders = np.divmod(quotas, len(members))
        ties = hash64(int(self.key.min()), np.array(labels) + 1)  # a class index must not decide
        sizes += _lowest(-remainders, ties, budget - int(sizes.sum()))
        return np.concatenate([self.choose(group, int(size)) for group, size in zip(groups, sizes, strict=True)])

    def choose(self, members: _Array, budget: int) -> _Array:
        """``budget`` members by the method; those without a score first."""
        unscored = np.isnan(self.hardness[members])
        scored, without = members[~unscored], members[unscored]
        if len(without):
            without = without[_lowest(self.key[without], self.key[without], min(budget, len(without)))]
        budget -= len(without)
        scored = self._easier(scored, max(budget, len(scored) - self._left_out(len(scored))))
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

    def _left_out(self, scored: int) -> int:
        """How many of so many scored rows are left out as the hardest."""
        if isinstance(self.offset, int):
            return self.offset * scored // max(1, self._scored)
        return math.floor(Fraction(repr(self.offset)) * scored)  # 0.29 of 100 are 29, in floats 28.999…

    def _stratified(self, members: _Array, budget: int) -> _Array:
        hardness = self.hardness[members].astype(np.float64)
        finite = np.isfinite(hardness)
        stratum = np.full(len(members), self.strata, np.uint16)
        if finite.any():
            low, high = hardness[finite].min(), hardness[finite].max()
            share = (hardness[finite] - low) / ((high - low) or 1)
            stratum[finite] = np.minimum(share * self.strata, self.strata - 1)
        chosen = [members[:0]]
        groups = sorted((members[group] for _, group in _groups(stratum)), key=len)
        for remaining, group in zip(range(len(groups), 0, -1), groups, strict=True):
            size = min(len(group), budget // remaining)
            chosen.append(group[_lowest(self.key[group], self.key[group], size)])
            budget -= size
        return np.concatenate(chosen)

    def _by_label(self, members: _Array) -> Iterator[tuple[int, _Array]]:
        assert self.labels is not None
        return ((label, members[group]) for label, group in _groups(self.labels[members]))


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
