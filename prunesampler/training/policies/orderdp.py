"""OrderDP: the hardest of a random part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from prunesampler.errors import check_number
from prunesampler.tables.score_table import ScoreTable
from prunesampler.training.policies.policy import Policy, hardness, random_rows

_PART = 0x6F726470  # keeps these draws apart from others of the same seed


@dataclass(frozen=True)
class OrderDP(Policy):
    """Every epoch the rows with the highest last loss among a random part of them (OrderDP, ICLR 2026).

    Neither weights nor epochs on all rows, but the first: the published options for ResNet-18 draw 30 % of the rows.

    Args:
        part: in (0, 1], the share of the rows that is drawn at random.
        top: in (0, 1], the share of that part, those with the highest loss, that the epoch reads.

    Raises:
        ArgumentError: an option breaks its rule.

    >>> OrderDP(part=1.0, top=0.5).draw(1, ScoreTable({"loss": [0.1, 3.0, 0.2, 4.0]}), np.arange(4), seed=0)
    array([1, 3])
    """

    part: float = 0.5
    top: float = 0.6
    score_epochs: ClassVar[int] = 1  # type: ignore[misc]
    reads: ClassVar[tuple[str, ...]] = ("loss",)  # type: ignore[misc]

    def __post_init__(self) -> None:
        for name in ("part", "top"):
            check_number(name, getattr(self, name), 0, 1, above=True)

    def draw(
        self,
        epoch: int,
        table: ScoreTable | None,
        rows: npt.NDArray[np.int64],
        seed: int,
        last: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.int64]:
        """The hardest of the part that the epoch draws; of equal losses those that were drawn first."""
        assert table is not None
        part = random_rows(rows, part_size(len(rows), self.part), seed, _PART, epoch)
        order = np.argsort(-hardness(table, "loss", part), kind="stable")
        return np.sort(part[order[: self.num_draws(len(rows), epoch)]])

    def num_draws(self, eligible: int, epoch: int) -> int:
        """``top`` of ``part`` of the rows, at least one."""
        return max(1, round(self.top * part_size(eligible, self.part)))


def part_size(count: int, share: float) -> int:
    """How many rows a share of so many is, at least one."""
    return max(1, round(share * count))
