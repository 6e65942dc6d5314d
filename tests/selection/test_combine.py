from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata, zscore

from prunesampler.errors import ArgumentError
from prunesampler.selection.combine import combine
from prunesampler.selection.select import select
from prunesampler.tables.score_table import ScoreTable


def table() -> ScoreTable:
    generator = np.random.default_rng(0)
    scores = {"el2n": np.round(generator.random(60), 1), "margin": generator.standard_normal(60)}
    scores["el2n"][4] = np.nan
    learned = np.arange(60) != 7
    return ScoreTable(
        scores, forgetting_events=generator.integers(0, 4, 60), learned=learned, keys=[*map(str, range(60))]
    )


def test_ranks_are_summed_in_the_direction_of_hardness() -> None:
    whole = table()
    found = combine(whole, {"el2n": 1, "margin": -0.5, "forgetting": 2}, by="rank")
    known = ~np.isnan(whole.scores["el2n"])
    el2n = (rankdata(whole.scores["el2n"][known]) - 1) / (known.sum() - 1)
    others = -0.5 * (rankdata(-whole.scores["margin"]) - 1) / 59 + 2 * (rankdata(whole.column("forgetting")) - 1) / 59
    np.testing.assert_allclose(found.scores["combined"][known], el2n + others[known], rtol=1e-6)
    assert np.isnan(found.scores["combined"][4])
    assert found.directions["combined"] == "higher"
    assert found.directions["margin"] == "lower"
    assert found.protocols["combined"]["weights"] == {"el2n": 1, "margin": -0.5, "forgetting": 2}
    assert (found.keys, found.scores["margin"].tolist()) == (whole.keys, whole.scores["margin"].tolist())
    assert len(select(found, 0.5, "combined")) == 30


def test_standard_scores_and_values() -> None:
    whole = table()
    margin, events = whole.scores["margin"].astype(float), whole.column("forgetting").astype(float)
    events[7] = events[np.isfinite(events)].max()  # never learned
    found = combine(whole, {"margin": 2, "forgetting": 1}, by="value", name="sum").scores["sum"]
    np.testing.assert_allclose(found, events - 2 * margin, rtol=1e-5)
    found = combine(whole, {"margin": 1}, by="standard").scores["combined"]
    np.testing.assert_allclose(found, zscore(-margin), atol=1e-5)


def test_one_score_alone_ranks_as_it_does_itself() -> None:
    whole = table()
    combined = combine(whole, {"margin": 3})
    assert (
        select(combined, 20, "combined", "bottom").rows.tolist() == select(whole, 20, "margin", "bottom").rows.tolist()
    )


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("weights", {"weights": {}}),
        ("weights", {"weights": ["el2n"]}),
        ("weights", {"weights": {"loss": 1}}),
        ("weights", {"weights": {"none": 1}}),
        ("weights['el2n']", {"weights": {"el2n": 0}}),
        ("weights['el2n']", {"weights": {"el2n": np.nan}}),
        ("by", {"by": "mean"}),
        ("name", {"name": "margin"}),
        ("scores", {"name": "row"}),
    ],
)
def test_what_is_refused(argument: str, options: dict[str, Any]) -> None:
    whole = table()
    whole = whole.replace(scores={**whole.scores, "none": np.full(60, np.nan)}, directions={"margin": "lower"})
    with pytest.raises(ArgumentError) as caught:
        combine(whole, **{"weights": {"el2n": 1}, **options})
    assert caught.value.argument == argument
