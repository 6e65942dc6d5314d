"""InfoBatch: a share of the rows below the mean loss is left out, and those of them that stay weigh more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from prunesampler.errors import ArgumentError, check_number
from prunesampler.selection.select import resolve_keep
from prunesampler.tables.score_table import ScoreTable
from prunesampler.training.policies.annealing import check_annealing, is_annealing
from prunesampler.training.policies.policy import Policy, Probabilities, hardness


@dataclass(frozen=True)
class InfoBatch(Policy):
    """Every epoch leave out a random share of the rows whose last loss is below the mean (Qin et al. 2024).

    Those of them that stay are weighted by 1/(1 - ratio), so that the expected sum of the gradients over an epoch is
    that of all the data. The first epoch and the last ones are on all rows.

    Args:
        ratio: in [0, 1), the share of the rows below the mean loss that an epoch leaves out.
        anneal: in [0, 1), the share of the run, at its end, that is on all rows.
        epochs: of the whole run, an int >= 1; needed where ``anneal`` is above 0.
        budget: None, as published: how many rows an epoch draws depends on how many losses are below the mean. A
            float in (0, 1], the share of the eligible rows, or an int >= 2, their number: exactly so many are drawn,
            with the probabilities scaled to it.

    Raises:
        ArgumentError: an option breaks its rule, or ``epochs`` is missing.

    >>> policy = InfoBatch(ratio=0.5, anneal=0)
    >>> drawn = policy.draw(1, ScoreTable({"loss": [0.1, 0.1, 0.2, 4.0]}), np.arange(4), seed=0)
    >>> drawn.values, drawn.budget
    (array([0.66666667, 0.66666667, 0.66666667, 1.        ]), 3)
    """

    ratio: float = 0.5
    anneal: float = 0.125
    epochs: int | None = None
    budget: float | int | None = None
    score_epochs: ClassVar[int] = 1  # type: ignore[misc]
    reads: ClassVar[tuple[str, ...]] = ("loss",)  # type: ignore[misc]

    def __post_init__(self) -> None:
        check_number("ratio", self.ratio, 0, 1)
        if self.ratio == 1:
            raise ArgumentError("ratio", "must be below 1, or the rows below the mean never come again", self.ratio)
        check_annealing(self.anneal, self.epochs)
        if self.budget is not None:
            resolve_keep(self.budget, 2**63, "budget")

    def draw(
        self,
        epoch: int,
        table: ScoreTable | None,
        rows: npt.NDArray[np.int64],
        seed: int,
        last: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.int64] | Probabilities:
        """All rows in the last epochs; before them those at or above the mean, and a share of the others."""
        if is_annealing(epoch, self.anneal, self.epochs):
            return rows
        assert table is not None
        losses = hardness(table, "loss", rows)
        finite = np.isfinite(losses)
        below = losses < (losses[finite].mean() if finite.any() else 0.0)
        kept, budget = 1 - self.ratio, self.num_draws(len(rows), epoch)
        if budget is None and below.any():
            stay = math.ceil(kept * below.sum())  # rounded up, so that no row is impossible
            kept, budget = stay / below.sum(), len(rows) - int(below.sum()) + stay
        return Probabilities(np.where(below, kept, 1.0), len(rows) if budget is None else budget)

    def num_draws(self, eligible: int, epoch: int) -> int | None:
        """The budget, where there is one; all rows in the last epochs."""
        if is_annealing(epoch, self.anneal, self.epochs):
            return eligible
        return None if self.budget is None else resolve_keep(self.budget, eligible, "budget")

    def expected_draws(self, eligible: int, epoch: int) -> float:
        """As if half of the rows were below the mean."""
        known = self.num_draws(eligible, epoch)
        return eligible * (1 - self.ratio / 2) if known is None else known
