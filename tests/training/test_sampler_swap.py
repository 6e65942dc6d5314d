"""Each known sampler's place is taken in its own way; unknown ones are refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from prunesampler.errors import ArgumentError, StateError, UnsupportedError
from prunesampler.sampling.sampler import PrunedSampler
from prunesampler.tables.coreset import Coreset
from prunesampler.training.sampler_swap import Replacement

N = 20


def of(sampler: Any = None, **options: Any) -> tuple[Any, Replacement]:
    loader = DataLoader(range(N), batch_size=3, sampler=sampler, **options)
    return loader, Replacement.of(loader)


def drawn(replacement: Replacement, kept: list[int], epoch_length: Any = "kept") -> list[int]:
    return list(replacement.sampler(Coreset(kept, num_rows=N), seed=0, epoch_length=epoch_length))


@pytest.mark.parametrize(
    ("sampler", "eligible", "draws"),
    [
        (None, N, N),
        (RandomSampler(range(N)), N, N),
        (RandomSampler(range(N), num_samples=50), N, 50),
        (RandomSampler(range(N), replacement=True, num_samples=7), N, 7),
        (SubsetRandomSampler([4, 2, 19]), 3, 3),
        (WeightedRandomSampler([0.0] * 15 + [1.0] * 5, 30), 5, 30),
        (DistributedSampler(range(N), num_replicas=3, rank=1), N, N),
        (PrunedSampler(N, coreset=Coreset([1, 2, 3, 4], num_rows=N)), 4, 4),
        (PrunedSampler(N, rows=[9, 3, 7]), 3, 3),
        (PrunedSampler(N, rows=[9, 3, 7], coreset=Coreset([3, 9], num_rows=N), epoch_length="full"), 2, 3),
        (PrunedSampler(N, sampling_weights=[0.0] * 15 + [1.0] * 5, replacement=True, epoch_length=30), 5, 30),
    ],
)
def test_what_a_sampler_draws_is_understood(sampler: Any, eligible: int, draws: int) -> None:
    loader, replacement = of(sampler)
    assert (replacement.num_eligible, replacement.draws) == (eligible, draws)
    assert replacement.batches() == len(loader)
    assert replacement.rows_per_pass == sum(len(batch) for batch in loader)


def test_order_and_length_follow_the_sampler() -> None:
    kept = [1, 4, 9, 16]
    assert drawn(of()[1], kept) == kept  # sequential
    assert sorted(drawn(of(RandomSampler(range(N)))[1], kept)) == kept
    assert len(drawn(of(RandomSampler(range(N)))[1], kept, "full")) == N
    # Twice the rows a pass before, twice the kept rows after.
    assert Counter(drawn(of(RandomSampler(range(N), num_samples=2 * N))[1], kept)) == dict.fromkeys(kept, 2)
    weights = np.arange(N, dtype=float)
    weighted = drawn(of(WeightedRandomSampler(weights.tolist(), 1000))[1], kept)
    assert len(weighted) == round(1000 * len(kept) / (N - 1))
    assert set(weighted) <= set(kept)


def test_rows_and_weights_of_our_own_sampler_stay_in_force() -> None:
    replacement = of(PrunedSampler(N, rows=[9, 3, 7], shuffle=False))[1]
    assert drawn(replacement, [3, 9]) == [9, 3]
    with pytest.raises(ArgumentError, match="must keep eligible rows only"):
        drawn(replacement, [3, 4])
    weights = [0.0, 1.0, 3.0, *[0.0] * (N - 3)]
    replacement = of(PrunedSampler(N, sampling_weights=weights, replacement=True, epoch_length=4000))[1]
    counts = Counter(drawn(replacement, [1, 2]))
    assert counts[2] / counts[1] == pytest.approx(3, rel=0.2)


def test_ranks_split_only_what_was_split() -> None:
    shares = []
    for rank in range(2):
        replacement = of(DistributedSampler(range(N), num_replicas=2, rank=rank))[1]
        assert replacement.follows
        shares.append(drawn(replacement, list(range(10))))
    assert sorted(shares[0] + shares[1]) == list(range(10))
    assert not of(RandomSampler(range(N)))[1].follows


def test_batches_count_drop_last_of_both_kinds() -> None:
    sampler = DistributedSampler(range(N), num_replicas=3, rank=0, drop_last=True)
    loader, replacement = of(sampler, drop_last=True)
    assert replacement.batches() == len(loader) == 2
    assert replacement.rows_per_pass == 6
    assert replacement.batches(10) == 1


class Mine(Sampler[int]):
    def __iter__(self) -> Any:
        return iter(range(N))


class MyRandom(RandomSampler):
    pass


class MyBatches(BatchSampler):
    pass


def test_unknown_samplers_name_the_cure() -> None:
    for sampler in (Mine(), MyRandom(range(N)), list(range(N))):
        with pytest.raises(UnsupportedError, match="with_rows"):
            of(sampler)
    loader = DataLoader(range(N), batch_sampler=MyBatches(RandomSampler(range(N)), 3, False))
    with pytest.raises(UnsupportedError, match="MyBatches"):
        Replacement.of(loader)
    with pytest.raises(UnsupportedError, match="more than once"):
        of(SubsetRandomSampler([1, 1, 2]))


def test_an_exchanged_sampler_is_noticed() -> None:
    loader, replacement = of(RandomSampler(range(N)))
    replacement.check_in_place(loader, replacement.base)
    loader.batch_sampler.sampler = RandomSampler(range(N), generator=torch.Generator())
    with pytest.raises(StateError, match="exchanged"):
        replacement.check_in_place(loader, replacement.base)


def test_accelerates_seedable_sampler_is_a_random_one() -> None:
    from accelerate.data_loader import SeedableRandomSampler

    base = SeedableRandomSampler(range(10), data_seed=3)
    replacement = Replacement.of(DataLoader(range(10), batch_size=4, sampler=base))  # type: ignore[arg-type]
    assert (replacement.draws, replacement.follows, replacement.eligible) == (10, False, None)
    sampler = replacement.sampler(Coreset([1, 4, 7], num_rows=10), seed=0, epoch_length="kept")
    sampler.set_epoch(5)  # as Accelerate's loader calls it
    assert sorted(sampler) == [1, 4, 7]


@pytest.mark.parametrize(("pieces", "batches", "step"), [(False, 4, 6), (True, 7, 3)])
def test_a_split_over_processes_is_seen_through(pieces: bool, batches: int, step: int) -> None:
    accelerate = pytest.importorskip("accelerate.data_loader")
    inner = BatchSampler(RandomSampler(range(N)), 3, drop_last=False)
    processes = 3 if pieces else 2
    shard = accelerate.BatchSamplerShard(inner, processes, 1, split_batches=pieces)
    loader = DataLoader(range(N), batch_sampler=shard)  # type: ignore[arg-type]
    replacement = Replacement.of(loader)
    assert replacement.batch_sampler is inner
    assert (replacement.batches(), replacement.rows_per_step) == (batches, step) == (len(loader), step)
    assert replacement.rows_per_pass == sum(len(batch) for batch in loader)
    sampler = inner.sampler = replacement.sampler(Coreset(range(9), num_rows=N), seed=0, epoch_length="kept")
    replacement.check_in_place(loader, sampler)
    assert len(list(loader)) == replacement.batches(9)
    with pytest.raises(StateError, match="exchanged"):
        replacement.check_in_place(loader, RandomSampler(range(N)))


def test_processes_with_as_many_batches_alone_are_followed() -> None:
    accelerate = pytest.importorskip("accelerate.data_loader")

    def of(drop_last: bool) -> Replacement:
        inner = BatchSampler(RandomSampler(range(N)), 3, drop_last)
        shard = accelerate.BatchSamplerShard(inner, 2, 0, even_batches=False)
        return Replacement.of(DataLoader(range(N), batch_sampler=shard))  # type: ignore[arg-type]

    assert of(drop_last=True).batches() == 3
    with pytest.raises(UnsupportedError, match="leave even_batches=True"):
        of(drop_last=False)


def test_batches_of_one_process_are_whole_in_whatever_order_they_come() -> None:
    _, replacement = of(RandomSampler(range(N)))
    assert {replacement.real_rows(batch) for batch in range(7)} == {3}
    accelerate = pytest.importorskip("accelerate.data_loader")
    shard = accelerate.BatchSamplerShard(BatchSampler(RandomSampler(range(N)), 3, False), 2, 0)
    assert Replacement.of(DataLoader(range(N), batch_sampler=shard)).real_rows(0) == 3  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="in_order=True"):
        Replacement.of(DataLoader(range(N), batch_sampler=shard, num_workers=1, in_order=False))  # type: ignore[arg-type]


def test_the_epoch_is_the_frameworks() -> None:
    class Counter:
        iteration = 7

    replacement = of(RandomSampler(range(N)))[1]
    assert replacement.epoch is None
    replacement.counter = counter = Counter()
    assert replacement.epoch == 7
    replacement.go_to(2)
    assert counter.iteration == 2
    sampler = DistributedSampler(range(N), num_replicas=2, rank=0)
    sampler.set_epoch(4)
    assert of(sampler)[1].epoch == 4
