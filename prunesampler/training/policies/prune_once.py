"""Score for a few epochs, select once, and train on what is kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from prunesampler.errors import ArgumentError, check_choice, check_int
from prunesampler.selection.select import Selection
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.score_table import ScoreTable
from prunesampler.training.policies.policy import EpochLength, Policy


@dataclass(frozen=True)
class PruneOnce(Policy):
    """Score all rows for some epochs, select once, and train on the kept rows from then on (Paul et al. 2021).

    What :func:`prunesampler.attach` does where no policy is given.

    Args:
        selection: which rows to keep; None scores only.
        score_epochs: passes to score, an int >= 1.
        epoch_length: pruned passes have the ``"kept"`` rows, or as many steps as before (``"full"``).

    Raises:
        ArgumentError: an option breaks its rule.

    >>> PruneOnce(Selection(keep=0.5), score_epochs=2).num_draws(100, epoch=2)
    50
    """

    selection: Selection | None = field(default_factory=lambda: Selection(keep=0.5))
    score_epochs: int = 10
    epoch_length: EpochLength = "kept"
    every_epoch: ClassVar[bool] = False  # type: ignore[misc]

    def __post_init__(self) -> None:
        check_int("score_epochs", self.score_epochs, 1)
        check_choice("epoch_length", self.epoch_length, ("kept", "full"))
        if self.selection is not None and not isinstance(self.selection, Selection):
            raise ArgumentError("selection", "must be a prunesampler.Selection or None", self.selection)

    def draw(
        self,
        epoch: int,
        table: ScoreTable | None,
        rows: npt.NDArray[np.int64],
        seed: int,
        last: npt.NDArray[np.int64] | None = None,
    ) -> Coreset:
        """The kept rows; they are the same in every epoch."""
        assert self.selection is not None
        assert table is not None
        return self.selection(table, eligible=None if len(rows) == table.num_rows else rows)

    def num_draws(self, eligible: int, epoch: int) -> int | None:
        """Kept rows; None where a rule (``keep="auto"``) leaves that to the scores."""
        return eligible if self.selection is None else self.selection.check(eligible)

    def to_dict(self) -> dict[str, Any]:
        """Its options as JSON values."""
        return {
            "score_epochs": self.score_epochs,
            "selection": None if self.selection is None else self.selection.to_dict(),
            "epoch_length": self.epoch_length,
        }
