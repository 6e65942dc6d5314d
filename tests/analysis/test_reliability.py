from __future__ import annotations

import numpy as np
import pytest

from prunesampler.analysis.reliability import Reliability, reliability_of, spearman_brown
from prunesampler.tables.score_table import ScoreTable


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
