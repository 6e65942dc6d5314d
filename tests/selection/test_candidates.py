from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from prunesampler.errors import ArgumentError
from prunesampler.selection.candidates import Pool

METHODS = ("stratified", "top", "bottom", "window", "random")


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    n = draw(st.integers(1, 60))
    method = draw(st.sampled_from(METHODS))
    coarse = st.sampled_from([0.0, 0.5, 1.0, np.inf, np.nan])
    hardness = draw(st.lists(coarse | st.floats(-4, 4, width=32), min_size=n, max_size=n))
    offset = draw(st.integers(0, n) | st.floats(0, 1, exclude_max=True)) if method in ("stratified", "window") else 0
    return Pool(
        hardness=np.array(hardness, np.float32),
        key=np.array(draw(st.permutations(range(n))), np.uint64),
        labels=np.array(draw(st.lists(st.integers(-1, 4), min_size=n, max_size=n)), np.int32),
        method=method,  # type: ignore[arg-type]
        offset=offset,
        strata=draw(st.integers(1, 7)),
    )


@given(pool=pools(), data=st.data())
@settings(max_examples=100, deadline=None)
def test_the_size_is_exact_and_unscored_members_come_first(pool: Pool, data: st.DataObject) -> None:
    n = len(pool.key)
    members = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1))))
    budget = data.draw(st.integers(0, len(members)))
    chosen = pool.choose(members, budget)
    assert len(chosen) == len(set(chosen.tolist())) == budget
    assert set(chosen.tolist()) <= set(members.tolist())
    unscored = int(np.isnan(pool.hardness[members]).sum())
    assert int(np.isnan(pool.hardness[chosen]).sum()) == min(budget, unscored)


@given(pool=pools(), data=st.data())
@settings(max_examples=100, deadline=None)
def test_balanced_is_the_largest_remainder(pool: Pool, data: st.DataObject) -> None:
    n = len(pool.key)
    budget = data.draw(st.integers(1, n))
    chosen = pool.choose_balanced(np.arange(n), budget)
    assert len(set(chosen.tolist())) == len(chosen) == budget
    assert pool.labels is not None
    remainders = []
    for label in set(pool.labels.tolist()):
        size = int((pool.labels == label).sum())
        kept = int((pool.labels[chosen] == label).sum())
        assert kept in (budget * size // n, budget * size // n + 1)
        assert kept <= size
        remainders.append((budget * size % n, kept - budget * size // n))
    rounded_up = [remainder for remainder, up in remainders if up]
    rounded_down = [remainder for remainder, up in remainders if not up]
    assert min(rounded_up, default=n) >= max(rounded_down, default=0)


@given(pool=pools(), data=st.data(), balanced=st.booleans())
@settings(max_examples=150, deadline=None)
def test_floors_hold_and_cost_nothing_where_they_are_met_anyway(
    pool: Pool, data: st.DataObject, balanced: bool
) -> None:
    n = len(pool.key)
    members, budget, floor = np.arange(n), data.draw(st.integers(1, n)), data.draw(st.integers(1, 12))
    assert pool.labels is not None
    sizes = {label: int((pool.labels == label).sum()) for label in set(pool.labels.tolist()) if label >= 0}
    if sum(min(floor, size) for size in sizes.values()) > budget:
        with pytest.raises(ArgumentError, match="min_per_class needs"):
            pool.choose_with_floor(members, budget, floor, balanced=balanced)
        return
    chosen = pool.choose_with_floor(members, budget, floor, balanced=balanced)
    assert len(set(chosen.tolist())) == len(chosen) == budget
    for label, size in sizes.items():
        assert int((pool.labels[chosen] == label).sum()) >= min(floor, size)
    free = (pool.choose_balanced if balanced else pool.choose)(members, budget)
    if all(int((pool.labels[free] == label).sum()) >= min(floor, size) for label, size in sizes.items()):
        assert set(chosen.tolist()) == set(free.tolist())


def pool_of(hardness: Any, method: Any, offset: float = 0, strata: int = 50) -> Pool:
    hardness = np.array(hardness, np.float32)
    return Pool(hardness, np.arange(len(hardness), dtype=np.uint64), None, method, offset, strata)


def test_offsets_that_leave_too_little_give_back_the_easiest() -> None:
    hardness = np.arange(10)
    for method in ("window", "stratified"):
        for offset in (0.9, 9):
            assert sorted(pool_of(hardness, method, offset).choose(np.arange(10), 6).tolist()) == [0, 1, 2, 3, 4, 5]
    assert sorted(pool_of(hardness, "window", 0.2).choose(np.arange(10), 3).tolist()) == [5, 6, 7]
    assert sorted(pool_of(hardness, "window", 2).choose(np.arange(10), 3).tolist()) == [5, 6, 7]


@given(pool=pools(), data=st.data(), floor=st.integers(0, 4))
@settings(max_examples=100, deadline=None)
def test_spare_rows_stay_only_where_their_class_needs_them(pool: Pool, data: st.DataObject, floor: int) -> None:
    n = len(pool.key)
    assert pool.labels is not None
    spare = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n))) & ~np.isnan(pool.hardness)
    expected = {i for i in range(n) if not spare[i]}
    for label in set(pool.labels.tolist()) - {-1}:
        of_class = [i for i in range(n) if pool.labels[i] == label]
        back = sorted((i for i in of_class if spare[i]), key=lambda i: (-pool.hardness[i], pool.key[i]))
        expected |= set(back[: max(0, floor - sum(not spare[i] for i in of_class))])
    found = pool.without(spare.copy(), floor)
    assert found.tolist() == sorted(expected)


def test_a_share_is_counted_as_written() -> None:
    for share, count in ((0.29, 29), (0.57, 57), (0.1, 10), (0.999, 99), (0.009, 0)):
        left = sorted(pool_of(np.arange(100), "window", share).choose(np.arange(100), 1).tolist())
        assert left == [99 - count]


def test_ties_at_the_edge_go_by_key() -> None:
    pool = Pool(np.zeros(6, np.float32), np.array([5, 0, 4, 1, 3, 2], np.uint64), None, "top", 0, 1)
    assert sorted(pool.choose(np.arange(6), 3).tolist()) == [1, 3, 5]


def test_one_value_is_one_stratum_and_infinite_ones_are_another() -> None:
    chosen = pool_of([1.0] * 6 + [np.inf] * 6, "stratified").choose(np.arange(12), 8)
    assert sorted((chosen // 6).tolist()) == [0] * 4 + [1] * 4
    assert len(pool_of([np.inf] * 5, "stratified").choose(np.arange(5), 3)) == 3
    assert len(pool_of([2.0] * 5, "stratified").choose(np.arange(5), 3)) == 3
    extreme = pool_of([-3e38, 3e38, 1e-45, 0.0], "stratified", strata=2)
    assert len(extreme.choose(np.arange(4), 3)) == 3
