"""A part of the rows, of which the least forgotten are exchanged now and then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from prunesampler.errors import ArgumentError, check_int, check_number
from prunesampler.selection.select import resolve_keep
from prunesampler.tables.score_table import ScoreTable
from prunesampler.training.policies.policy import Policy, by_hardness, random_rows

_START, _RETURNS, _TIES = 0x73776170, 0x6261636B, 0x74696573  # keep these draws apart from others of the same seed


@dataclass(frozen=True)
class SwapForgotten(Policy):
    """Start from a random part; every so often the least forgotten rows leave it, and as many others come in.

    "Peeling the Onion" (Kong et al. 2023), example level; the defaults are its schedule. Forgetting events are
    counted since the last exchange, and a row that was never learned counts as ``every`` more.

    Args:
        keep: a float in (0, 1], the fraction of the eligible rows, or an int >= 2, their number.
        swap: in [0, 1), the share of the eligible rows that is exchanged at a time, at most what is left out.
        every: epochs from one exchange to the next, an int >= 1.
        until: the last epoch that may begin with an exchange, an int >= 0.

    Raises:
        ArgumentError: an option breaks its rule.

    >>> policy = SwapForgotten(keep=3, swap=0.25, every=2)
    >>> table = ScoreTable({"recent_forgetting": [3, 0, 5, float("nan")]})
    >>> policy.draw(2, table, np.arange(4), seed=0, last=np.array([0, 1, 2]))
    array([0, 2, 3])
    """

    keep: float | int = 0.8
    swap: float = 0.05
    every: int = 30
    until: int = 150
    reads: ClassVar[tuple[str, ...]] = ("forgetting",)  # type: ignore[misc]

    def __post_init__(self) -> None:
        resolve_keep(self.keep, 2**63)
        check_number("swap", self.swap, 0, 1)
        if self.swap == 1:
            raise ArgumentError("swap", "must be below 1", self.swap)
        check_int("every", self.every, 1)
        check_int("until", self.until)

    @property
    def forgetting_window(self) -> int:  # type: ignore[override]
        """Forgetting events are counted from one exchange to the next."""
        return self.every

    def draw(
        self,
        epoch: int,
        table: ScoreTable | None,
        rows: npt.NDArray[np.int64],
        seed: int,
        last: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.int64]:
        """The rows of the epoch before; other ones where an exchange is due."""
        if last is None:
            return np.sort(random_rows(rows, self.num_draws(len(rows), epoch), seed, _START))
        if epoch % self.every or epoch > self.until or table is None:
            return last
        outside = np.setdiff1d(rows, last, assume_unique=True)
        count = min(round(self.swap * len(rows)), len(outside))
        if not count:
            return last
        # A row that was drawn and not seen, as an epoch was left early, counts as the most forgotten: it stays.
        order = by_hardness(table, "recent_forgetting", last, seed, _TIES, epoch)
        back = random_rows(outside, count, seed, _RETURNS, epoch)
        return np.sort(np.concatenate([order[count:], back]))

    def num_draws(self, eligible: int, epoch: int) -> int:
        """The rows of one epoch."""
        return resolve_keep(self.keep, eligible)
