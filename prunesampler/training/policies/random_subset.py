"""A fresh random subset every epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prunesampler._random import mix
from prunesampler.sampling.permutation import Permutation
from prunesampler.selection.select import resolve_keep
from prunesampler.tables.score_table import ScoreTable
from prunesampler.training.policies.policy import Policy

_FRESH = 0x72733200  # keeps these permutations apart from others of the same seed


@dataclass(frozen=True)
class RandomSubset(Policy):
    """Every epoch the next ``keep`` rows of a random permutation: RS2 without replacement (Okanovic et al. 2023).

    Over time every row is drawn equally often, to within one. Nothing is scored. This is full data for ``keep`` times
    as many epochs, spread over all of them: what a method that prunes has to beat at equal cost. Let the learning
    rate decay over the run as it will be, ``loader.pruning.total_steps(epochs)``.

    Args:
        keep: a float in (0, 1], the fraction of the eligible rows, or an int >= 2, their number.

    Raises:
        ArgumentError: keep breaks its rule.

    >>> policy, rows = RandomSubset(keep=0.5), np.arange(6)
    >>> halves = [policy.draw(epoch, None, rows, seed=0) for epoch in (0, 1)]
    >>> sorted(np.concatenate(halves).tolist())
    [0, 1, 2, 3, 4, 5]
    """

    keep: float | int = 0.5

    def __post_init__(self) -> None:
        resolve_keep(self.keep, 2**63)

    def draw(
        self,
        epoch: int,
        table: ScoreTable | None,
        rows: npt.NDArray[np.int64],
        seed: int,
        last: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.int64]:
        """The rows of one epoch."""
        return rows[_subset(len(rows), self.num_draws(len(rows), epoch), epoch, seed)]

    def num_draws(self, eligible: int, epoch: int) -> int:
        """Rows of one epoch."""
        return resolve_keep(self.keep, eligible)


def _subset(count: int, size: int, epoch: int, seed: int) -> npt.NDArray[np.int64]:
    """The positions of one epoch: ``size`` consecutive ones of permutations of range(count), laid end to end.

    An epoch that begins at the end of one permutation takes the rest of its rows from the next one, where the rows
    that it has already come last: so no epoch holds a row twice, and no permutation leaves one out.
    """
    cycle, start = divmod(epoch * size, count)
    drawn = _permutation(count, size, cycle, seed)[start : start + size]
    if len(drawn) < size:
        drawn = np.concatenate([drawn, _permutation(count, size, cycle + 1, seed)[: size - len(drawn)]])
    return drawn


# A cache: each permutation builds on the one before.
_latest: dict[tuple[int, int, int], tuple[int, npt.NDArray[np.int64]]] = {}


def _permutation(count: int, size: int, cycle: int, seed: int) -> npt.NDArray[np.int64]:
    known, order = _latest.get((count, size, seed), (-1, np.empty(0, np.int64)))
    if known > cycle:
        known = -1
    for number in range(known + 1, cycle + 1):
        fresh = Permutation(count, mix(seed, _FRESH, number))(np.arange(count))
        begun = number * count % size  # rows of the epoch that goes over from the permutation before
        repeated = np.isin(fresh, order[count - begun :]) if begun else np.zeros(count, np.bool_)
        order = np.concatenate([fresh[~repeated], fresh[repeated]])
    _latest.clear()
    _latest[count, size, seed] = cycle, order
    return order
