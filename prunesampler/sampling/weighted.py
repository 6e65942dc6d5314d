"""Random draws that are computed instead of stored: uniform with replacement, and in proportion to weights."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prunesampler._random import hash64, mix
from prunesampler.sampling.permutation import by_pass
from prunesampler.tables.columns import Int64s


def draw_rows(positions: npt.ArrayLike, *, size: int, seed: int) -> Int64s:
    """Independent uniform draws from range(size), with replacement: one for each non-negative position."""
    return (hash64(mix(seed), positions) % np.uint64(size)).astype(np.int64)


class Weighted:
    """An endless stream of draws in proportion to weights; a position's draw needs none of the earlier ones.

    With replacement each draw is the inverse distribution function at a hashed uniform number. Without, a pass
    is ordered by exponential keys E / weight (Efraimidis and Spirakis, 2006): as though drawn one after
    another, each in proportion to the weights that are left.

    ``weights`` are (n,) finite, >= 0, at least one above 0; a number of weight 0 is never drawn. A pass without
    replacement holds each number of a weight above 0 once, or only the first ``longest_pass`` of such an order.
    """

    def __init__(
        self, weights: npt.ArrayLike, *, seed: int, replacement: bool, longest_pass: int | None = None
    ) -> None:
        values = np.asarray(weights, dtype=np.float64)
        self.seed, self.replacement = seed, replacement
        (self._drawable,) = np.nonzero(values)
        self._weights = values[self._drawable]
        self._pass_length = min(longest_pass or len(self._drawable), len(self._drawable))
        self._ends = np.cumsum(self._weights) if replacement else None
        self._latest: tuple[int, Int64s] | None = None

    def __call__(self, positions: npt.ArrayLike) -> Int64s:
        """The draws at these non-negative positions, int64 (P,), each in [0, n)."""
        positions = np.asarray(positions, dtype=np.int64)
        if self._ends is None:
            return by_pass(positions, self._pass_length, lambda number: self._order(number).__getitem__)
        targets = _uniform(mix(self.seed), positions) * self._ends[-1]
        drawn: Int64s = np.searchsorted(self._ends, targets, side="right")
        # The product may round up to the sum of all weights.
        rows: Int64s = self._drawable[np.minimum(drawn, len(self._drawable) - 1)]
        return rows

    def _order(self, number: int) -> Int64s:
        latest = self._latest
        if latest is None or latest[0] != number:
            uniform = _uniform(mix(self.seed, number), np.arange(len(self._weights)))
            first = np.argsort(-np.log(uniform) / self._weights, kind="stable")[: self._pass_length]
            self._latest = latest = (number, self._drawable[first])
        return latest[1]


def _uniform(key: int, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Hashed numbers strictly between 0 and 1."""
    return (hash64(key, values) >> np.uint64(12)).astype(np.float64) * 2.0**-52 + 2.0**-53
