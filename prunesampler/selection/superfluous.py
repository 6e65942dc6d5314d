"""Which rows a model has learned for good, so that it would hardly miss them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from prunesampler.errors import ArgumentError
from prunesampler.tables.score_table import ScoreTable

THRESHOLD = 0.05


def learned_for_good(table: ScoreTable) -> npt.NDArray[np.bool_]:
    """(len(table),) rows that were seen, were classified correctly at least once, and never wrongly after that."""
    if table.forgetting_events is None or table.learned is None:
        raise ArgumentError("table", 'must hold forgetting events and learned: score with "forgetting"', table)
    learned: npt.NDArray[np.bool_] = table.learned & (table.forgetting_events == 0)
    return learned if table.presentations is None else learned & (table.presentations > 0)


def superfluous(table: ScoreTable, by: str = "el2n", threshold: float = THRESHOLD) -> npt.NDArray[np.bool_]:
    """Rows that are learned for good, and whose score was low in both halves of the scoring epochs.

    A row is superfluous if it was learned and never forgotten (:func:`learned_for_good`) and its score plus half of
    its spread is at or below ``threshold``. Mean and spread say where the means of the two halves lie, so that is the
    higher one of them, exactly so where a row was presented as often in odd epochs as in even ones.

    EL2N is the norm of the loss's gradient with respect to the logits (Paul et al. 2021, section 2): 0 for a certain
    and right answer, up to √2 for a certain and wrong one. So a superfluous row pulls on the model with at most
    ``threshold``/√2 of a wrong one's force, and did so in both halves. Early epochs count towards the mean, in which
    every row still pulls: a short or a hard run finds few superfluous rows, or none.

    Args:
        table: with the column ``<by>_spread`` and forgetting, as a :class:`~prunesampler.ScoreTracker` makes it of
            two epochs or more under ``reduction="mean"``.
        by: the score; one for which higher is harder.
        threshold: a float > 0, in the unit of the score.

    Returns:
        (len(table),) bools, in the order of ``table.rows``. A row without a score or a spread is not superfluous.

    Raises:
        ArgumentError: an argument breaks its rule, or the table lacks what the rule reads.

    >>> table = ScoreTable(
    ...     {"el2n": [0.04, 0.04, 0.08, 0.9], "el2n_spread": [0.02, 0.02, 0.06, 0.1]},
    ...     forgetting_events=[0, 1, 0, 0], learned=[True, True, True, False],
    ... )
    >>> superfluous(table, threshold=0.1)
    array([ True, False, False, False])
    """
    check_threshold(threshold)
    if by not in table.directions:
        raise ArgumentError("by", f"must be a score of the table, one of {list(table.directions)}", by)
    if table.directions[by] == "lower":
        raise ArgumentError("by", "must be a score for which higher is harder", by)
    if f"{by}_spread" not in table.scores:
        raise ArgumentError(
            "by",
            f"must be a score with a column {by}_spread, which means over two scoring epochs or more have "
            '(ScoreTracker or attach, reduction="mean")',
            by,
        )
    higher_half = table.column(by) + table.scores[f"{by}_spread"] / 2
    return learned_for_good(table) & (higher_half <= np.float32(threshold))  # as exact as scores are: 0.1 is at 0.1


def check_threshold(threshold: Any) -> None:
    """Refuse what is no float > 0, or more than float32 holds."""
    number = isinstance(threshold, int | float | np.number) and not isinstance(threshold, bool)
    if not number or not 0 < threshold <= float(np.finfo(np.float32).max):
        raise ArgumentError("threshold", "must be a float > 0", threshold)
