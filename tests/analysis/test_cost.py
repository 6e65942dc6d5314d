from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunesampler.analysis.cost import FORWARD, Scoring, cost, scoring_of
from prunesampler.errors import ArgumentError
from prunesampler.tables.score_table import ScoreTable

ONLINE = {"kind": "online", "epochs": 4, "reduction": "mean", "runs": 1}
RESCORED = {**ONLINE, "kind": "rescored", "epochs": 1}
ATTACHED = {"scoring": {"score_epochs": 10, "rescored": True}}


@given(st.integers(0, 20), st.integers(0, 60), st.integers(1, 9), st.integers(1, 60))
def test_costs_are_those_of_a_run_gone_through_epoch_by_epoch(inside: int, extra: int, tenths: int, more: int) -> None:
    kept, epochs = Fraction(tenths, 10), inside + more
    spent, first = Fraction(extra), None
    whole = None
    for epoch in range(1, 2000):
        spent += 1 if epoch <= inside else kept
        if epoch == epochs:
            whole = spent
        if first is None and spent < epoch:
            first = epoch
        if None not in (whole, first):
            break
    assert whole is not None
    scoring = Scoring(inside, float(extra))
    found = cost(scoring, tenths / 10, epochs, epoch_seconds=1800)
    assert found.total == pytest.approx(float(whole))
    assert found.break_even == first
    assert found.hours_full == epochs / 2
    assert found.hours_saved == pytest.approx(float(epochs - whole) / 2)


def test_what_keeps_all_saves_nothing() -> None:
    found = cost(Scoring(3, 0.0), 1.0, epochs=10, epoch_seconds=60)
    assert (found.break_even, found.total, found.hours_saved) == (None, 10, 0)
    assert cost(Scoring(3, 0.0), 0.5, epochs=10).hours_full is None
    assert cost(Scoring(3, 0.0), 0.5).total is None


@pytest.mark.parametrize(
    ("protocol", "provenance", "score_epochs", "expected"),
    [
        (ONLINE, {}, None, Scoring(4, 0.0)),
        (ONLINE, {"scoring": {"score_epochs": 4}}, None, Scoring(4, 0.0)),
        (ONLINE, {}, 7, Scoring(7, 0.0)),
        (RESCORED, ATTACHED, None, Scoring(10, FORWARD)),
        (RESCORED, {}, None, Scoring(0, FORWARD)),
        (RESCORED, {}, 20, Scoring(0, 20 + FORWARD)),
        ({**ONLINE, "runs": 3}, {}, None, Scoring(0, 12.0)),
        ({**RESCORED, "runs": 3}, {"merged_from": [{"digest": "a", "provenance": ATTACHED}]}, None, Scoring(0, 31.0)),
        (ONLINE, {"aligned_from": "sha256:a"}, None, Scoring(0, 4.0)),
        (None, {}, None, None),
        (None, {}, 5, Scoring(5, 0.0)),
        ("hand-made", {"scoring": "hand-made", "merged_from": 3}, None, None),
        ({"epochs": "many", "runs": "one"}, {}, None, None),
    ],
)
def test_the_table_says_what_scoring_cost(
    protocol: Any, provenance: Any, score_epochs: int | None, expected: Scoring | None
) -> None:
    protocols = None if protocol is None else {"el2n": protocol}
    table = ScoreTable({"el2n": [0.5]}, protocols=protocols, provenance=provenance)
    found = scoring_of(table, "el2n", score_epochs)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found.inside == expected.inside
        assert found.extra == pytest.approx(expected.extra)


@pytest.mark.parametrize(
    ("epochs", "seconds", "message"),
    [
        (3, None, "epochs must be an int above 3, the scoring epochs of the run, got 3"),
        (None, 60.0, "epoch_seconds needs epochs"),
        (10, 0.0, "epoch_seconds must be a float > 0, got 0.0"),
        (10, float("nan"), "epoch_seconds must be a float > 0, got nan"),
    ],
)
def test_impossible_runs_are_refused(epochs: int | None, seconds: float | None, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        cost(Scoring(3, 0.0), 0.5, epochs, seconds)


def test_scoring_takes_an_epoch_at_least() -> None:
    with pytest.raises(ArgumentError, match="score_epochs must be an int >= 1, got 0"):
        scoring_of(ScoreTable({"el2n": [0.5]}), "el2n", 0)
