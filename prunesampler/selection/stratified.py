"""Coverage-centric selection (Zheng et al. 2023, "Coverage-centric Coreset Selection for High Pruning Rates")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prunesampler.selection.candidates import Candidates


def stratified(candidates: Candidates, budget: Any, rng: Any, *, offset: Any, strata: int = 50) -> Candidates:
    """Algorithm 1, with the rows of infinite scores (never learned) as a stratum of their own."""
    split = candidates.drop("hardest", offset).split(strata)
    groups = zip(split.sizes.reshape(len(budget), -1).tolist(), budget, strict=True)
    return split.take("random", np.concatenate([even_sizes(*each) for each in groups]))


def even_sizes(counts: Sequence[int], budget: int) -> list[int]:
    """How many of each stratum to keep: evenly, from the smallest on; what one lacks goes to the larger ones."""
    sizes = [0] * len(counts)
    order = sorted(range(len(counts)), key=counts.__getitem__)
    for remaining, stratum in zip(range(len(order), 0, -1), order, strict=True):
        sizes[stratum] = min(counts[stratum], int(budget) // remaining)
        budget -= sizes[stratum]
    return sizes
