from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunesampler.analysis.statistics import (
    PERCENTILES,
    Reliability,
    class_scores,
    default_score,
    distribution,
    figures,
    kept_in,
    protocol_of,
    reliability_of,
    score_names,
    spearman_brown,
    survival,
)
from prunesampler.errors import ArgumentError, MismatchError
from prunesampler.selection.select import select
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.score_table import ScoreTable

NAN = float("nan")
numbers = st.floats(-1000, 1000, width=32) | st.integers(-5, 5) | st.just(NAN)


@given(st.lists(numbers, min_size=1))
def test_a_distribution_is_what_its_definition_says(values: list[float]) -> None:
    found = distribution(ScoreTable({"own": values}), "own")
    scored = sorted(float(np.float32(value)) for value in values if not math.isnan(value))
    assert (found.scored, found.unscored, found.infinite) == (len(scored), len(values) - len(scored), 0)
    assert sum(found.counts) == len(scored)
    if not scored:
        assert (found.mean, found.low, found.high, found.quantiles) == (None, None, None, {})
        return
    assert found.mean == pytest.approx(sum(scored) / len(scored), abs=1e-4)
    assert (found.low, found.high) == (scored[0], scored[-1])
    for percentile in PERCENTILES:
        least = next(v for v in scored if 100 * sum(other <= v for other in scored) >= percentile * len(scored))
        assert found.quantiles[f"p{percentile}"] == least
    assert len(found.edges) == len(found.counts) + 1 <= 65
    for i, count in enumerate(found.counts):
        last = i == len(found.counts) - 1
        inside = [
            v for v in scored if found.edges[i] <= v and (v < found.edges[i + 1] or (last and v <= found.edges[-1]))
        ]
        assert count == len(inside)


def test_never_learned_rows_are_infinite_and_spoil_no_figure() -> None:
    table = ScoreTable(
        {}, forgetting_events=[0, 3, 0, 1, 0], learned=[True, True, False, True, False], presentations=[4, 4, 4, 4, 0]
    )
    found = figures(table)
    assert (found.learned, found.never_forgotten, found.never_learned) == (0.75, 0.25, 0.25)
    assert (found.presentations, found.seen) == (16, 4)
    (forgetting,) = found.scores
    assert (forgetting.scored, forgetting.unscored, forgetting.infinite) == (4, 1, 1)
    assert forgetting.mean == pytest.approx(4 / 3)
    assert forgetting.quantiles["p99"] == math.inf
    assert forgetting.counts == (1, 1, 0, 1)
    assert forgetting.edges == (-0.5, 0.5, 1.5, 2.5, 3.5)


def test_counts_that_span_more_than_the_bins_share_them() -> None:
    found = distribution(ScoreTable({"count": np.arange(130)}), "count")
    assert found.counts == (3,) * 43 + (1,)


def test_a_part_of_the_rows() -> None:
    table = ScoreTable({"el2n": [0.25, 0.5, 1.0]})
    assert distribution(table, "el2n", np.array([True, False, True])).mean == 0.625


def test_figures_of_what_was_not_measured_are_none() -> None:
    found = figures(ScoreTable({"el2n": [NAN, NAN]}))
    assert (found.presentations, found.seen, found.learned, found.never_forgotten) == (None,) * 4
    assert found.classes is None
    assert figures(ScoreTable({}, forgetting_events=[1, 2])).learned is None
    assert figures(ScoreTable({}, forgetting_events=[-1], learned=[False])).learned is None


def test_a_spread_is_no_score_of_its_own() -> None:
    protocols = {"el2n_spread": {"spread_of": "el2n"}, "loss": "hand-made"}
    table = ScoreTable({"el2n_spread": [0.1], "loss": [1.0], "el2n": [0.5]}, protocols=protocols)
    assert score_names(table) == ["loss", "el2n"]
    assert [each.name for each in figures(table).scores] == ["loss", "el2n"]
    assert default_score(table) == "el2n"
    assert default_score(table, "loss") == "loss"
    assert protocol_of(table, "loss") == {}
    with pytest.raises(ArgumentError, match=r"by must be a score of the table, one of \['loss', 'el2n'\]"):
        default_score(table, "el2n_spread")
    with pytest.raises(ArgumentError, match="by must be a score that at least one row has"):
        default_score(ScoreTable({"el2n": [NAN]}))


@given(st.lists(st.tuples(st.sampled_from([-1, 0, 3, 2**31 - 1]), st.booleans()), min_size=1))
def test_survival_counts_each_class(rows: list[tuple[int, bool]]) -> None:
    rows.append((0, True))
    found = survival([label for label, _ in rows], [kept for _, kept in rows])
    mean = sum(kept for _, kept in rows) / len(rows)
    labels = sorted({label for label, _ in rows if label >= 0})
    assert [each.label for each in found] == labels + [None] * any(label == -1 for label, _ in rows)
    for each in found:
        of = [kept for label, kept in rows if label == (-1 if each.label is None else each.label)]
        assert (each.rows, each.kept, each.share) == (len(of), sum(of), sum(of) / len(of))
        assert each.ratio == pytest.approx(sum(of) / len(of) / mean)


def test_class_means_leave_out_what_has_no_value() -> None:
    table = ScoreTable(
        {"el2n": [0.5, np.nan, 1.0, np.nan]},
        labels=[7, 7, -1, 2],
        forgetting_events=[2, 4, 0, 1],
        learned=[True, True, False, True],
    )
    found = class_scores(table, ["el2n", "forgetting"])
    assert found is not None
    assert [(each.label, each.rows, each.share, each.means) for each in found] == [
        (2, 1, 0.25, {"el2n": None, "forgetting": 1.0}),
        (7, 2, 0.5, {"el2n": 0.5, "forgetting": 3.0}),
        (None, 1, 0.25, {"el2n": 1.0, "forgetting": None}),
    ]
    assert class_scores(ScoreTable({"el2n": [0.5]}), ["el2n"]) is None


def test_a_coreset_is_looked_up_in_the_scores_that_it_was_selected_from() -> None:
    table = ScoreTable({"el2n": [0.1, 0.9, 0.5]}, num_rows=6, rows=[1, 3, 5], labels=[0, 1, 1])
    coreset = select(table, keep=2, method="bottom")
    kept = kept_in(coreset, table)
    assert kept.tolist() == [True, False, True]
    assert table.labels is not None
    assert [each.share for each in survival(table.labels, kept)] == [1.0, 0.5]


@pytest.mark.parametrize(
    "coreset",
    [Coreset([1], num_rows=6, scores_digest="sha256:other"), Coreset([1], num_rows=7), Coreset([1, 2], num_rows=6)],
)
def test_other_scores_are_refused(coreset: Coreset) -> None:
    with pytest.raises(MismatchError, match="was not selected from these scores"):
        kept_in(coreset, ScoreTable({"el2n": [0.1, 0.9, 0.5]}, num_rows=6, rows=[1, 3, 5]))


@pytest.mark.parametrize("count", [1, 2, 10])
@pytest.mark.parametrize("r", [0.1, 0.75, 1.0])
def test_spearman_brown_is_the_correlation_of_two_means(count: int, r: float) -> None:
    covariance = np.full((2 * count, 2 * count), r) + (1 - r) * np.eye(2 * count)
    means = np.zeros((2, 2 * count))
    means[0, :count] = means[1, count:] = 1 / count
    of_means = means @ covariance @ means.T
    assert spearman_brown(r, count) == pytest.approx(of_means[0, 1] / of_means[0, 0])


def test_runs_count_before_halves() -> None:
    protocol = {"split_half": 0.9, "between_runs": 0.5, "runs": 3}
    merged = {"merged_from": [{"digest": str(i), "provenance": {}} for i in range(3)]}
    table = ScoreTable({"el2n": [0.5]}, protocols={"el2n": protocol}, provenance=merged)
    assert reliability_of(table, "el2n") == Reliability("runs", 0.5, pytest.approx(0.75))
    table = ScoreTable({"el2n": [0.5]}, protocols={"el2n": protocol})
    assert reliability_of(table, "el2n") == Reliability("halves", 0.9, pytest.approx(1.8 / 1.9))


def test_unknown_where_it_was_measured_once() -> None:
    for protocols in (None, {"el2n": {"epochs": 1}}, {"el2n": {"split_half": "high"}}):
        assert reliability_of(ScoreTable({"el2n": [0.5]}, protocols=protocols), "el2n") is None
