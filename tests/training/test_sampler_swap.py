"""Each known sampler's place is taken in its own way; unknown ones are refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
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
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from prunesampler.capture.rows import RowBatch, RowStream, row_stream
from prunesampler.errors import ArgumentError, StateError, UnsupportedError
from prunesampler.sampling.sampler import PrunedSampler
from prunesampler.tables.coreset import Coreset
from prunesampler.training.policies.prune_once import PruneOnce
from prunesampler.training.progress import StreamProgress
from prunesampler.training.sampler_swap import BatchSplit, SamplerSwap
from prunesampler.training.stream_swap import StreamSwap

N = 20


def of(sampler: Any = None, **options: Any) -> tuple[Any, SamplerSwap]:
    loader = DataLoader(range(N), batch_size=3, sampler=sampler, **options)
    return loader, SamplerSwap.of(loader)


def drawn(swap: SamplerSwap, kept: list[int], epoch_length: Any = "kept") -> list[int]:
    return list(swap.sampler(Coreset(kept, num_rows=N), seed=0, epoch_length=epoch_length))


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
    loader, swap = of(sampler)
    assert (swap.num_eligible, swap.draws) == (eligible, draws)
    assert swap.batches() == len(loader)
    assert swap.rows_per_pass == sum(len(batch) for batch in loader)


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
    swap = of(PrunedSampler(N, rows=[9, 3, 7], shuffle=False))[1]
    assert drawn(swap, [3, 9]) == [9, 3]
    with pytest.raises(ArgumentError, match="must keep eligible rows only"):
        drawn(swap, [3, 4])
    weights = [0.0, 1.0, 3.0, *[0.0] * (N - 3)]
    swap = of(PrunedSampler(N, sampling_weights=weights, replacement=True, epoch_length=4000))[1]
    counts = Counter(drawn(swap, [1, 2]))
    assert counts[2] / counts[1] == pytest.approx(3, rel=0.2)


def test_ranks_split_only_what_was_split() -> None:
    shares = []
    for rank in range(2):
        swap = of(DistributedSampler(range(N), num_replicas=2, rank=rank))[1]
        assert swap.follows
        shares.append(drawn(swap, list(range(10))))
    assert sorted(shares[0] + shares[1]) == list(range(10))
    assert not of(RandomSampler(range(N)))[1].follows


def test_batches_count_drop_last_of_both_kinds() -> None:
    sampler = DistributedSampler(range(N), num_replicas=3, rank=0, drop_last=True)
    loader, swap = of(sampler, drop_last=True)
    assert swap.batches() == len(loader) == 2
    assert swap.rows_per_pass == 6
    assert swap.batches(10) == 1


class Mine(Sampler[int]):
    def __iter__(self) -> Any:
        return iter(range(N))


class MyRandom(RandomSampler):
    pass


class MyBatches(BatchSampler):
    pass


def test_unknown_samplers_name_the_cure() -> None:
    for sampler in (Mine(), MyRandom(range(N)), list(range(N))):
        with pytest.raises(UnsupportedError, match="keep=None"):
            of(sampler)
    loader = DataLoader(range(N), batch_sampler=MyBatches(RandomSampler(range(N)), 3, False))
    with pytest.raises(UnsupportedError, match="MyBatches"):
        SamplerSwap.of(loader)
    with pytest.raises(UnsupportedError, match="more than once"):
        of(SubsetRandomSampler([1, 1, 2]))


def test_an_exchanged_sampler_is_noticed() -> None:
    loader, swap = of(RandomSampler(range(N)))
    swap.check_in_place(loader, swap.base)
    loader.batch_sampler.sampler = RandomSampler(range(N), generator=torch.Generator())
    with pytest.raises(StateError, match="exchanged"):
        swap.check_in_place(loader, swap.base)


def test_accelerates_seedable_sampler_is_a_random_one() -> None:
    from accelerate.data_loader import SeedableRandomSampler

    base = SeedableRandomSampler(range(10), data_seed=3)
    swap = SamplerSwap.of(DataLoader(range(10), batch_size=4, sampler=base))  # type: ignore[arg-type]
    assert (swap.draws, swap.follows, swap.eligible) == (10, False, None)
    sampler = swap.sampler(Coreset([1, 4, 7], num_rows=10), seed=0, epoch_length="kept")
    sampler.set_epoch(5)  # as Accelerate's loader calls it
    assert sorted(sampler) == [1, 4, 7]


@pytest.mark.parametrize(("pieces", "batches", "step"), [(False, 4, 6), (True, 7, 3)])
def test_a_split_over_processes_is_seen_through(pieces: bool, batches: int, step: int) -> None:
    accelerate = pytest.importorskip("accelerate.data_loader")
    inner = BatchSampler(RandomSampler(range(N)), 3, drop_last=False)
    processes = 3 if pieces else 2
    shard = accelerate.BatchSamplerShard(inner, processes, 1, split_batches=pieces)
    loader = DataLoader(range(N), batch_sampler=shard)  # type: ignore[arg-type]
    swap = SamplerSwap.of(loader)
    assert swap.batch_sampler is inner
    assert (swap.batches(), swap.rows_per_step) == (batches, step) == (len(loader), step)
    assert swap.rows_per_pass == sum(len(batch) for batch in loader)
    sampler = inner.sampler = swap.sampler(Coreset(range(9), num_rows=N), seed=0, epoch_length="kept")
    swap.check_in_place(loader, sampler)
    assert len(list(loader)) == swap.batches(9)
    with pytest.raises(StateError, match="exchanged"):
        swap.check_in_place(loader, RandomSampler(range(N)))


def test_processes_with_as_many_batches_alone_are_followed() -> None:
    accelerate = pytest.importorskip("accelerate.data_loader")

    def of(drop_last: bool) -> SamplerSwap:
        inner = BatchSampler(RandomSampler(range(N)), 3, drop_last)
        shard = accelerate.BatchSamplerShard(inner, 2, 0, even_batches=False)
        return SamplerSwap.of(DataLoader(range(N), batch_sampler=shard))  # type: ignore[arg-type]

    assert of(drop_last=True).batches() == 3
    with pytest.raises(UnsupportedError, match="leave even_batches=True"):
        of(drop_last=False)


def test_batches_of_one_process_are_whole_in_whatever_order_they_come() -> None:
    _, swap = of(RandomSampler(range(N)))
    assert {swap.real_rows(batch) for batch in range(7)} == {3}
    accelerate = pytest.importorskip("accelerate.data_loader")
    shard = accelerate.BatchSamplerShard(BatchSampler(RandomSampler(range(N)), 3, False), 2, 0)
    assert SamplerSwap.of(DataLoader(range(N), batch_sampler=shard)).real_rows(0) == 3  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="in_order=True"):
        SamplerSwap.of(DataLoader(range(N), batch_sampler=shard, num_workers=1, in_order=False))  # type: ignore[arg-type]


def test_the_epoch_is_the_frameworks() -> None:
    class Counter:
        iteration = 7

    swap = of(RandomSampler(range(N)))[1]
    assert swap.epoch is None
    swap.counter = counter = Counter()
    assert swap.epoch == 7
    swap.go_to(2)
    assert counter.iteration == 2
    sampler = DistributedSampler(range(N), num_replicas=2, rank=0)
    sampler.set_epoch(4)
    assert of(sampler)[1].epoch == 4


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("cuts_batches", "even"), [(False, True), (False, False), (True, True), (True, False)])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_batches_rows_and_repeats_are_accelerates(
    processes: int, cuts_batches: bool, even: bool, drop_last: bool
) -> None:
    accelerate = pytest.importorskip("accelerate.data_loader")
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


class Stream:
    num_rows, fingerprint, num_replicas = 9, "sha256:x", 2

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def iter_rows(self) -> Iterator[RowBatch]:
        return iter(())

    def prunable(self, seed: int) -> None:
        self.calls.append(("prunable", seed))

    def prune(self, rows: Any) -> None:
        self.calls.append(("prune", rows))

    def adopt(self, loader: Any) -> None:
        raise AssertionError


def test_what_takes_the_samplers_place_decides_what_the_stream_lets_through() -> None:
    stream = Stream()
    assert isinstance(stream, RowStream)
    assert row_stream(stream) is stream
    swap = StreamSwap(stream, PruneOnce(), seed=3)
    assert (swap.num_rows, swap.num_eligible, swap.num_replicas) == (9, 9, 2)
    coreset = Coreset([1, 2], num_rows=9)
    order = swap.sampler(coreset, seed=0, epoch_length="kept")
    swap.exchange(order)
    swap.exchange(swap.base)
    assert stream.calls == [("prunable", 3), ("prune", coreset), ("prune", None)]
    assert order.state_dict() == {"epoch": 0, "position": 0}
    assert order.began == (0, 0)
    assert swap.draws_of(4, "kept") == 4
    assert swap.batches() is None  # type: ignore[func-returns-value]
    assert isinstance(swap.progress(2), StreamProgress)


@pytest.mark.parametrize("epochs", [1, 3])
def test_whole_passes_are_counted(epochs: int) -> None:
    progress = StreamSwap(Stream(), PruneOnce(), seed=0).progress(epochs)
    for _ in range(epochs):
        assert not progress.is_due
        progress.train(40)
        progress.train(60)
        progress.end_epoch()
    assert progress.is_due


def test_a_short_look_is_no_pass_but_most_of_one_is() -> None:
    progress = StreamProgress(2)
    progress.end_epoch()
    assert progress.ended == 0
    progress.train(100)
    progress.end_epoch()
    progress.train(49)
    assert not progress.is_due
    progress.end_epoch()
    assert progress.ended == 1
    progress.train(75)
    assert progress.is_due
    progress.cut_off = 5
    assert not progress.is_due
