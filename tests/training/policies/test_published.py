"""The published dynamic policies, each against its rule in plain Python."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import prunesampler as ps
from prunesampler.training.policies.policy import coreset_of
from prunesampler.training.policies.seta import k_means

LOSSES = st.lists(st.floats(0, 8, width=32), min_size=4, max_size=40)


def table_of(losses: Any) -> ps.ScoreTable:
    return ps.ScoreTable({"loss": losses, "el2n": [min(loss, 1.4) for loss in losses]})


def drawn(policy: Any, epoch: int, losses: Any, seed: int = 0) -> ps.Coreset:
    rows = np.arange(len(losses))
    answer = policy.draw(epoch, table_of(losses), rows, seed)
    return coreset_of(answer, rows, num_rows=len(losses), fingerprint=None, seed=seed, epoch=epoch)


@given(LOSSES, st.integers(0, 5), st.integers(0, 2**40))
def test_infobatch_as_published(losses: list[float], epoch: int, seed: int) -> None:
    coreset = drawn(ps.InfoBatch(ratio=0.5, anneal=0), epoch, losses, seed)
    mean = float(np.asarray(losses, np.float32).astype(np.float64).mean())
    below = [row for row, loss in enumerate(losses) if loss < mean]
    kept = set(coreset.rows.tolist())
    assert set(range(len(losses))) - set(below) <= kept
    assert len(kept & set(below)) == math.ceil(0.5 * len(below))
    weights = coreset.weights if coreset.weights is not None else np.ones(len(coreset))
    for row, weight in zip(coreset.rows, weights, strict=True):
        share = math.ceil(0.5 * len(below)) / len(below) if row in below else 1.0
        assert weight == pytest.approx(1 / share, rel=1e-5)


@given(LOSSES, st.integers(2, 40), st.integers(0, 2**40))
def test_infobatch_of_a_budget_draws_exactly_that(losses: list[float], budget: int, seed: int) -> None:
    budget = min(budget, len(losses))
    policy = ps.InfoBatch(ratio=0.5, anneal=0, budget=budget)
    assert len(drawn(policy, 3, losses, seed)) == budget == policy.num_draws(len(losses), 3)


def test_the_last_eighth_is_on_all_rows_without_weights_whatever_the_number_of_epochs() -> None:
    for epochs in range(1, 60):
        policy = ps.InfoBatch(epochs=epochs)
        whole = [epoch for epoch in range(epochs) if policy.num_draws(100, epoch) == 100]
        assert whole == [epoch for epoch in range(epochs) if 8 * epoch >= 7 * epochs]
        for epoch in whole:
            coreset = drawn(policy, epoch, [0.1, 0.2, 3.0, 4.0])
            assert (len(coreset), coreset.weights) == (4, None)


@pytest.mark.parametrize(
    "policy",
    [
        ps.InfoBatch(ratio=0.6, anneal=0, budget=0.5),
        ps.InfoBatch(ratio=0.5, anneal=0),
        ps.ImportanceSampling(keep=0.4),
        ps.ImportanceSampling(keep=0.3, by="el2n", max_weight=2),
    ],
)
def test_weighted_sums_are_those_of_all_rows_in_expectation(policy: Any) -> None:
    rng = np.random.default_rng(0)
    losses, values = rng.exponential(size=30), rng.normal(size=30)
    sums = []
    for seed in range(4000):
        coreset = drawn(policy, 1, losses, seed)
        weights = coreset.weights if coreset.weights is not None else np.ones(len(coreset))
        # InfoBatch keeps the sum over an epoch, importance sampling the mean over a step.
        scale = len(losses) / len(coreset) if isinstance(policy, ps.ImportanceSampling) else 1
        sums.append(scale * float((values[coreset.rows] * weights).sum()))
    error = statistics.stdev(sums) / math.sqrt(len(sums))
    assert abs(statistics.mean(sums) - values.sum()) < 4 * error


@given(LOSSES, st.floats(1.5, 9), st.integers(0, 2**40))
def test_weights_of_importance_sampling_are_bounded(losses: list[float], bound: float, seed: int) -> None:
    policy = ps.ImportanceSampling(keep=0.5, max_weight=bound)
    coreset = drawn(policy, 1, losses, seed)
    assert len(coreset) == policy.num_draws(len(losses), 1)
    if coreset.weights is not None:
        assert float(coreset.weights.max()) <= bound * (1 + 1e-5)


@given(LOSSES, st.integers(0, 9), st.integers(0, 2**40))
def test_orderdp_draws_the_hardest_of_a_random_part(losses: list[float], epoch: int, seed: int) -> None:
    policy = ps.OrderDP(part=0.5, top=0.6)
    rows = drawn(policy, epoch, losses, seed).rows.tolist()
    part = max(1, round(0.5 * len(losses)))
    assert len(rows) == max(1, round(0.6 * part)) == policy.num_draws(len(losses), epoch)
    # Of the part, whose other rows are unknown here, at most part - len(rows) are left out, and none is harder.
    values = np.asarray(losses, np.float32)
    easiest = min(values[rows])
    assert sum(values <= easiest) >= part - len(rows) or part == len(rows)
    whole = drawn(ps.OrderDP(part=1.0, top=0.5), epoch, losses, seed).rows
    assert sorted(values[whole]) == sorted(values)[-len(whole) :]


def test_a_random_part_differs_from_epoch_to_epoch_and_reaches_every_row() -> None:
    counts: Counter[int] = Counter()
    for epoch in range(200):
        counts.update(drawn(ps.OrderDP(part=0.5, top=1.0), epoch, np.arange(20.0)).rows.tolist())
    assert set(counts) == set(range(20))
    assert min(counts.values()) > 60
    assert max(counts.values()) < 140


def lloyd(values: list[float], groups: int) -> list[int]:
    """Plain one-dimensional k-means, from the quantiles that ours begins at."""
    centres = np.quantile(values, (np.arange(groups) + 0.5) / groups).tolist()
    for _ in range(10_000):
        nearest = [max(k for k in range(groups) if k == 0 or v >= (centres[k - 1] + centres[k]) / 2) for v in values]
        members = [[v for v, k in zip(values, nearest, strict=True) if k == group] for group in range(groups)]
        moved = [sum(m) / len(m) if m else c for m, c in zip(members, centres, strict=True)]
        if np.allclose(moved, centres, rtol=0, atol=1e-12):
            return nearest
        centres = moved
    raise AssertionError


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(1, 6))
def test_k_means_is_lloyds(values: list[int], groups: int) -> None:
    numbers = [float(value) for value in values]
    assert k_means(np.array(numbers), groups).tolist() == lloyd(numbers, groups)


def test_seta_slides_from_easy_to_hard_and_begins_again() -> None:
    losses = np.repeat([0.1, 1.0, 2.0, 3.0, 4.0], 4)
    policy = ps.SeTa(ratio=0, groups=5, window=0.6, anneal=0.25, epochs=12)
    windows = [sorted(set(losses[drawn(policy, epoch, losses).rows])) for epoch in range(12)]
    easy, middle, hard = [0.1, 1.0, 2.0], [1.0, 2.0, 3.0], [2.0, 3.0, 4.0]
    assert windows[:9] == [easy, middle, hard] * 3
    assert windows[9:] == [[0.1, 1.0, 2.0, 3.0, 4.0]] * 3
    part = ps.SeTa(ratio=0.25, groups=5, window=1.0, anneal=0)
    assert len(drawn(part, 1, losses)) == 15 == part.num_draws(20, 1)


def test_a_row_without_a_score_is_taken_for_a_hard_one_or_an_average_one() -> None:
    losses = np.array([0.1, np.nan, 0.2, 0.3])
    rows = np.arange(4)
    table = ps.ScoreTable({"loss": losses})
    assert 1 in ps.OrderDP(1.0, 0.25).draw(1, table, rows, 0)
    assert ps.InfoBatch(anneal=0).draw(1, table, rows, 0).values[1] == 1
    shares = np.asarray(ps.ImportanceSampling(2, max_weight=1e9).draw(1, table, rows, 0).values)
    np.testing.assert_allclose(shares, 0.5 * np.array([0.5, 1, 1, 1.5]), rtol=1e-6)


@pytest.mark.parametrize(
    ("argument", "make"),
    [
        ("ratio", lambda: ps.InfoBatch(ratio=1.0, anneal=0)),
        ("ratio", lambda: ps.InfoBatch(ratio=-0.1, anneal=0)),
        ("epochs", lambda: ps.InfoBatch(ratio=0.5)),
        ("epochs", lambda: ps.InfoBatch(epochs=0)),
        ("anneal", lambda: ps.InfoBatch(anneal=1.0, epochs=10)),
        ("budget", lambda: ps.InfoBatch(anneal=0, budget=1)),
        ("budget", lambda: ps.InfoBatch(anneal=0, budget=1.5)),
        ("epochs", lambda: ps.SeTa()),
        ("groups", lambda: ps.SeTa(groups=0, anneal=0)),
        ("window", lambda: ps.SeTa(window=0.0, anneal=0)),
        ("part", lambda: ps.OrderDP(part=0.0)),
        ("top", lambda: ps.OrderDP(top=1.1)),
        ("keep", lambda: ps.ImportanceSampling(keep=0.0)),
        ("by", lambda: ps.ImportanceSampling(by="margin")),
        ("max_weight", lambda: ps.ImportanceSampling(max_weight=1.0)),
    ],
)
def test_options_are_checked_at_once(argument: str, make: Any) -> None:
    with pytest.raises(ps.ArgumentError, match=rf"^{argument} must"):
        make()
