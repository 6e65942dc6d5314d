"""Drawing exactly a budget of rows by inclusion probabilities, so that weights of 1/probability make sums unbiased."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prunesampler._random import mix
from prunesampler.errors import ArgumentError, check_int
from prunesampler.sampling.permutation import Permutation

_UNIT = 2**32  # probabilities are counted in this unit, so that they add up exactly
_SYSTEMATIC = 0x73797374  # keeps these draws apart from others of the same seed


def inclusion_probabilities(sizes: npt.ArrayLike, budget: int) -> npt.NDArray[np.float64]:
    """Probabilities in proportion to sizes, at most 1 each, that add up to a budget.

    Rows whose share would exceed 1 get 1, and the rest of the budget goes to the others in proportion (Särndal,
    Swensson and Wretman 1992, section 3.6.2). Sizes that add up to the budget already come back as they are.

    Args:
        sizes: (N,) finite numbers >= 0: probabilities, or importances of any scale.
        budget: how many rows are to be drawn, an int from 1 to the number of sizes above 0.

    Returns:
        (N,) float64 in [0, 1], with the sum ``budget``.

    Raises:
        ArgumentError: sizes or budget break their rule.

    >>> inclusion_probabilities([8, 1, 1], 2)
    array([1. , 0.5, 0.5])
    """
    found = np.array(sizes, dtype=np.float64)
    if found.ndim != 1 or not np.isfinite(found).all() or (found < 0).any():
        raise ArgumentError("probabilities", "must be (N,) finite numbers >= 0", sizes)
    budget = check_int("budget", budget, 1, int(np.count_nonzero(found)))
    open_ = np.flatnonzero(found)  # the rows that are not certain, nor impossible
    while len(open_):
        share = found[open_] / found[open_].sum() * (budget - np.count_nonzero(found < 0))
        if (share <= 1).all():
            found[open_] = share
            break
        found[open_[share > 1]] = -1  # marks a certain row
        open_ = open_[share <= 1]
    found[found < 0] = 1
    return found


def systematic_sample(probabilities: npt.ArrayLike, budget: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw exactly ``budget`` positions, each with its own probability.

    Systematic sampling in a random order (Madow 1949): probabilities are laid end to end along a line in a seeded
    order, and every position is drawn on whose part a point of the grid u, u + 1, u + 2, … falls, u uniform in [0, 1).
    No part is longer than 1, so none is drawn twice. Summing value/probability over the drawn positions estimates the
    sum over all without bias (Horvitz and Thompson 1952).

    Args:
        probabilities: (N,) floats in [0, 1] that add up to ``budget``, as :func:`inclusion_probabilities` makes them.
        budget: how many positions to draw.
        seed: any int; equal seeds draw equal positions.

    Returns:
        (budget,) int64, ascending and distinct.

    Raises:
        ArgumentError: probabilities outside [0, 1], or of another sum.

    >>> systematic_sample([1.0, 0.5, 0.5, 0.0], 2, seed=0)
    array([0, 1])
    """
    chances = np.asarray(probabilities, dtype=np.float64)
    if chances.ndim != 1 or not ((chances >= 0) & (chances <= 1)).all():
        raise ArgumentError("probabilities", "must be (N,) numbers in [0, 1]", probabilities)
    if abs(float(chances.sum()) - budget) > 1e-6 * max(1, len(chances)):
        raise ArgumentError("probabilities", f"must add up to the budget, {budget}", float(chances.sum()))
    order = Permutation(len(chances), mix(seed, _SYSTEMATIC))(np.arange(len(chances)))
    widths = np.rint(chances[order] * _UNIT).astype(np.int64)
    _settle(widths, budget * _UNIT - int(widths.sum()))
    ends = np.cumsum(widths)
    start = mix(seed, _SYSTEMATIC, 1) % _UNIT
    points = (ends - (start + 1)) // _UNIT  # of the grid below each end: on the parts up to there, counted from -1
    drawn = np.zeros(len(chances), dtype=bool)
    drawn[order[np.diff(points, prepend=-1) > 0]] = True
    return np.flatnonzero(drawn)


def _settle(widths: npt.NDArray[np.int64], missing: int) -> None:
    """Make up what rounding has added or lost, a little in each width that is neither 0 nor 1."""
    inner = np.flatnonzero((widths > 0) & (widths < _UNIT))
    while missing and len(inner):
        step = max(1, abs(missing) // len(inner)) * (1 if missing > 0 else -1)
        at = inner[: abs(missing) // abs(step)]
        changed = np.clip(widths[at] + step, 0, _UNIT)
        missing -= int((changed - widths[at]).sum())
        widths[at] = changed
        inner = inner[(widths[inner] > 0) & (widths[inner] < _UNIT)]
