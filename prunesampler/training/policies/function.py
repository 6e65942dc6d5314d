"""A user's own function as a policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prunesampler.errors import check_int
from prunesampler.tables.score_table import ScoreTable
from prunesampler.training.policies.policy import Draw, Policy


@dataclass(frozen=True)
class FunctionPolicy(Policy):
    """Each epoch what a function answers: (epoch, table) → rows, or :class:`Probabilities`."""

    function: Callable[[int, ScoreTable | None], Draw]
    reads: tuple[str, ...] = ()
    score_epochs: int = 0

    def __post_init__(self) -> None:
        check_int("score_epochs", self.score_epochs, 1 if self.reads else 0)

    def draw(
        self,
        epoch: int,
        table: ScoreTable | None,
        rows: npt.NDArray[np.int64],
        seed: int,
        last: npt.NDArray[np.int64] | None = None,
    ) -> Draw:
        """What the function answers."""
        return self.function(epoch, table)

    def num_draws(self, eligible: int, epoch: int) -> None:
        """Not known before the function is asked."""

    def to_dict(self) -> dict[str, Any]:
        """Its name and options; the function itself cannot be kept."""
        function = self.function
        name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"
        return {"name": name, "reads": list(self.reads), "score_epochs": self.score_epochs}
