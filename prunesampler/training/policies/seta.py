"""SeTa: a random part, grouped by loss, through which a window slides from easy to hard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from prunesampler.errors import ArgumentError, check_int, check_number
from prunesampler.tables.score_table import ScoreTable
from prunesampler.training.policies.annealing import check_annealing, is_annealing
from prunesampler.training.policies.orderdp import part_size
from prunesampler.training.policies.policy import Policy, hardness, random_rows

_PART = 0x73657461  # keeps these draws apart from others of the same seed


@dataclass(frozen=True)
class SeTa(Policy):
    """Every epoch some of the groups, from easy to hard, of a random part of the rows (Zhou et al. 2025).

    The part is grouped by one-dimensional k-means of the last losses. A window of ``window * groups`` groups begins
    one group further on every epoch, and at the easiest again after the hardest. No weights. The first epoch is on
    all rows, the last ones are on a random part without a window.

    Args:
        ratio: in [0, 1), the share of the rows that is left out at random; published 0.1 for CIFAR, 0 for ImageNet.
        groups: an int >= 1.
        window: in (0, 1], the share of the groups that an epoch reads; published 0.9 for CIFAR, 0.6 for ImageNet.
        anneal: in [0, 1), the share of the run, at its end, without a window.
        epochs: of the whole run, an int >= 1; needed where ``anneal`` is above 0.

    Raises:
        ArgumentError: an option breaks its rule, or ``epochs`` is missing.

    >>> policy, losses = SeTa(ratio=0, groups=3, window=0.7, anneal=0), ScoreTable({"loss": [0.1, 9.0, 0.2, 4.0]})
    >>> [policy.draw(epoch, losses, np.arange(4), seed=0).tolist() for epoch in (1, 2, 3)]
    [[1, 3], [0, 2, 3], [1, 3]]
    """

    ratio: float = 0.1
    groups: int = 5
    window: float = 0.9
    anneal: float = 0.125
    epochs: int | None = None
    score_epochs: ClassVar[int] = 1  # type: ignore[misc]
    reads: ClassVar[tuple[str, ...]] = ("loss",)  # type: ignore[misc]

    def __post_init__(self) -> None:
        check_number("ratio", self.ratio, 0, 1)
        if self.ratio == 1:
            raise ArgumentError("ratio", "must be below 1, or no row is left", self.ratio)
        check_int("groups", self.groups, 1)
        check_number("window", self.window, 0, 1, above=True)
        check_annealing(self.anneal, self.epochs)

    def draw(
        self,
        epoch: int,
        table: ScoreTable | None,
        rows: npt.NDArray[np.int64],
        seed: int,
        last: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.int64]:
        """The rows of the groups under the window."""
        part = np.sort(random_rows(rows, part_size(len(rows), 1 - self.ratio), seed, _PART, epoch))
        if is_annealing(epoch, self.anneal, self.epochs):
            return part
        assert table is not None
        losses = hardness(table, "loss", part)
        group = k_means(losses, self.groups)
        width = self._width
        first = epoch % (self.groups - width + 1)
        inside = part[(group >= first) & (group < first + width)]
        return inside if len(inside) else part

    def num_draws(self, eligible: int, epoch: int) -> int | None:
        """Known only where no window is used: groups differ in size."""
        whole = self._width == self.groups or is_annealing(epoch, self.anneal, self.epochs)
        return part_size(eligible, 1 - self.ratio) if whole else None

    def expected_draws(self, eligible: int, epoch: int) -> float:
        """As if groups were equally large."""
        known = self.num_draws(eligible, epoch)
        return part_size(eligible, 1 - self.ratio) * self._width / self.groups if known is None else known

    @property
    def _width(self) -> int:
        return max(1, round(self.groups * self.window))


def k_means(values: npt.NDArray[np.float64], groups: int) -> npt.NDArray[np.int64]:
    """The group of each value, from 0 for the lowest: Lloyd's k-means in one dimension, from evenly spread quantiles.

    Args:
        values: (N,) floats; +inf belongs to the highest group.
        groups: k, at least 1; some are empty where there are fewer distinct values.

    >>> k_means(np.array([5.0, 0.0, 0.2, 9.0, 5.1]), 3)
    array([1, 0, 0, 2, 1])
    """
    finite = np.sort(values[np.isfinite(values)])
    if not len(finite):
        return np.full(len(values), groups - 1)
    sums = np.concatenate([[0.0], np.cumsum(finite)])
    centres = np.quantile(finite, (np.arange(groups) + 0.5) / groups)
    while True:
        borders = (centres[1:] + centres[:-1]) / 2
        ends = np.concatenate([[0], np.searchsorted(finite, borders, side="left"), [len(finite)]])
        sizes = np.diff(ends)
        moved = np.where(sizes > 0, np.diff(sums[ends]) / np.maximum(sizes, 1), centres)
        if np.array_equal(moved, centres):
            return np.searchsorted(borders, values, side="right")
        centres = moved
