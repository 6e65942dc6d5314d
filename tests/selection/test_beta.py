from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import beta as beta_distribution
from scipy.stats import chisquare

from prunesampler.errors import ArgumentError
from prunesampler.selection.select import Selection, select
from prunesampler.tables.score_table import ScoreTable


def scored(rows: int, seed: int = 0) -> ScoreTable:
    p = np.random.default_rng(seed).random(rows)
    return ScoreTable({"dual": 0.3 * p * (1 - p) + 0.01, "confidence": p})


@pytest.mark.parametrize("budget", [1, 2])
def test_rows_are_drawn_by_score_and_the_density_of_the_beta_distribution(budget: int) -> None:
    table = scored(12)
    score, p = (table.scores[name].astype(float) for name in ("dual", "confidence"))
    b = 15 * (1 - p[np.argsort(score)[-10:]].mean()) * (1 - (1 - budget / 12) ** 4)
    weight = beta_distribution.pdf(p, 16 - b, b) * score
    weight /= weight.sum()
    # Each row first, or after any other one: numpy's own draw without replacement.
    expected = (
        weight
        if budget == 1
        else weight + ((weight[:, None] / (1 - weight[:, None])) * weight).sum(0) - weight**2 / (1 - weight)
    )
    counts = np.zeros(12)
    selections = (Selection(budget / 12, "dual", "beta", seed=seed) for seed in range(1500))
    for each in selections:
        counts[each(table).rows] += 1
    likely = expected * 1500 > 5
    observed, wanted = np.r_[counts[likely], counts[~likely].sum()], np.r_[expected[likely], expected[~likely].sum()]
    if budget == 1:
        assert chisquare(observed, 1500 * wanted).pvalue > 0.001
    else:
        np.testing.assert_allclose(observed, 1500 * wanted, atol=5 * np.sqrt(1500 * wanted.max() / 4))


def test_the_fewer_are_kept_the_easier_they_are() -> None:
    table = scored(4000)
    means = [table.scores["confidence"][select(table, keep, "dual", "beta").rows].mean() for keep in (0.7, 0.3, 0.1)]
    assert means[0] < means[1] < means[2]
    later = select(table, 0.3, "dual", "beta", method_options={"c": 11.0}).rows
    assert table.scores["confidence"][later].mean() < means[1]
    assert len(select(table, 1.0, "dual", "beta")) == 4000


def test_the_column_may_have_another_name_and_extremes() -> None:
    p = np.r_[np.zeros(20), np.ones(20), np.full(10, 0.5)]
    table = ScoreTable({"dual": np.r_[np.zeros(30), np.ones(20)], "p": p})
    kept = select(table, 20, "dual", "beta", method_options={"confidence": "p"}).rows
    assert kept.tolist() == list(range(30, 50))  # a score of 0 is drawn last
    assert len(select(table, 45, "dual", "beta", method_options={"confidence": "p"})) == 45


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("by", {"by": "margin"}),
    ("method_options", {"method_options": {"confidence": "none"}}),
    ("confidence", {"method_options": {"confidence": "margin"}}),
    ("confidence", {"method_options": {"confidence": "part"}}),
    ("confidence", {"method_options": {"confidence": 3}}),
    ("c", {"method_options": {"c": 0}}),
]


@pytest.mark.parametrize(("argument", "options"), REFUSED)
def test_what_is_refused(argument: str, options: dict[str, Any]) -> None:
    columns = {"dual": np.ones(9), "confidence": np.full(9, 0.5), "margin": np.arange(9.0), "part": np.full(9, 0.5)}
    columns["part"][3] = np.nan
    with pytest.raises(ArgumentError) as caught:
        select(ScoreTable(columns), 3, **{"by": "dual", "method": "beta", **options})
    assert caught.value.argument == argument
