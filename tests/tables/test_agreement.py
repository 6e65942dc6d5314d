from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings

from prunesampler.errors import ArgumentError
from prunesampler.tables import agreement
from prunesampler.tables.agreement import overlap, spearman

NAN, INF = math.nan, math.inf
# A small range for many ties; everything that a column of scores may hold.
VALUES = st.integers(-3, 3).map(float) | st.floats(width=32)
PAIRS = st.lists(st.tuples(VALUES, VALUES), max_size=30)


def columns(pairs: list[tuple[float, float]]) -> tuple[Any, Any]:
    array = np.array(pairs, np.float32).reshape(-1, 2)
    return array[:, 0], array[:, 1]


@given(pairs=PAIRS)
@settings(max_examples=200)
def test_spearman_against_scipy(pairs: list[tuple[float, float]]) -> None:
    a, b = columns(pairs)
    both = ~np.isnan(a) & ~np.isnan(b)
    left, right = a[both].astype(np.float64), b[both].astype(np.float64)
    found = spearman(a, b)
    assert isinstance(found, float)
    if len(set(left.tolist())) < 2 or len(set(right.tolist())) < 2:
        assert math.isnan(found)
    else:
        ranks = scipy.stats.rankdata(left), scipy.stats.rankdata(right)
        assert found == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-12)
        if np.isfinite(left).all() and np.isfinite(right).all():
            assert found == pytest.approx(scipy.stats.spearmanr(left, right).statistic, abs=1e-12)


def test_spearman_of_many_rows_leaves_its_arguments_alone() -> None:
    generator = np.random.default_rng(0)
    a = generator.random(300_000, np.float32)
    b = generator.random(300_000, np.float32)
    before = a.tobytes(), b.tobytes()
    assert spearman(a, a) == 1.0
    assert spearman(a, -a) == pytest.approx(-1.0, abs=1e-12)
    assert abs(spearman(a, b)) < 0.01
    assert (a.tobytes(), b.tobytes()) == before


def test_of_many_rows_a_fixed_sample_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    a = generator.random(50_000)
    b = a + generator.normal(size=50_000) / 2
    exact = spearman(a, b)
    monkeypatch.setattr(agreement, "SAMPLE", 10_000)
    found = spearman(a, b)
    assert found != exact
    assert found == pytest.approx(exact, abs=0.04)
    assert found == spearman(a, b)
    assert 9_500 < agreement.in_sample(np.arange(50_000), 50_000).sum() < 10_500


@given(pairs=PAIRS, share=st.floats(0.01, 1))
@settings(max_examples=200)
def test_overlap_lies_between_what_ties_allow(pairs: list[tuple[float, float]], share: float) -> None:
    a, b = columns(pairs)
    scored = [(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True) if x == x and y == y]
    found = overlap(a, b, share)
    if not scored:
        assert math.isnan(found)
        return
    count = max(1, round(share * len(scored)))

    def certain_and_possible(which: int) -> tuple[set[int], set[int]]:
        limit = sorted((pair[which] for pair in scored), reverse=True)[count - 1]
        values = list(enumerate(pair[which] for pair in scored))
        return {i for i, value in values if value > limit}, {i for i, value in values if value >= limit}

    (sure_a, may_a), (sure_b, may_b) = certain_and_possible(0), certain_and_possible(1)
    assert len(sure_a & sure_b) / count <= found <= min(count, len(may_a & may_b)) / count
    if len(set(left := a[~np.isnan(a)].tolist())) == len(left):
        assert overlap(a, a, share) == 1.0


def test_overlap_of_distinct_values_against_sets() -> None:
    generator = np.random.default_rng(1)
    a, b = generator.permutation(1000).astype(float), generator.permutation(1000).astype(float)
    for share in (0.001, 0.1, 0.5, 1.0):
        count = round(share * 1000)
        tops = [set(sorted(range(1000), key=values.__getitem__)[-count:]) for values in (a, b)]
        assert overlap(a, b, share) == len(tops[0] & tops[1]) / count


def test_ties_go_to_no_end_of_the_dataset() -> None:
    """Were they broken by position, the constant column would take the first or the last half."""
    position = np.arange(10_000, dtype=float)
    assert overlap(np.zeros(10_000), position) == pytest.approx(0.5, abs=0.03)
    found = {overlap(np.zeros(10_000), position, seed=seed) for seed in range(4)}
    assert len(found) > 1


def test_ties_in_both_agree_by_chance() -> None:
    assert overlap(np.zeros(10_000), np.zeros(10_000)) == pytest.approx(0.5, abs=0.03)
    mostly = (np.arange(10_000) < 1000).astype(float)  # of a half, a fifth is certain
    assert overlap(mostly, mostly) == pytest.approx(0.2 + 0.8 * 4000 / 9000, abs=0.03)


@pytest.mark.parametrize("function", [spearman, overlap])
@pytest.mark.parametrize(
    ("a", "b", "argument"),
    [
        ([1.0], [1.0, 2.0], "b"),
        ([[1.0]], [1.0], "a"),
        (["x"], [1.0], "a"),
        ([1.0], [True], "b"),
    ],
)
def test_what_is_refused(function: Any, a: Any, b: Any, argument: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        function(a, b)
    assert caught.value.argument == argument


@pytest.mark.parametrize("share", [0, 0.0, -0.5, 1.5, NAN, True, "half", None])
def test_a_share_that_is_none(share: Any) -> None:
    with pytest.raises(ArgumentError, match="share must be a finite number > 0 and <= 1"):
        overlap([1.0], [1.0], share)
