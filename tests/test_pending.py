from __future__ import annotations

import pytest
import torch

from prunesampler.pending import Pending


def batch(size: int, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.arange(size), torch.randn(size, classes), torch.zeros(size, dtype=torch.int64)


@pytest.mark.parametrize("sizes", [[3] * 40, [1 + step % 3 for step in range(40)], [7, 1, 1, 300, 2, 7]])
def test_batches_come_back_whole_and_in_their_order(sizes: list[int]) -> None:
    pending = Pending()
    given = [batch(size) for size in sizes]
    found = [torch.cat([each[part] for each in given]) for part in range(3)]
    ready = []
    for each in given:
        for joined in pending.add(*each):
            ready.append([part.clone() for part in joined])
            for part in joined:
                part.zero_()
    ready += pending.take()
    assert all(
        torch.equal(torch.cat(parts), whole) for parts, whole in zip(zip(*ready, strict=True), found, strict=True)
    )
    assert pending.take() == []


def test_sixteen_batches_are_joined_in_the_same_memory() -> None:
    pending = Pending()
    ready = [joined for _ in range(48) for joined in pending.add(*batch(2))]
    assert [len(rows) for rows, _, _ in ready] == [32, 32, 32]
    assert len({logits.data_ptr() for _, logits, _ in ready}) == 1


def test_what_cannot_be_joined_comes_first() -> None:
    pending = Pending()
    assert pending.add(*batch(2, 3)) == []
    (ready,) = pending.add(*batch(4, 5))
    assert ready[1].shape == (2, 3)
    (ready,) = pending.take()
    assert ready[1].shape == (4, 5)


def test_large_batches_do_not_wait() -> None:
    pending = Pending()
    assert [len(pending.add(*batch(1000, 500))) for _ in range(4)] == [0, 1, 0, 1]
    assert [len(pending.add(*batch(1000, 600))) for _ in range(2)] == [1, 1]
    assert [len(pending.add(*batch(4, 1 << 20))) for _ in range(2)] == [1, 1]
