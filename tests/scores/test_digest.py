from __future__ import annotations

import pytest
import torch

from prunesampler.scores.digest import digest, room


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("classes", [2, 10, 33, 1000])
def test_what_else_is_in_a_batch_changes_no_bit(classes: int, threads: int) -> None:
    size = 4000 if classes < 33 else 100
    logits = torch.randn(size, classes, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(size) % classes
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = digest(("el2n",), logits, targets)
        for parts in ([1, 3, size - 4], [size - 17, 17], [size // 2 + 1, size - size // 2 - 1]):
            found = [digest(("el2n",), *part) for part in zip(logits.split(parts), targets.split(parts), strict=True)]
            for name, values in whole.items():
                assert torch.equal(torch.cat([each[name] for each in found]), values)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("classes", [2, 32, 33, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_memory_is_used_again_whatever_it_holds(classes: int, dtype: torch.dtype) -> None:
    memory = room(torch.zeros(1, classes, dtype=dtype), 50)
    memory.fill_(torch.nan)
    for size in (50, 7):
        logits, targets = torch.randn(size, classes).to(dtype), torch.arange(size) % classes
        found, fresh = digest(("el2n",), logits, targets, memory), digest(("el2n",), logits, targets)
        assert all(torch.equal(found[name], values) for name, values in fresh.items())


@pytest.mark.parametrize("classes", [10, 1000, 50_000])
def test_memory_is_little_more_than_the_logits(classes: int) -> None:
    size = (1 << 17) // classes
    assert room(torch.zeros(1, classes), size).numel() < 1.05 * (1 << 17)
