"""What a process is said to read is what Accelerate's own sharding gives it."""

from __future__ import annotations

from typing import Any

import pytest
from torch.utils.data import BatchSampler, SequentialSampler

from prunesampler.training.batch_split import BatchSplit

accelerate = pytest.importorskip("accelerate.data_loader")


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("cuts_batches", "even"), [(False, True), (False, False), (True, True), (True, False)])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_batches_rows_and_repeats_are_accelerates(
    processes: int, cuts_batches: bool, even: bool, drop_last: bool
) -> None:
    for rows in range(1, 40):
        shares = []
        for index in range(processes):
            inner = BatchSampler(SequentialSampler(range(rows)), 6, drop_last)
            shard = accelerate.BatchSamplerShard(inner, processes, index, split_batches=cuts_batches, even_batches=even)
            found, split = BatchSplit.of(shard)
            assert found is inner
            assert split is not None
            batches = [list(batch) for batch in shard]
            assert split.batches(rows) == len(batches)
            assert split.rows(rows) == sum(map(len, batches))
            shares += [row for i, batch in enumerate(batches) for row in batch[: split.real(rows, i)]]
        if not drop_last:
            assert sorted(shares) == list(range(rows))  # each once, whatever was repeated
        assert len(set(shares)) == len(shares)


def test_without_accelerate_nothing_is_split() -> None:
    inner = BatchSampler(SequentialSampler(range(10)), 4, False)
    found, split = BatchSplit.of(inner)
    assert found is inner
    assert split == BatchSplit(4, False)
    assert (split.batches(10), split.rows(10), split.rows_per_step, split.real(10, 2)) == (3, 10, 4, 2)


def test_other_batch_samplers_are_unknown() -> None:
    class Mine(BatchSampler):
        pass

    sampler: Any = Mine(SequentialSampler(range(10)), 4, False)
    assert BatchSplit.of(sampler) == (sampler, None)
