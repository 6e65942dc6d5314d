from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prunesampler.sampling.sampler import PrunedSampler
from prunesampler.shards.read_plan import ReadPlan
from prunesampler.tables.coreset import Coreset

SHARDS, EACH = 60, 10
ROWS = SHARDS * EACH
KEPT = np.arange(3, ROWS, 7)
FIRST_ROWS = np.arange(0, ROWS + 1, EACH)


def shards_of(rows: list[int]) -> np.ndarray[Any, Any]:
    return np.unique(np.array(rows) // EACH)


@pytest.mark.parametrize("coreset", [None, Coreset(KEPT, num_rows=ROWS)])
@pytest.mark.parametrize(("nodes", "ranks"), [(1, 1), (1, 3), (2, 4)])
def test_what_it_tells_is_read_next(nodes: int, ranks: int, coreset: Coreset | None) -> None:
    plan = ReadPlan(FIRST_ROWS, 4).for_nodes(nodes)
    for epoch in range(2):
        for rank in range(ranks):
            sampler = PrunedSampler(ROWS, shuffle=plan, coreset=coreset, num_replicas=ranks, rank=rank)
            sampler.set_epoch(epoch)
            rows = list(sampler)
            for at in range(0, len(rows), 8):
                upcoming = plan.upcoming(shards_of(rows[at : at + 8]), ahead=4)
                assert upcoming is not None
                following = shards_of(rows[at : at + 40 * len(rows) // ROWS])  # as many rows as a block has, at most
                assert set(following.tolist()) <= set(upcoming)
                assert len(upcoming) <= SHARDS // 2
    kept = np.concatenate([plan.kept(shard) for shard in range(SHARDS)])
    assert np.array_equal(np.flatnonzero(kept), np.arange(ROWS) if coreset is None else KEPT)


def test_rows_from_everywhere_are_none_of_its_order() -> None:
    plan = ReadPlan(FIRST_ROWS, 1)
    assert plan.upcoming(np.array([0, 20, 40]), 1) is None
    assert plan.upcoming(np.array([58, 59, 0]), 1) == [58, 59, 0, 1]  # an epoch that is filled up from its beginning
    few = ReadPlan(FIRST_ROWS, 1, rows=np.array([5, 15]))
    assert few.upcoming(np.array([0, 9]), 1) is None  # a shard of which nothing is kept
    assert plan.after(57)[:4] == [58, 59, 0, 1]
    assert few.after(0) == [1, 0]


def test_the_order_that_is_read_is_told_again_after_another() -> None:
    plan = ReadPlan(FIRST_ROWS, 1)
    train, other = (PrunedSampler(ROWS, shuffle=plan.for_nodes(1), seed=seed) for seed in range(2))
    train.prune(Coreset(KEPT, num_rows=ROWS))
    rows, batch = iter(train), shards_of([3])
    next(rows)
    before = plan.upcoming(batch, 5)
    assert next(iter(other)) is not None
    assert plan.keeps_all
    train.set_epoch(0)
    next(iter(train))
    assert plan.upcoming(batch, 5) == before
    assert np.array_equal(np.flatnonzero(np.concatenate([plan.kept(shard) for shard in range(SHARDS)])), KEPT)
