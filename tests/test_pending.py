from __future__ import annotations

import torch

from prunesampler.pending import Pending


def batch(size: int, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.arange(size), torch.randn(size, classes), torch.zeros(size, dtype=torch.int64)


def test_batches_come_back_whole_and_in_their_order() -> None:
    pending = Pending()
    given = [batch(1 + step % 3) for step in range(40)]
    ready = [joined for each in given for joined in pending.add(*each)] + pending.take()
    assert [len(rows) for rows, _, _ in ready] == [31, 32, 16]
    for position in range(3):
        assert torch.equal(torch.cat([joined[position] for joined in ready]), torch.cat([g[position] for g in given]))
    assert pending.take() == []


def test_what_cannot_be_joined_comes_first() -> None:
    pending = Pending()
    assert pending.add(*batch(2, 3)) == []
    (ready,) = pending.add(*batch(4, 5))
    assert ready[1].shape == (2, 3)
    (ready,) = pending.take()
    assert ready[1].shape == (4, 5)


def test_large_batches_do_not_wait() -> None:
    pending = Pending()
    assert [len(pending.add(*batch(1000, 600))) for _ in range(4)] == [0, 1, 0, 1]
