"""Simulated models whose confidence and accuracy are known, so that what should be found is too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesampler.errors import ArgumentError
from prunesampler.selection.label_errors import Evidence, _isotonic, disagreement, evidence_of, mixture, wilson
from prunesampler.tables.score_table import ScoreTable

Columns = tuple[Evidence, np.ndarray]


def simulated(
    noise: float = 0.0,
    *,
    rows: int = 20_000,
    classes: int = 10,
    weights: Any = None,
    pairs: bool = False,
    accuracy: float = 0.85,
    seed: int = 0,
) -> Columns:
    """A model that is right as often as its confidence says, has not learned wrong labels by heart, and sees which
    classes are taken for which; and whether each label is wrong."""
    rng = np.random.default_rng(seed)
    true = rng.choice(classes, rows, p=weights)
    wrong = rng.random(rows) < noise
    shift = np.ones(rows, np.int64) if pairs else rng.integers(1, classes, rows)
    labels = np.where(wrong, (true + shift) % classes, true)
    confidence = rng.beta(6 * accuracy, 6 * (1 - accuracy), rows)
    right = rng.random(rows) < confidence
    answer = np.where(right, true, (true + rng.integers(1, classes, rows)) % classes)
    agrees = answer == labels
    runner_up = (labels + rng.integers(1, classes, rows)) % classes
    of_label = np.where(agrees, confidence, (1 - confidence) * rng.random(rows) * (0.2 + 0.8 * ~wrong))
    el2n = np.hypot(1 - of_label, np.where(agrees, (1 - confidence) * 0.7, confidence))
    signed = np.where(agrees, confidence, -confidence)
    return Evidence(labels, np.where(agrees, runner_up, answer), signed, el2n), wrong


def auroc(score: np.ndarray, wrong: np.ndarray) -> float:
    higher, lower = np.sort(score[wrong]), np.sort(score[~wrong])
    return float(np.searchsorted(lower, higher).mean() / len(lower))


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("noise", [0.05, 0.2, 0.4])
def test_the_noise_rate_is_found_and_the_wrong_rows_come_first(noise: float, pairs: bool) -> None:
    evidence, wrong = simulated(noise, pairs=pairs)
    found = disagreement(evidence)
    assert found.rate == pytest.approx(noise, abs=0.03)
    assert found.low < wrong.mean() < found.high
    assert found.probability.mean() == pytest.approx(found.rate, abs=1e-6)
    assert auroc(found.score, wrong) > auroc(evidence.hardness, wrong) - 0.015
    assert wrong[found.wrong()].mean() > 0.6
    order = np.argsort(found.score, kind="stable")
    assert (np.diff(found.probability[order]) >= 0).all()


def test_classes_that_are_taken_for_one_another_move_their_rows_up() -> None:
    evidence, wrong = simulated(0.2, pairs=True)
    assert auroc(disagreement(evidence).score, wrong) > auroc(evidence.hardness, wrong) + 0.01


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rows": 300},
        {"classes": 2},
        {"classes": 1000, "rows": 50_000},
        {"weights": [100 / 109, *[1 / 109] * 9]},
        {"weights": [0.99997, 0.00003], "classes": 2},
    ],
    ids=["clean", "few rows", "binary", "many classes", "imbalanced", "a tiny class"],
)
def test_of_right_labels_hardly_any_is_suspected(options: dict[str, Any]) -> None:
    found = disagreement(simulated(**{"accuracy": 0.95, **options})[0])
    assert found.low <= 0.001
    assert found.rate < 0.03
    assert found.wrong().mean() < 0.03


@pytest.mark.parametrize("classes", [2, 1000])
def test_wrong_labels_are_found_whatever_the_number_of_classes(classes: int) -> None:
    evidence, wrong = simulated(0.1, classes=classes, rows=50_000, accuracy=0.9)
    found = disagreement(evidence)
    assert found.low < 0.1 < found.high
    assert auroc(found.score, wrong) > 0.9


def test_rows_of_a_rare_class_are_not_suspected_because_the_model_never_learned_it() -> None:
    evidence, _ = simulated(0.02, weights=[0.99, *[0.01 / 9] * 9])
    rare = evidence.labels == 3
    missed = evidence._replace(
        suggested=np.where(rare, 0, evidence.suggested),
        confidence=np.where(rare, -0.7, evidence.confidence),
        hardness=np.where(rare, 1.1, evidence.hardness),
    )
    assert disagreement(missed).probability[rare].max() < 0.5 < disagreement(evidence).probability.max()


def test_the_interval_says_how_little_a_few_rows_tell() -> None:
    widths = [(found := disagreement(simulated(0.2, rows=rows)[0])).high - found.low for rows in (300, 3000, 30_000)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 0.3


def test_rows_without_an_answer_have_no_probability_and_change_nothing() -> None:
    evidence, _ = simulated(0.2, rows=2000)
    gone = np.arange(2000) % 4 == 0
    holes = evidence._replace(
        labels=np.where(gone & (np.arange(2000) % 8 == 0), -1, evidence.labels),
        confidence=np.where(gone, np.nan, evidence.confidence),
    )
    found, alone = disagreement(holes), disagreement(Evidence(*(column[~gone] for column in evidence)))
    np.testing.assert_array_equal(np.isnan(found.probability), gone)
    np.testing.assert_array_equal(found.probability[~gone], alone.probability)
    assert not found.wrong()[gone].any()
    with pytest.raises(ArgumentError, match="at least one row"):
        disagreement(holes._replace(confidence=np.full(2000, np.nan)))


@pytest.mark.parametrize("rows", [1, 2, 5, 25])
def test_a_handful_of_rows_and_infinite_or_constant_scores_pass(rows: int) -> None:
    evidence, _ = simulated(0.3, rows=rows)
    for hardness in (np.full(rows, np.inf), np.zeros(rows), np.where(np.arange(rows) % 2, np.inf, 0.0)):
        found = disagreement(evidence._replace(hardness=hardness))
        assert np.isfinite(found.probability).all()
        assert 0 <= found.low <= found.rate <= found.high <= 1


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(1, 4)), min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_isotonic_regression_is_that_of_scipy(points: list[tuple[int, int]]) -> None:
    values, weights = (np.array(column, float) for column in zip(*points, strict=True))
    expected = scipy.optimize.isotonic_regression(values, weights=weights).x
    np.testing.assert_allclose(_isotonic(values, weights), expected, atol=1e-9)


@pytest.mark.parametrize(("wrong", "of"), [(0, 20), (3, 50), (10, 10), (200, 1000)])
def test_wilsons_interval_is_that_of_scipy(wrong: int, of: int) -> None:
    import scipy.stats

    expected = scipy.stats.binomtest(wrong, of).proportion_ci(method="wilson")
    assert wilson(wrong / of, of) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_a_mixture_parts_two_heaps_and_ranks_by_the_score() -> None:
    rng = np.random.default_rng(0)
    wrong = rng.random(5000) < 0.2
    hardness = np.where(wrong, rng.normal(4, 0.5, 5000), rng.normal(0, 1, 5000))
    found = mixture(Evidence(np.zeros(5000, int), np.zeros(5000, int), np.zeros(5000), hardness))
    assert found.rate == pytest.approx(wrong.mean(), abs=0.01)
    assert (found.wrong() == wrong).mean() > 0.98
    assert (np.diff(found.probability[np.argsort(hardness)]) >= 0).all()
    assert np.isnan([found.low, found.high]).all()


def test_a_table_that_cannot_tell_says_which_column_it_lacks() -> None:
    columns = {"labels": [0, 1], "suggested_label": [1, 0], "signed_confidence": [0.5, -0.5]}
    for name in columns:
        held = {key: value for key, value in columns.items() if key != name}
        with pytest.raises(ArgumentError, match="must hold the column " + name.removesuffix("s")):
            evidence_of(ScoreTable({"el2n": [0.1, 0.2]}, **held), np.zeros(2))
