from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesampler.errors import ArgumentError, StateError
from prunesampler.sampling.block_shuffle import BlockShuffle
from prunesampler.sampling.sampler import PrunedSampler
from prunesampler.tables.coreset import Coreset
from tests.helpers.resume import check_resume

FIRST_ROWS = np.cumsum([0, 7, 1, 0, 5, 9, 3])  # one group is empty
ROWS = 25
KEPT = [0, 3, 7, 8, 11, 14, 20, 21, 24]


def sampler(block: int = 2, nodes: int = 1, **options: Any) -> PrunedSampler:
    return PrunedSampler(ROWS, shuffle=BlockShuffle(FIRST_ROWS, block, nodes), **options)


def groups_of(rows: list[int]) -> list[int]:
    return (np.searchsorted(FIRST_ROWS, rows, "right") - 1).tolist()


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(sum), st.data())
def test_an_epoch_holds_every_row_once_and_a_block_is_read_before_the_next(sizes: list[int], data: Any) -> None:
    first_rows, count = np.cumsum([0, *sizes]), sum(sizes)
    block, nodes = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 5))
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1))))
    shuffle = BlockShuffle(first_rows, block, nodes)
    order = shuffle.order(shuffle.starts(rows), data.draw(st.integers(0, 2**64 - 1)))
    found = rows[order(np.arange(len(rows)))]
    assert sorted(found) == rows.tolist()
    assert len(order) == len(rows)
    one_after_another = np.concatenate([found[part::nodes] for part in range(nodes)])  # the parts of the nodes
    place = {int(group): number for number, group in enumerate(order.groups)}
    blocks = [place[int(group)] // block for group in np.searchsorted(first_rows, one_after_another, "right") - 1]
    assert blocks == sorted(blocks)
    assert set(place) == set((np.searchsorted(first_rows, rows, "right") - 1).tolist())


def test_within_a_block_rows_of_its_groups_are_mixed_evenly() -> None:
    shuffle = BlockShuffle(np.arange(0, 12_001, 1000), 4)
    found = np.concatenate([shuffle.order(shuffle.first_rows, key)(np.arange(12_000)) for key in range(20)])
    groups = found.reshape(-1, 4000) // 1000  # a line is a block, of four groups
    for line in groups:
        counts = np.array([np.bincount(part, minlength=12)[np.unique(line)] for part in line.reshape(8, 500)])
        assert ((counts - 125.0) ** 2 / 125).sum() < 65  # χ² of 21 degrees of freedom
    firsts = [groups[0::3, 0], groups[1::3, 0], groups[2::3, 0]]
    assert all(len(np.unique(first)) > 6 for first in firsts)  # and each block's groups are others in every pass


def test_epochs_seeds_and_blocks_have_orders_of_their_own() -> None:
    orders = []
    for seed in range(3):
        one = sampler(seed=seed)
        orders += [list(one) for _ in range(3)]
    orders += [list(sampler(block=3)), list(sampler(nodes=2))]
    assert len({tuple(order) for order in orders}) == 11
    assert all(sorted(order) == list(range(ROWS)) for order in orders)


@pytest.mark.parametrize("coreset", [None, Coreset(KEPT, num_rows=ROWS)])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("before", [1, 2, 3])
def test_no_row_is_lost_or_repeated_by_a_resume_on_other_ranks(
    before: int, after: int, drop_last: bool, coreset: Coreset | None
) -> None:
    options: dict[str, Any] = {"coreset": coreset, "drop_last": drop_last, "seed": 5}
    kept = list(range(ROWS)) if coreset is None else KEPT
    whole = list(sampler(seed=5, coreset=coreset))
    for taken in range(-(-len(kept) // before) + (not drop_last)):
        ranks = [sampler(num_replicas=before, rank=rank, **options) for rank in range(before)]
        iterators = [iter(one) for one in ranks]
        read = [[next(each, None) for each in iterators] for _ in range(taken)]
        rows = [row for step in read for row in step if row is not None][: len(kept)]
        assert rows == whole[: taken * before]  # as one rank alone would have read them
        states = [one.state_dict() for one in ranks]
        assert all(state == states[0] for state in states)
        resumed = [sampler(num_replicas=after, rank=rank, **options) for rank in range(after)]
        for one in resumed:
            one.load_state_dict(states[0])
        rest = [list(one) for one in resumed]
        assert len({len(part) for part in rest}) == 1  # equal numbers of batches
        if taken * before >= len(kept) or (drop_last and len(kept) - taken * before < max(before, after)):
            continue  # the epoch was over; what follows is the next one
        left = [row for step in zip(*rest, strict=True) for row in step]
        unread = whole[taken * before :]
        assert left[: len(unread)] == unread[: len(left)]
        assert len(left) <= len(unread) if drop_last else set(left[len(unread) :]) <= set(whole[: after + before])
        assert abs(len(left) - len(unread)) < after


def test_it_resumes_like_every_order() -> None:
    def epoch(one: PrunedSampler, number: int, start: int) -> Any:
        one.set_epoch(number)
        yield from one

    check_resume(lambda: sampler(seed=3, coreset=Coreset(KEPT, num_rows=ROWS)), epoch)


def test_nodes_read_groups_of_their_own() -> None:
    shuffle = BlockShuffle(np.arange(0, 801, 10), 4, nodes=2)
    parts = [list(PrunedSampler(800, shuffle=shuffle, num_replicas=4, rank=rank)) for rank in range(4)]
    groups = [{row // 10 for row in part} for part in parts]
    assert groups[0] == groups[2] == set(range(80)) - groups[1]
    assert groups[1] == groups[3]


def test_a_state_is_of_these_blocks_and_a_sampler_can_be_copied() -> None:
    one = sampler()
    iterator = iter(one)
    next(iterator)
    state = one.state_dict()
    for other in (sampler(block=3), sampler(nodes=2), PrunedSampler(ROWS)):
        with pytest.raises(StateError, match="shuffle 'blocks of 2 among 6 groups"):
            other.load_state_dict(state)
    for copied in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        copied.load_state_dict(state)
        assert list(copied) == list(sampler())[1:]


def test_the_middle_of_a_hundred_million_rows_is_entered_with_little_memory() -> None:
    import tracemalloc

    shuffle = BlockShuffle(np.arange(0, 10**8 + 1, 10_000), 8)
    tracemalloc.start()
    one = PrunedSampler(10**8, shuffle=shuffle)
    one.load_state_dict({**one.state_dict(), "epoch": 7, "position": 5 * 10**7 + 3})
    rows = [row for row, _ in zip(one, range(1000), strict=False)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(rows)) == 1000
    assert len({row // 10_000 for row in rows}) <= 16
    assert peak < 5e6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BlockShuffle(np.array([0, 3, 2]), 1), "first_rows must be ascending from 0"),
        (lambda: BlockShuffle(np.array([1, 3]), 1), "first_rows must be ascending from 0"),
        (lambda: BlockShuffle(FIRST_ROWS, 0), "block must be an int >= 1"),
        (lambda: BlockShuffle(FIRST_ROWS, 1, 0), "nodes must be an int >= 1"),
        (lambda: PrunedSampler(9, shuffle=BlockShuffle(FIRST_ROWS, 1)), "shuffle must be of groups of 9 rows"),
        (lambda: sampler(replacement=True), "shuffle must be True with replacement"),
        (lambda: sampler(sampling_weights=np.ones(ROWS)), "shuffle must be True with replacement or sampling_weights"),
    ],
)
def test_arguments(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()
