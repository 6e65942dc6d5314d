"""Importance sampling: rows are drawn in proportion to their last score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from prunesampler.errors import ArgumentError, check_number
from prunesampler.selection.select import resolve_keep
from prunesampler.tables.score_table import ScoreTable
from prunesampler.training.policies.policy import Policy, Probabilities, hardness


@dataclass(frozen=True)
class ImportanceSampling(Policy):
    """Every epoch exactly ``keep`` rows, each with a probability in proportion to its last score.

    Samples are weighted by 1/probability, so that a step's expected gradient is that of all the data (Katharopoulos
    and Fleuret 2018). Last scores grow old, and a row whose score fell to nothing would come rarely and weigh much:
    a share of each probability is therefore the same for all rows, which bounds the weights (defensive mixture,
    Hesterberg 1995).

    Args:
        keep: a float in (0, 1], the fraction of the eligible rows, or an int >= 2, their number.
        by: a score of which higher is harder and that is never negative: ``"loss"``, ``"el2n"``, ``"entropy"``.
        max_weight: > 1, how many times the average a sample may weigh at most.

    Raises:
        ArgumentError: an option breaks its rule.

    >>> policy = ImportanceSampling(keep=2, max_weight=4.0)
    >>> policy.draw(1, ScoreTable({"loss": [0.0, 1.0, 1.0, 2.0]}), np.arange(4), seed=0).values
    array([0.125, 0.5  , 0.5  , 0.875])
    """

    keep: float | int = 0.5
    by: str = "loss"
    max_weight: float = 4.0
    score_epochs: ClassVar[int] = 1  # type: ignore[misc]

    def __post_init__(self) -> None:
        resolve_keep(self.keep, 2**63)
        if self.by not in ("loss", "el2n", "entropy"):
            raise ArgumentError("by", "must be 'loss', 'el2n' or 'entropy'", self.by)
        check_number("max_weight", self.max_weight, 1, above=True)

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The score that is drawn by."""
        return (self.by,)

    def draw(
        self,
        epoch: int,
        table: ScoreTable | None,
        rows: npt.NDArray[np.int64],
        seed: int,
        last: npt.NDArray[np.int64] | None = None,
    ) -> Probabilities:
        """Probabilities in proportion to the scores; a row without one has the mean score."""
        assert table is not None
        scores, budget = hardness(table, self.by, rows), self.num_draws(len(rows), epoch)
        finite = np.isfinite(scores)
        mean = scores[finite].mean() if finite.any() else 0.0
        shares = np.where(finite, scores, mean) / mean if mean > 0 else np.ones(len(rows))
        even = 1 / self.max_weight
        return Probabilities(budget / len(rows) * (even + (1 - even) * shares), budget, preserves="step")

    def num_draws(self, eligible: int, epoch: int) -> int:
        """The rows of one epoch."""
        return resolve_keep(self.keep, eligible)
