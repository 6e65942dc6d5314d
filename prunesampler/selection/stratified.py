"""Coverage-centric selection (Zheng et al. 2023, "Coverage-centric Coreset Selection for High Pruning Rates")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prunesampler.selection.candidates import Candidates

__all__ = ["default_offset", "even_sizes", "stratified"]


def stratified(candidates: Candidates, budget: Any, rng: Any, *, offset: Any, strata: int = 50) -> Candidates:
    """Algorithm 1: leave out the ``offset`` hardest, cut the score range of the rest into ``strata`` of equal width,
    divide the budget evenly among them from the smallest on, and draw at random within each. Infinite scores (never
    learned) are a stratum of their own.
    """
    split = candidates.drop("hardest", offset).split(strata)
    sizes = split.sizes.reshape(len(budget), -1)
    return split.take(
        "random", np.concatenate([even_sizes(*each) for each in zip(sizes.tolist(), budget, strict=True)])
    )


def default_offset(kept: float) -> float:
    """The share of the hardest rows to leave out where such a share of the rows is kept.

    The fewer rows are kept, the more of their places would go to outliers and wrong labels: 3.6 % at keep 0.7, 10 % at
    0.5, 20 % at 0.3.
    """
    return 0.4 * (1 - kept) ** 2


def even_sizes(counts: Sequence[int], budget: int) -> list[int]:
    """How many of each stratum to keep: evenly, from the smallest on; what one lacks goes to the larger ones.

    >>> even_sizes([10, 1, 5], 9)
    [4, 1, 4]
    """
    sizes = [0] * len(counts)
    order = sorted(range(len(counts)), key=counts.__getitem__)
    for remaining, stratum in zip(range(len(order), 0, -1), order, strict=True):
        sizes[stratum] = min(counts[stratum], int(budget) // remaining)
        budget -= sizes[stratum]
    return sizes
