"""Random draws that are computed instead of stored: uniform with replacement, and in proportion to weights."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prunesampler._random import hash64, mix
from prunesampler.errors import ArgumentError
from prunesampler.sampling.permutation import by_pass
from prunesampler.tables.columns import Int64s

__all__ = ["Weighted", "draw_rows"]


def draw_rows(positions: npt.ArrayLike, *, size: int, seed: int) -> Int64s:
    """Independent uniform draws from range(size), with replacement: one for each non-negative position."""
    return (hash64(mix(seed), positions) % np.uint64(size)).astype(np.int64)


class Weighted:
    """An endless stream of draws in proportion to weights; a position's draw needs none of the earlier ones.

    With replacement each draw is the inverse distribution function at a hashed uniform number. Without, a pass
    is ordered by exponential keys E / weight (Efraimidis and Spirakis, 2006): as though drawn one after
    another, each in proportion to the weights that are left.

    Args:
        weights: (n,), finite, >= 0, at least one above 0. A number of weight 0 is never drawn.
        seed: any int.
        replacement: whether a number may come twice in a pass.
        pass_length: draws before a pass without replacement starts anew: at most, and by default, the count
            of weights above 0.

    Raises:
        ArgumentError: weights or pass_length break these rules.

    >>> 0 in Weighted([0.0, 2.0, 1.0], seed=0, replacement=True)(np.arange(8))
    False
    """

    def __init__(self, weights: npt.ArrayLike, *, seed: int, replacement: bool, pass_length: int | None = None) -> None:
        values = np.asarray(weights, dtype=np.float64)
        if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any() or not (values > 0).any():
            raise ArgumentError("weights", "must be one-dimensional, finite, >= 0 and not all 0", weights)
        self.seed, self.replacement = seed, replacement
        (self._drawable,) = np.nonzero(values)
        self._weights = values[self._drawable]
        self.pass_length = len(self._drawable) if pass_length is None else pass_length
        if not 1 <= self.pass_length <= len(self._drawable):
            raise ArgumentError("pass_length", "must be in 1 to the count of weights above 0", pass_length)
        self._ends = np.cumsum(self._weights) if replacement else None
        self._latest: tuple[int, Int64s] | None = None

    def __call__(self, positions: npt.ArrayLike) -> Int64s:
        """The draws at these non-negative positions, int64 (P,), each in [0, n)."""
        positions = np.asarray(positions, dtype=np.int64)
        if self._ends is None:
            return by_pass(positions, self.pass_length, lambda number: self._order(number).__getitem__)
        targets = _uniform(mix(self.seed), positions) * self._ends[-1]
        drawn: Int64s = np.searchsorted(self._ends, targets, side="right")
        # The product may round up to the sum of all weights.
        rows: Int64s = self._drawable[np.minimum(drawn, len(self._drawable) - 1)]
        return rows

    def _order(self, number: int) -> Int64s:
        latest = self._latest
        if latest is None or latest[0] != number:
            uniform = _uniform(mix(self.seed, number), np.arange(len(self._weights)))
            first = np.argsort(-np.log(uniform) / self._weights, kind="stable")[: self.pass_length]
            self._latest = latest = (number, self._drawable[first])
        return latest[1]


def _uniform(key: int, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Hashed numbers strictly between 0 and 1."""
    return (hash64(key, values) >> np.uint64(12)).astype(np.float64) * 2.0**-52 + 2.0**-53
