"""Selection by the order of hardness alone, and at random."""

from __future__ import annotations

from typing import Any

from prunesampler.selection.candidates import Candidates

__all__ = ["bottom", "random", "top", "window"]


def top(candidates: Candidates, budget: Any, rng: Any) -> Candidates:
    """The hardest rows. Below keep 0.6 they usually train worse than a random set of the same size."""
    return candidates.take("hardest", budget)


def bottom(candidates: Candidates, budget: Any, rng: Any) -> Candidates:
    """The easiest rows."""
    return candidates.take("easiest", budget)


def window(candidates: Candidates, budget: Any, rng: Any, *, offset: Any) -> Candidates:
    """The hardest rows after the ``offset`` hardest (Paul et al. 2021, section 4)."""
    return candidates.take("hardest", budget, skip=offset)


def random(candidates: Candidates, budget: Any, rng: Any) -> Candidates:
    """Rows at random, in the order of their tie keys, so that a larger budget adds to a smaller one."""
    return candidates.take("random", budget)
