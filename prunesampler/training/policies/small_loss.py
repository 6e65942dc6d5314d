"""The rows with the lowest running loss, for labels of which some are wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from prunesampler.errors import ArgumentError, check_int, check_number
from prunesampler.selection.select import resolve_keep
from prunesampler.tables.score_table import ScoreTable
from prunesampler.tracking.totals import Reduction
from prunesampler.training.policies.policy import Policy, by_hardness, random_rows

_RETURNS, _TIES = 0x736D616C, 0x74696573  # keep these draws apart from others of the same seed


@dataclass(frozen=True)
class SmallLoss(Policy):
    """Every epoch the rows with the lowest running score, and a few of the others, so that they can come back.

    A network learns right labels before wrong ones, so while it is young a high loss marks the wrong ones (the
    small-loss rule of Co-teaching, Han et al. 2018, by running means and with a return). It looks again every epoch,
    where one early selection throws hard rows out with the wrong ones.

    Args:
        keep: a float in (0, 1], the fraction of the eligible rows, or an int >= 2, their number: those with the
            lowest score. Mind how many labels are wrong: 0.6 where 40 % are.
        by: ``"el2n"``, ``"loss"`` or ``"margin"``, whose running mean over epochs is read.
        back: in [0, 1], the share of the other rows that an epoch draws as well, at random.
        score_epochs: epochs on all rows first, an int >= 1.

    Raises:
        ArgumentError: an option breaks its rule.

    >>> policy = SmallLoss(keep=0.5, back=0.5)
    >>> policy.draw(4, ScoreTable({"el2n": [0.1, 0.9, 0.2, 0.8]}), np.arange(4), seed=0)
    array([0, 1, 2])
    """

    keep: float | int = 0.7
    by: str = "el2n"
    back: float = 0.15
    score_epochs: int = 4
    reduction: ClassVar[Reduction] = "running"

    def __post_init__(self) -> None:
        resolve_keep(self.keep, 2**63)
        if self.by not in ("el2n", "loss", "margin"):
            raise ArgumentError("by", "must be 'el2n', 'loss' or 'margin'", self.by)
        check_number("back", self.back, 0, 1)
        check_int("score_epochs", self.score_epochs, 1)

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The score whose lowest values are drawn."""
        return (self.by,)

    def draw(
        self,
        epoch: int,
        table: ScoreTable | None,
        rows: npt.NDArray[np.int64],
        seed: int,
        last: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.int64]:
        """The easiest rows, and some others."""
        assert table is not None
        order = by_hardness(table, self.by, rows, seed, _TIES, epoch)
        count = resolve_keep(self.keep, len(rows))
        back = random_rows(order[count:], self.num_draws(len(rows), epoch) - count, seed, _RETURNS, epoch)
        return np.sort(np.concatenate([order[:count], back]))

    def num_draws(self, eligible: int, epoch: int) -> int:
        """The easiest rows, and some others."""
        count = resolve_keep(self.keep, eligible)
        return count + round(self.back * (eligible - count))
