from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesampler.tracking.epoch_buffers import BAD_CLASS, BAD_ROW, CHANGED_LABEL, EpochBuffers

N = 5
PRESENTATIONS = st.lists(st.tuples(st.integers(0, N - 1), st.booleans()), min_size=1, max_size=12)


@given(st.lists(PRESENTATIONS, max_size=4))
@settings(max_examples=60, deadline=None)
def test_forgetting_is_followed_through_repeated_rows(batches: list[list[tuple[int, bool]]]) -> None:
    share = EpochBuffers(N, (), forgetting=True)
    last, learned, events = [False] * N, [False] * N, [0] * N
    for batch in batches:
        share.add(torch.tensor([row for row, _ in batch]), {}, torch.tensor([right for _, right in batch]))
        for row, right in batch:
            events[row] += last[row] and not right
            learned[row] |= right
            last[row] = right
    assert share.packed is not None
    wanted = [4 * e + 2 * a + b for e, a, b in zip(events, learned, last, strict=True)]
    assert share.packed.tolist() == wanted


def test_an_epoch_begins_with_the_flags_of_the_last() -> None:
    share = EpochBuffers(2, ("el2n",), forgetting=True)
    rows, right = torch.tensor([0, 1]), torch.tensor([True, False])
    share.add(rows, {"el2n": torch.ones(2)}, right, torch.tensor([1, 0]), 2)
    share.record(rows, "mine", torch.ones(2))
    assert not share.empty
    share.clear(torch.tensor([3, 0], dtype=torch.uint8), torch.tensor([1, -1], dtype=torch.int32))
    assert share.empty
    assert share.packed is not None
    assert share.packed.tolist() == [3, 0]
    assert share.labels.tolist() == [1, -1]
    assert list(share.sums) == ["el2n"]
    assert share.sums["el2n"].tolist() == [0, 0]


def test_problems_name_a_row() -> None:
    share = EpochBuffers(N, (), forgetting=False)
    assert share.problems.tolist() == [-1, -1, -1]
    share.add(torch.tensor([1, 3, 2]), {}, None, torch.tensor([0, 2, -1]), 2)
    assert share.problems[BAD_CLASS] == 3
    share.add(torch.tensor([1, 4]), {}, None, torch.tensor([1, 0]), 2)
    assert share.problems[CHANGED_LABEL] == 1
    assert share.problems[BAD_ROW] == -1
    assert not share.empty


def test_absent_labels_stay_absent() -> None:
    share = EpochBuffers(N, (), forgetting=False)
    for _ in range(2):
        share.add(torch.tensor([0, 1]), {}, None, torch.tensor([-100, 3]))
    assert share.labels.tolist() == [-1, 3, -1, -1, -1]
    assert share.problems.tolist() == [-1, -1, -1]


def test_moving_keeps_everything() -> None:
    share = EpochBuffers(N, ("el2n",), forgetting=True)
    share.add(torch.tensor([4]), {"el2n": torch.ones(1)}, torch.tensor([True]), torch.tensor([1]), 2)
    share.record(torch.tensor([2]), "mine", torch.ones(1))
    before = share.state_dict()
    share.move(torch.device("cpu"))
    after = share.state_dict()
    assert str(before) == str(after)
    share.move(torch.device("meta"))
    tensors = [*share.sums.values(), *share.counts.values(), share.presentations, share.labels, share.problems]
    assert {tensor.device.type for tensor in (*tensors, share.packed)} == {"meta"}  # type: ignore[union-attr]


def test_a_state_is_a_copy() -> None:
    share = EpochBuffers(N, ("el2n",), forgetting=True)
    state = share.state_dict()
    share.add(torch.tensor([4]), {"el2n": torch.ones(1)}, torch.tensor([True]), torch.tensor([1]), 2)
    assert not state["presentations"].any()
    assert not np.any(state["sums"]["el2n"].numpy())
