"""Several scores made one, to select by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from prunesampler.errors import ArgumentError, check_choice, check_number
from prunesampler.tables.score_table import ScoreTable

By = Literal["rank", "standard", "value"]
Floats = npt.NDArray[np.float64]


def combine(table: ScoreTable, weights: Mapping[str, float], *, by: By = "rank", name: str = "combined") -> ScoreTable:
    """The table with one more score: a weighted sum of others, each turned first so that higher is harder.

    So a positive weight always means harder by that score, whatever its direction: ``{"el2n": 1, "margin": 0.5}`` are
    two votes for hard rows, of which margin's are the low margins, and ``"margin": -0.5`` is one for easy ones.

    Args:
        table: the scores.
        weights: score → finite number, not 0.
        by: what is summed: the ``"rank"`` among the rows that have the score, from 0 for the easiest to 1, equal ones
            sharing their mean; the ``"standard"`` score, of mean 0 and deviation 1; or the ``"value"``. Infinite
            values, of rows that were never learned, are the highest of ranks, and else the highest finite one.
        name: of the new score, whose direction is ``"higher"``. A row that lacks one of the scores has none.

    Raises:
        ArgumentError: an argument breaks its rule.

    >>> table = ScoreTable({"el2n": [0.1, 0.9, 0.5], "margin": [3.0, -1.0, 4.0]})
    >>> combine(table, {"el2n": 1, "margin": 0.5}).scores["combined"]
    array([0.25, 1.5 , 0.5 ], dtype=float32)
    """
    check_choice("by", by, ("rank", "standard", "value"))
    if not isinstance(weights, Mapping) or not weights:
        raise ArgumentError("weights", "must be a mapping of at least one score to its weight", weights)
    if name in table.directions:
        raise ArgumentError("name", "must not be that of a score of the table", name)
    total = np.zeros(len(table))
    for score, weight in weights.items():
        if score not in table.directions:
            raise ArgumentError("weights", f"must name scores of the table, {list(table.directions)}", score)
        if not check_number(f"weights[{score!r}]", weight):
            raise ArgumentError(f"weights[{score!r}]", "must not be 0: leave the score out", weight)
        hardness = table.column(score).astype(np.float64) * (-1 if table.directions[score] == "lower" else 1)
        if not np.isfinite(hardness).any():
            raise ArgumentError("weights", "must name scores that at least one row has", score)
        total += weight * (ranks(hardness) if by == "rank" else _finite(hardness, standard=by == "standard"))
    return table.replace(
        scores={**table.scores, name: total},
        directions={**table.directions, name: "higher"},
        protocols={**table.protocols, name: {"kind": "combined", "weights": dict(weights), "by": by}},
    )


def ranks(values: Floats) -> Floats:
    """(N,) from 0 for the lowest to 1, equal ones sharing their mean; NaN for NaN.

    >>> ranks(np.array([5.0, np.nan, 2.0, 5.0]))
    array([0.75,  nan, 0.  , 0.75])
    """
    found = np.full(len(values), np.nan)
    known = ~np.isnan(values)
    _, at, counts = np.unique(values[known], return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    found[known] = middle[at] / max(1, known.sum() - 1)
    return found


def _finite(values: Floats, *, standard: bool) -> Floats:
    finite = values[np.isfinite(values)]
    values = np.clip(values, finite.min(), finite.max())
    if not standard:
        return values
    return (values - finite.mean()) / (finite.std() or 1)  # type: ignore[no-any-return]
