from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from prunesampler.errors import ArgumentError, PruneSamplerWarning
from prunesampler.selection.learned import _leave_one_out, fit_selector
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.score_table import ScoreTable
from tests.helpers.plain_geometry import blobs


def indicators(rows: int = 400, seed: int = 0) -> ScoreTable:
    generator = np.random.default_rng(seed)
    columns = {name: generator.standard_normal(rows) for name in ("good", "bad", "nothing")}
    columns["same"] = np.full(rows, 3.0)
    return ScoreTable(columns, directions={"bad": "lower"})


def measured(table: ScoreTable, count: int = 30, noise: float = 0.02, seed: int = 1) -> tuple[list[Any], Any]:
    generator = np.random.default_rng(seed)
    subsets = [generator.choice(len(table), 30, replace=False) for _ in range(count)]
    good, bad = table.scores["good"], table.scores["bad"]
    results = [0.8 + 0.1 * good[rows].mean() - 0.05 * bad[rows].mean() for rows in subsets]
    return subsets, results + noise * generator.standard_normal(count)


def test_leave_one_out_errors_are_those_of_refits() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((12, 3)), generator.standard_normal((12, 2))
    x -= x.mean(0)
    for column in range(2):
        errors = {}
        for penalty in np.logspace(-3, 3, 13) * 12:
            errors[penalty] = 0.0
            for out in range(12):
                rest = np.delete(np.arange(12), out)
                # The intercept is not penalised.
                design = np.c_[np.ones(11), x[rest]]
                weights = np.linalg.solve(
                    design.T @ design + penalty * np.diag([0, 1, 1, 1]), design.T @ y[rest, column]
                )
                errors[penalty] += (y[out, column] - np.r_[1, x[out]] @ weights) ** 2
        of_mean = sum((y[out, column] - np.delete(y[:, column], out).mean()) ** 2 for out in range(12))
        penalty, r_squared = (each[column] for each in _leave_one_out(x, y))
        assert penalty == pytest.approx(min(errors, key=errors.__getitem__))
        assert r_squared == pytest.approx(1 - min(errors.values()) / of_mean)


def test_the_signs_and_sizes_of_what_made_the_results_are_learned() -> None:
    table = indicators()
    selector = fit_selector(table, *measured(table, noise=0.001))
    assert selector.learned
    assert selector.r_squared > 0.9
    slopes = {name: weight / selector.scale[name] for name, weight in selector.weights.items()}
    assert slopes["good"] == pytest.approx(0.1, rel=0.1)
    assert slopes["bad"] == pytest.approx(-0.05, rel=0.1)
    assert abs(slopes["nothing"]) < 0.01
    assert slopes["same"] == 0
    quality = selector.predict(table)
    subsets, results = measured(table, noise=0, seed=9)
    np.testing.assert_allclose([quality[rows].mean() for rows in subsets], results, atol=0.005)
    again = fit_selector(table, [Coreset(rows, num_rows=400) for rows in measured(table)[0]], measured(table)[1])
    assert again.weights == fit_selector(table, *measured(table)).weights


def test_it_says_when_the_subsets_are_not_enough() -> None:
    table, told = indicators(), 0
    for seed in range(12):
        subsets, _ = measured(table, seed=seed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            selector = fit_selector(table, subsets, np.random.default_rng(seed).random(30))
        assert selector.learned != bool(caught)
        told += bool(caught)
    assert told >= 10  # pure noise passes in one of twenty
    with pytest.warns(PruneSamplerWarning, match="5 subsets are not enough to learn from") as caught:
        fit_selector(table, *measured(table, 5, noise=0.3))
    assert caught[0].filename == __file__


def test_the_best_of_each_cluster_are_selected_and_at_least_one() -> None:
    table = indicators()
    selector = fit_selector(table, *measured(table))
    quality = selector.predict(table)
    clusters = np.r_[np.zeros(300), np.ones(97), np.full(3, 2)].astype(int)
    found = selector.select(table, 40, clusters=clusters).rows
    assert np.bincount(clusters[found]).tolist() == [29, 10, 1]  # of 39 rows that are left, 29.5 and 9.5
    for each in range(3):
        members = np.flatnonzero(clusters == each)
        count = (clusters[found] == each).sum()
        assert set(members[np.argsort(-quality[members])[:count]]) == set(found[clusters[found] == each])
    features, label = blobs(400, spread=0.1)
    kept = selector.select(table, 0.1, features=features, clusters=4).rows
    assert np.abs(np.bincount(label[kept]) - np.bincount(label) / 10).max() <= 1
    assert quality[kept].mean() > np.sort(quality)[-120]


def test_a_row_without_an_indicator_has_no_quality() -> None:
    table = indicators()
    selector = fit_selector(table, *measured(table), by=["good"])
    values = table.scores["good"].copy()
    values[5] = np.nan
    assert np.flatnonzero(np.isnan(selector.predict(ScoreTable({"good": values})))).tolist() == [5]
    with pytest.raises(ArgumentError, match="must be one of"):
        selector.predict(ScoreTable({"el2n": [0.1]}))
    with pytest.raises(ArgumentError, match="features must be given for k-means"):
        selector.select(table, 10)


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("results", {"results": np.ones(30)}),
        ("results", {"results": np.arange(29.0)}),
        ("results", {"results": np.full(30, np.nan)}),
        ("results", {"subsets": [[1, 2]] * 4, "results": [1, 2, 3, 4]}),
        ("subsets", {"subsets": [[400]] * 30}),
        ("subsets", {"subsets": [[]] * 30}),
        ("by", {"by": []}),
        ("by", {"by": ["good", "good"]}),
        ("name", {"by": ["el2n"]}),
        ("seed", {"seed": -1}),
    ],
)
def test_what_is_refused(argument: str, change: dict[str, Any]) -> None:
    table = indicators()
    subsets, results = measured(table)
    with pytest.raises(ArgumentError) as caught:
        fit_selector(table, **{"subsets": subsets, "results": results, **change})
    assert caught.value.argument == argument
