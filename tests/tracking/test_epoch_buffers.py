from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunesampler.scores.registry import compute
from prunesampler.tracking import epoch_buffers
from prunesampler.tracking.epoch_buffers import BAD_CLASS, BAD_ROW, CHANGED_LABEL, BatchQueue, EpochBuffers, ScoredBatch

NAMES = ("el2n", "margin", "correct")
N = 5
PRESENTATIONS = st.lists(st.tuples(st.integers(0, N - 1), st.booleans()), min_size=1, max_size=12)


@given(st.lists(PRESENTATIONS, max_size=4))
@settings(max_examples=60)
def test_forgetting_is_followed_through_repeated_rows(batches: list[list[tuple[int, bool]]]) -> None:
    buffers = EpochBuffers(N, (), forgetting=True)
    last, learned, events = [False] * N, [False] * N, [0] * N
    for batch in batches:
        buffers.add(torch.tensor([row for row, _ in batch]), {}, torch.tensor([right for _, right in batch]))
        for row, right in batch:
            events[row] += last[row] and not right
            learned[row] |= right
            last[row] = right
    wanted = [4 * e + 2 * a + b for e, a, b in zip(events, learned, last, strict=True)]
    assert buffers.packed.tolist() == wanted


def test_an_epoch_begins_with_the_flags_of_the_last() -> None:
    buffers = EpochBuffers(2, ("el2n",), forgetting=True)
    rows, right = torch.tensor([0, 1]), torch.tensor([True, False])
    buffers.add(rows, {"el2n": torch.ones(2)}, right, torch.tensor([1, 0]), 2)
    buffers.record(rows, "mine", torch.ones(2))
    assert not buffers.empty
    buffers.clear(torch.tensor([3, 0], dtype=torch.uint8), torch.tensor([1, -1], dtype=torch.int32))
    assert buffers.empty
    assert buffers.packed.tolist() == [3, 0]
    assert buffers.labels.tolist() == [1, -1]
    assert list(buffers.sums) == ["el2n"]
    assert buffers.sums["el2n"].tolist() == [0, 0]


def test_problems_name_a_row() -> None:
    buffers = EpochBuffers(N, (), forgetting=False)
    assert buffers.problems.tolist() == [-1, -1, -1]
    buffers.add(torch.tensor([1, 3, 2]), {}, None, torch.tensor([0, 2, -1]), 2)
    assert buffers.problems[BAD_CLASS] == 3
    buffers.add(torch.tensor([1, 4]), {}, None, torch.tensor([1, 0]), 2)
    assert buffers.problems[CHANGED_LABEL] == 1
    assert buffers.problems[BAD_ROW] == -1
    assert not buffers.empty


def test_absent_labels_stay_absent() -> None:
    buffers = EpochBuffers(N, (), forgetting=False)
    for _ in range(2):
        buffers.add(torch.tensor([0, 1]), {}, None, torch.tensor([-100, 3]))
    assert buffers.labels.tolist() == [-1, 3, -1, -1, -1]
    assert buffers.problems.tolist() == [-1, -1, -1]


def test_moving_keeps_everything() -> None:
    buffers = EpochBuffers(N, ("el2n",), forgetting=True)
    buffers.add(torch.tensor([4]), {"el2n": torch.ones(1)}, torch.tensor([True]), torch.tensor([1]), 2)
    buffers.record(torch.tensor([2]), "mine", torch.ones(1))
    before = buffers.state_dict()
    buffers.move(torch.device("cpu"))
    after = buffers.state_dict()
    assert str(before) == str(after)
    buffers.move(torch.device("meta"))
    tensors = [
        *buffers.sums.values(),
        *buffers.counts.values(),
        buffers.presentations,
        buffers.labels,
        buffers.problems,
    ]
    assert {tensor.device.type for tensor in (*tensors, buffers.packed)} == {"meta"}


Batch = tuple[Tensor, Tensor, Tensor]


def batch(size: int, classes: int = 3, dtype: torch.dtype = torch.float32) -> Batch:
    return torch.arange(size), torch.randn(size, classes).to(dtype), torch.arange(size) % classes


def check(found: list[ScoredBatch], given: list[Batch]) -> None:
    """Against scores of each batch on its own."""
    assert torch.equal(torch.cat([each.rows for each in found]), torch.cat([rows for rows, _, _ in given]))
    assert torch.equal(torch.cat([each.targets for each in found]), torch.cat([targets for _, _, targets in given]))
    alone = [compute(NAMES, logits, targets) for _, logits, targets in given]
    for name in NAMES:
        values = torch.cat([each.values[name] for each in found])
        torch.testing.assert_close(values, torch.cat([each[name] for each in alone]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sizes", [[3] * 80, [1 + step % 3 for step in range(80)], [7, 1, 1, 300, 2, 7]])
@pytest.mark.parametrize("cached", [1, 10, 100, 1 << 17])
@pytest.mark.parametrize("classes", [3, 40])
def test_queued_batches_are_copies_and_come_back_in_their_order(
    sizes: list[int], cached: int, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch_buffers, "_CPU_LOGITS", cached)
    queue, given = BatchQueue(NAMES), [batch(size, classes) for size in sizes]
    found = []
    for each in given:
        mine = [part.clone() for part in each]
        found += queue.add(*mine)
        for part in mine:
            part.zero_()
    found += queue.take()
    check(found, given)
    assert queue.take() == []


def test_sixty_four_batches_are_scored_together() -> None:
    queue = BatchQueue(NAMES)
    ready = [joined for _ in range(192) for joined in queue.add(*batch(2))]
    assert [len(joined.rows) for joined in ready] == [128, 128, 128]


def test_batches_of_another_kind_are_not_joined() -> None:
    queue, given = BatchQueue(NAMES), [batch(2, 3), batch(4, 5), batch(3, 5, torch.float64), batch(2, 5)]
    found = [ready for each in given for ready in queue.add(*each)] + queue.take()
    assert [(len(ready.rows), ready.classes) for ready in found] == [(2, 3), (4, 5), (3, 5), (2, 5)]
    check(found, given)


@pytest.mark.parametrize("classes", [10, 1000, 50_000])
def test_the_queue_holds_no_more_logits_than_its_buffer(classes: int) -> None:
    queue = BatchQueue(NAMES)
    for _ in range(5):
        queue.add(*batch(128 if classes < 50_000 else 3, classes))
    assert queue._logits.numel() <= epoch_buffers._CPU_LOGITS
