from __future__ import annotations

import ast
import shlex

import pytest

from prunesampler.analysis.advice import FEW, NOISY, UNSETTLED, Evidence, advice, control, verdict
from prunesampler.analysis.cost import Scoring, cost
from prunesampler.analysis.reliability import Reliability


def evidence(**changes: float | None) -> Evidence:
    return Evidence(**{"gone": 0.5, "good": 0.9, "good_gone": 0.95, "spare": 0.2, "spare_gone": 0.3, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"gone": 0.0, "good_gone": None, "spare_gone": None}, "nothing goes"),
        ({"good": None, "good_gone": None, "spare": None, "spare_gone": None}, "unknown"),
        ({"good_gone": 0.1, "spare_gone": 0.0}, "likely to cost"),
        ({"good_gone": 1 - UNSETTLED - 0.01}, "likely to cost"),
        ({"good_gone": 1 - UNSETTLED + 0.01}, "may cost"),
        ({"spare_gone": 1 - FEW - 0.01}, "may cost"),
        ({"spare_gone": 1 - FEW + 0.01}, "unlikely to cost"),
        ({"good_gone": 1.0, "spare": None, "spare_gone": None}, "may cost"),
    ],
)
def test_verdicts(changes: dict[str, float | None], expected: str) -> None:
    assert verdict(evidence(**changes)) == expected
    said = advice(evidence(**changes), None, None)
    if expected == "nothing goes":
        assert said == "No row would go."
    else:
        assert said.endswith("At equal cost, training shorter on all the data is the arm to beat.")
        assert ("Run the control below." in said) == (expected != "unlikely to cost")
        assert ("nothing tells" if expected == "unknown" else f"{expected} accuracy.") in said


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"good": 0.08, "good_gone": 0.1}, "Only 8 % of the rows are learned for good, and 50 % would go:"),
        ({"good_gone": 0.4}, "60 % of the rows that would go are not learned for good:"),
        ({"spare": None, "spare_gone": None}, "takes EL2N of two epochs or more: may cost"),
        ({}, "95 % of the rows that would go are learned for good, but 30 % of them look superfluous"),
        ({"gone": 0.2, "spare_gone": 0.95}, "20 % of the rows look superfluous, and 20 % would go: unlikely"),
    ],
)
def test_reasons(changes: dict[str, float | None], sentence: str) -> None:
    assert sentence in advice(evidence(**changes), None, None)


def test_what_is_superfluous_is_offered_where_there_is_some() -> None:
    assert 'keep="auto" removes just the 20 % that look superfluous.' in advice(evidence(), None, None)
    assert "auto" not in advice(evidence(spare=0.001), None, None)
    assert "auto" not in advice(evidence(spare_gone=1.0), None, None)


def test_noisy_scores_are_called_so() -> None:
    noisy, sound = (Reliability("halves", 0.5, NOISY + shift) for shift in (-0.01, 0.01))
    assert "The scores are noisy (reliability 0.69): score more epochs, or merge runs." in advice(
        evidence(), noisy, None
    )
    assert "noisy" not in advice(evidence(), sound, None)


def test_the_arm_to_beat_is_as_long_as_the_cost() -> None:
    price = cost(Scoring(inside=10, extra=0.0), 0.5, epochs=100)
    assert advice(evidence(), None, price).endswith("training on all the data for 55 epochs is the arm to beat.")


@pytest.mark.parametrize(("inside", "options"), [(3, {"keep", "score_epochs", "method"}), (0, {"coreset"})])
def test_the_control_can_be_copied(inside: int, options: set[str]) -> None:
    command, python = control(0.5, "my runs/scores.parquet", inside)
    assert shlex.split(command)[:3] == ["prunesampler", "select", "my runs/scores.parquet"]
    statement = ast.parse(python).body[0]
    assert isinstance(statement, ast.Assign)
    assert isinstance(statement.value, ast.Call)
    assert {keyword.arg for keyword in statement.value.keywords} == options
