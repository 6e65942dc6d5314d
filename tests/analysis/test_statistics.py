from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunesampler.analysis.statistics import PERCENTILES, by_default, distribution, figures, protocol_of, score_names
from prunesampler.errors import ArgumentError
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
        {},
        forgetting_events=[0, 3, 0, 1, 0],
        learned=[True, True, False, True, False],
        presentations=[4, 4, 4, 4, 0],
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
    assert by_default(table) == "el2n"
    assert by_default(table, "loss") == "loss"
    assert protocol_of(table, "loss") == {}
    with pytest.raises(ArgumentError, match=r"by must be a score of the table, one of \['loss', 'el2n'\]"):
        by_default(table, "el2n_spread")
    with pytest.raises(ArgumentError, match="by must be a score that at least one row has"):
        by_default(ScoreTable({"el2n": [NAN]}))
