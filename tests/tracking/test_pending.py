from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunesampler.scores import logits as scores
from prunesampler.tracking import pending
from prunesampler.tracking.pending import Pending, Scored

NAMES = ("el2n", "margin", "correct")
Batch = tuple[Tensor, Tensor, Tensor]


def batch(size: int, classes: int = 3, dtype: torch.dtype = torch.float32) -> Batch:
    return torch.arange(size), torch.randn(size, classes).to(dtype), torch.arange(size) % classes


def check(found: list[Scored], given: list[Batch]) -> None:
    """Against scores of each batch on its own."""
    alone = [scores.compute(NAMES, logits, targets) for _, logits, targets in given]
    assert torch.equal(torch.cat([each.rows for each in found]), torch.cat([rows for rows, _, _ in given]))
    assert torch.equal(torch.cat([each.targets for each in found]), torch.cat([targets for _, _, targets in given]))
    for name in NAMES:
        wanted = torch.cat([values[name] for values in alone])
        assert torch.equal(torch.cat([each.values[name] for each in found]), wanted)


@pytest.mark.parametrize("sizes", [[3] * 80, [1 + step % 3 for step in range(80)], [7, 1, 1, 300, 2, 7]])
@pytest.mark.parametrize("cached", [1, 10, 100, 1 << 17])
def test_batches_come_back_whole_and_in_their_order(
    sizes: list[int], cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "_CACHED", cached)
    waiting, given = Pending(NAMES), [batch(size) for size in sizes]
    found = []
    for each in given:
        mine = [part.clone() for part in each]
        found += waiting.add(*mine)
        for part in mine:
            part.zero_()
    found += waiting.take()
    check(found, given)
    assert waiting.take() == []


def test_sixty_four_batches_are_scored_together() -> None:
    waiting = Pending(NAMES)
    ready = [joined for _ in range(192) for joined in waiting.add(*batch(2))]
    assert [len(joined.rows) for joined in ready] == [128, 128, 128]


def test_what_cannot_be_joined_comes_first() -> None:
    waiting = Pending(NAMES)
    given = [batch(2, 3), batch(4, 5), batch(3, 5, torch.float64), batch(2, 5)]
    found = [ready for each in given for ready in waiting.add(*each)]
    assert [len(ready.rows) for ready in found] == [2, 4, 3]
    found += waiting.take()
    assert [ready.classes for ready in found] == [3, 5, 5, 5]
    check(found, given)


def test_no_more_logits_wait_than_the_cache_holds() -> None:
    waiting = Pending(NAMES)
    for classes in (10, 1000, 50_000):
        for _ in range(70):
            waiting.add(*batch(128 if classes < 50_000 else 3, classes))
            assert waiting._size * classes <= pending._CACHED
            assert max(waiting._logits.numel(), waiting._memory.numel()) < 1.1 * pending._CACHED
