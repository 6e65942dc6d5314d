from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunesampler.analysis.advice import FEW, MEASURED, NOISY, UNSETTLED, Evidence, advice, control, judge, verdict
from prunesampler.analysis.cost import Scoring, cost
from prunesampler.analysis.statistics import Reliability
from prunesampler.errors import ArgumentError
from prunesampler.selection.select import select
from prunesampler.tables.score_table import ScoreTable


def evidence(**changes: float | None) -> Evidence:
    return Evidence(
        **{"gone": 0.5, "good": 0.9, "good_gone": 0.95, "superfluous": 0.2, "superfluous_gone": 0.3, **changes}
    )


@pytest.mark.parametrize(
    ("changes", "expected", "reason"),
    [
        ({"gone": 0.0, "good_gone": None, "superfluous_gone": None}, "nothing goes", "No row would be removed."),
        ({"good": None, "good_gone": None}, "unknown", "it is unknown how many rows are learned for good"),
        ({"good": 0.08, "good_gone": 0.1, "superfluous_gone": 0.0}, "likely to cost", "Only 8 % of the rows are"),
        ({"good_gone": 1 - UNSETTLED - 0.01}, "likely to cost", "21 % of the removed rows are not learned for good:"),
        ({"good_gone": 1 - UNSETTLED + 0.01}, "may cost", "81 % of the removed rows are learned for good, but only"),
        ({"superfluous_gone": 1 - FEW - 0.01}, "may cost", "but only 89 % look superfluous (low and stable scores"),
        ({"superfluous_gone": 1 - FEW + 0.01}, "unlikely to cost", "20 % of the rows look superfluous, and 50 % would"),
        ({"superfluous": None, "superfluous_gone": None}, "may cost", "takes EL2N of two epochs or more"),
    ],
)
def test_verdicts_and_their_reasons(changes: dict[str, float | None], expected: str, reason: str) -> None:
    assert verdict(evidence(**changes)) == expected
    said = advice(evidence(**changes), None, None)
    assert reason in said
    if expected != "nothing goes":
        assert said.endswith("At equal cost, training shorter on all the data is the baseline to beat.")
        assert ("Run the control below, or prunesampler compare." in said) == (expected != "unlikely to cost")
        assert all((told in said) == (found == expected) for found, told in MEASURED.items())
        assert (f"{expected} accuracy." in said) == (expected != "unknown")


def test_the_figures_that_are_cited_were_measured() -> None:
    page = (Path(__file__).parents[2] / "benchmarks/results/cifar10-small/README.md").read_text(encoding="utf-8")
    gains = dict(
        re.findall(r"^\| (attach \(stratified\)|keep=\"auto\"|attach, keep=\"auto\") .* ([+-]\d\.\d\d) \|", page, re.M)
    )
    assert f"lost {-float(gains['attach (stratified)']):.1f} point" in MEASURED["likely to cost"]
    assert "keep 0.5: 38 % of the rows that would go are not learned for good" in page
    inside, anew = float(gains['attach, keep="auto"']), float(gains['keep="auto"'])
    assert f"gained {inside:.1f} points" in MEASURED["unlikely to cost"]
    assert f"lost {-anew:.1f} points" in MEASURED["unlikely to cost"]
    assert "5 % of the rows look superfluous" in page


def test_advice_depends_on_what_is_superfluous_on_noise_and_on_the_cost() -> None:
    assert 'keep="auto" removes only the 20 % that look superfluous.' in advice(evidence(), None, None)
    assert "auto" not in advice(evidence(superfluous=0.001), None, None)
    assert "auto" not in advice(evidence(superfluous_gone=1.0), None, None)
    noisy, sound = (Reliability("halves", 0.5, NOISY + shift) for shift in (-0.01, 0.01))
    told = "The scores are noisy (reliability 0.69): score more epochs, or merge several runs."
    assert told in advice(evidence(), noisy, None)
    assert "noisy" not in advice(evidence(), sound, None)
    price = cost(Scoring(inside=10, extra=0.0), 0.5, epochs=100)
    assert advice(evidence(), None, price).endswith("training on all the data for 55 epochs is the baseline to beat.")


@pytest.mark.parametrize(("inside", "options"), [(3, {"keep", "score_epochs", "method"}), (0, {"coreset"})])
def test_the_control_can_be_copied(inside: int, options: set[str]) -> None:
    command, python = control(0.5, "my runs/scores.parquet", inside)
    assert shlex.split(command)[:3] == ["prunesampler", "select", "my runs/scores.parquet"]
    statement = ast.parse(python).body[0]
    assert isinstance(statement, ast.Assign)
    assert isinstance(statement.value, ast.Call)
    assert {keyword.arg for keyword in statement.value.keywords} == options


ONLINE = {"kind": "online", "epochs": 4, "reduction": "mean", "runs": 1, "split_half": 0.5}


def table(count: int = 400, **changes: Any) -> ScoreTable:
    generator = np.random.default_rng(0)
    el2n = generator.random(count) ** 3
    columns = {
        "labels": generator.integers(-1, 4, count),
        "forgetting_events": generator.integers(0, 3, count) * (el2n > 0.05),
        "learned": el2n < 0.8,
        "presentations": np.where(generator.random(count) < 0.1, 0, 4),
        "keys": [f"image {row}" for row in range(count)],
        "protocols": {"el2n": ONLINE, "el2n_spread": {**ONLINE, "spread_of": "el2n"}},
        "provenance": {"scoring": {"score_epochs": 4}},
    }
    scores = {"el2n": np.where(columns["presentations"] > 0, el2n, np.nan), "el2n_spread": generator.random(count) / 20}
    return ScoreTable(scores, **{**columns, **changes})


def test_shares_are_those_of_the_rows_that_go() -> None:
    scored = table()
    found = judge(scored, [0.7, 0.3, "auto", 50], epochs=10, epoch_seconds=3600)
    assert scored.presentations is not None
    assert scored.forgetting_events is not None
    assert scored.learned is not None
    for case in found.cases:
        kept = set(select(scored, case.keep).rows.tolist())  # type: ignore[arg-type]
        gone = [row for row in range(len(scored)) if row not in kept]
        good = [
            bool(scored.presentations[row] and scored.learned[row] and not scored.forgetting_events[row])
            for row in gone
        ]
        spare = [
            is_good and scored.scores["el2n"][row] + scored.scores["el2n_spread"][row] / 2 <= 0.05
            for row, is_good in zip(gone, good, strict=True)
        ]
        assert (case.kept, case.gone) == (len(kept), len(gone))
        assert case.learned_for_good == pytest.approx(sum(good) / len(gone))
        assert case.superfluous == pytest.approx(sum(spare) / len(gone))
        assert case.cost is not None
        assert case.cost.hours_saved == pytest.approx(6 * len(gone) / len(scored))
        assert case.classes is not None
        ratios = [each.ratio for each in case.classes]
        assert ratios == sorted(ratios)
        assert sum(each.kept for each in case.classes) == len(kept)
    auto = found.cases[2]
    assert auto.superfluous == 1
    assert auto.verdict == "unlikely to cost"
    assert auto.gone == round((found.superfluous or 0) * len(scored)) > 0
    assert auto.control[0].endswith(f"--keep {auto.kept} --method random --seed 0")
    assert 'keep=0.7, score_epochs=4, method="random"' in found.cases[0].control[1]
    assert found.reliability is not None
    assert found.reliability.reliability == pytest.approx(2 / 3)


def test_the_hardest_rows_come_first() -> None:
    scored = table()
    assert scored.labels is not None
    found = judge(scored, [0.5]).hardest
    order = sorted(range(len(scored)), key=lambda row: -np.nan_to_num(scored.scores["el2n"][row], nan=-1.0))
    assert [each.row for each in found] == order[:10]
    for each in found:
        label = int(scored.labels[each.row])
        assert (each.key, each.label) == (f"image {each.row}", None if label < 0 else label)
        assert each.score == scored.scores["el2n"][each.row]
        assert each.forgetting == scored.column("forgetting")[each.row]
    by_margin = judge(ScoreTable({"margin": [3.0, -1.0, float("nan")]}), [0.5]).hardest
    assert [(each.row, each.key, each.label, each.forgetting) for each in by_margin] == [
        (1, None, None, None),
        (0, None, None, None),
    ]


def test_other_methods_and_scores_select_other_rows() -> None:
    scored = table()
    found = judge(scored, [0.5], by="forgetting", method="top")
    assert (found.by, found.method, found.reliability) == ("forgetting", "top", None)
    assert found.superfluous == judge(scored, [0.5]).superfluous


def test_little_is_known_of_a_plain_table() -> None:
    found = judge(ScoreTable({"loss": [0.5, 1.0, 2.0]}), [2, 1.0])
    assert (found.by, found.scoring, found.learned_for_good, found.superfluous) == ("loss", None, None, None)
    assert found.cases[0].cost is found.cases[0].classes is None
    assert [case.verdict for case in found.cases] == ["unknown", "nothing goes"]
    assert 'coreset="random.parquet"' in found.cases[0].control[1]


def test_mostly_unscored_rows_are_no_warning() -> None:
    assert judge(ScoreTable({"loss": [0.5] + [float("nan")] * 9}), [0.5]).cases[0].gone == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keeps": [0.5, 1]}, "keep must be a float in"),
        ({"keeps": [500]}, "keep must be at most"),
        ({"by": "loss"}, "by must be a score of the table"),
        ({"method": "best"}, "method must be one of"),
        ({"epochs": 4}, "epochs must be an int above 4"),
        ({"epoch_seconds": 3.0}, "epoch_seconds needs epochs"),
        ({"score_epochs": 0}, "score_epochs must be an int >= 1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        judge(table(), **{"keeps": [0.5], **options})


def test_the_length_of_scoring_must_be_known_where_a_saving_is_asked_for() -> None:
    plain = ScoreTable({"el2n": [0.5, 1.0]})
    with pytest.raises(ArgumentError, match="score_epochs must be given"):
        judge(plain, [0.5], epochs=10)
    found = judge(plain, [0.5], epochs=10, score_epochs=2).cases[0].cost
    assert found is not None
    assert found.total == 6
