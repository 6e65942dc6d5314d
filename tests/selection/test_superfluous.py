from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from prunesampler.errors import ArgumentError
from prunesampler.selection.superfluous import THRESHOLD, learned_for_good, superfluous
from prunesampler.tables.score_table import ScoreTable

FLOAT = st.floats(0, 1.5, width=32) | st.just(math.nan)


@given(
    rows=st.lists(st.tuples(FLOAT, FLOAT, st.integers(-1, 2), st.booleans(), st.integers(0, 2)), min_size=1),
    threshold=st.floats(0.01, 2),
    counted=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_the_rule_row_by_row(rows: Any, threshold: float, counted: bool) -> None:
    score, spread, events, learned, presentations = (list(column) for column in zip(*rows, strict=True))
    table = ScoreTable(
        {"mine": score, "mine_spread": spread},
        forgetting_events=events,
        learned=learned,
        presentations=presentations if counted else None,
    )
    for_good = [row[3] and row[2] == 0 and (row[4] > 0 or not counted) for row in rows]
    assert learned_for_good(table).tolist() == for_good
    higher = [row[0] + row[1] / 2 for row in rows]
    found = superfluous(table, "mine", threshold).tolist()
    for good, value, gone in zip(for_good, higher, found, strict=True):
        if not math.isclose(value, threshold, rel_tol=1e-6):
            assert gone == (good and value <= threshold)


def test_a_score_of_the_threshold_is_at_it() -> None:
    for value in (0.1, 0.2, 0.7):  # none of which float32 can hold
        assert superfluous(table_of({"el2n": [value] * 2, "el2n_spread": [0.0] * 2}), threshold=value).all()


def table_of(scores: dict[str, Any], **columns: Any) -> ScoreTable:
    return ScoreTable(scores, **{"forgetting_events": [0, 0], "learned": [True, True], **columns})


def test_both_halves_are_at_or_below_the_threshold() -> None:
    odd, even = np.array([0.0, 0.05]), np.array([0.125, 0.0625])
    table = table_of({"el2n": (odd + even) / 2, "el2n_spread": np.abs(odd - even)})
    assert superfluous(table, threshold=0.125).tolist() == [True, True]
    assert superfluous(table, threshold=0.124).tolist() == [False, True]
    assert superfluous(table).tolist() == (np.maximum(odd, even) <= THRESHOLD).tolist()


GOOD: dict[str, Any] = {"el2n": [0.1, 0.2], "el2n_spread": [0.0, 0.0]}


@pytest.mark.parametrize(
    ("table", "options", "match"),
    [
        (table_of(GOOD), {"by": "loss"}, "^by must be a score of the table"),
        (table_of(GOOD), {"by": "forgetting"}, "forgetting_spread"),
        (table_of({"el2n": [0.1, 0.2]}), {}, "el2n_spread, which means over two scoring epochs"),
        (
            table_of({"margin": [0.1, 0.2], "margin_spread": [0.0, 0.0]}),
            {"by": "margin"},
            "^by must .* higher is harder",
        ),
        (ScoreTable(GOOD), {}, '^table must hold forgetting events and learned: score with "forgetting"'),
        (table_of(GOOD, learned=None), {}, "^table must hold"),
        *[
            (table_of(GOOD), {"threshold": value}, "^threshold must be a float > 0")
            for value in (0, -0.1, math.nan, math.inf, 10**400, True, "0.1", None)
        ],
    ],
)
def test_what_is_missing_or_wrong_is_named(table: ScoreTable, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        superfluous(table, **options)
