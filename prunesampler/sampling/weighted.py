"""Random draws that are computed instead of stored: uniform with replacement, and in proportion to weights."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prunesampler._random import hash64, mix
from prunesampler.sampling.permutation import by_pass
from prunesampler.tables.columns import Int64s

_STEPS = 8  # from where the guide table leads; the few draws that need more are searched for


def draw_rows(positions: npt.ArrayLike, *, size: int, seed: int) -> Int64s:
    """Independent uniform draws from range(size), with replacement: one for each non-negative position."""
    return (hash64(mix(seed), positions) % np.uint64(size)).astype(np.int64)


class Weighted:
    """An endless stream of draws in proportion to weights; a position's draw needs none of the earlier ones.

    With replacement each draw is the inverse distribution function at a hashed uniform number, looked up by a guide
    table: about one step for each draw, whatever the weights (Chen and Asau, 1974). Without, a pass
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
        self._latest: tuple[int, Int64s] | None = None
        if replacement:
            self._ends = np.cumsum(self._weights, out=self._weights)
            # For each of so many equal parts of (0, 1) where the search for a number in it begins. Halves of halves,
            # so that the part of a number is exact.
            self._parts = 1 << (len(self._drawable).bit_length() - 1)
            edges = np.arange(self._parts) / self._parts
            edges *= self._ends[-1]
            self._guide = self._searched(edges).astype(np.min_scalar_type(len(self._drawable)))

    def __call__(self, positions: npt.ArrayLike) -> Int64s:
        """The draws at these non-negative positions, int64 (P,), each in [0, n)."""
        positions = np.asarray(positions, dtype=np.int64)
        if not self.replacement:
            return by_pass(positions, self._pass_length, lambda number: self._order(number).__getitem__)
        uniform = _uniform(mix(self.seed), positions)
        drawn = self._guide[(uniform * self._parts).astype(np.int64)].astype(np.int64)
        targets = uniform * self._ends[-1]
        behind = np.arange(len(drawn))
        for _ in range(_STEPS):
            behind = behind[self._ends[drawn[behind]] <= targets[behind]]
            drawn[behind] = np.minimum(drawn[behind] + 1, len(self._drawable) - 1)
        drawn[behind] = self._searched(targets[behind])
        return self._drawable[drawn]

    def _searched(self, targets: npt.NDArray[np.float64]) -> Int64s:
        # A product may round up to the sum of all weights.
        found: Int64s = np.searchsorted(self._ends, targets, side="right")
        return np.minimum(found, len(self._drawable) - 1, out=found)

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
