from __future__ import annotations

import itertools

import numpy as np
import pytest

from prunesampler.errors import StateError
from prunesampler.sampling.epochs import EpochReader, RowOrder
from prunesampler.sampling.sampler import PrunedSampler
from prunesampler.tables.coreset import Coreset

CORESET = Coreset([2, 4, 6], num_rows=10)
LENGTH = 150_000
STREAM = RowOrder(lambda positions: positions, rows=None, count=10**9, length=LENGTH)


def reader(*, rank=0, num_replicas=1, epoch=0, start=0, stream=STREAM):
    return EpochReader(stream, rank=rank, num_replicas=num_replicas, drop_last=False, epoch=epoch, start=start)


@pytest.mark.parametrize(("rank", "num_replicas", "epoch", "start"), [(0, 1, 0, 0), (1, 3, 2, 0), (0, 2, 1, 149_000)])
def test_the_position_is_exact_after_every_row(rank, num_replicas, epoch, start):
    one = reader(rank=rank, num_replicas=num_replicas, epoch=epoch, start=start)
    assert one.position == start
    for step, row in enumerate(one.iterator()):
        assert row == epoch * LENGTH + start + rank + step * num_replicas
        assert one.position == start + (step + 1) * num_replicas
    assert step + 1 == len(one)


def test_rows_are_computed_in_chunks_as_they_are_asked_for():
    asked = []

    def numbers(positions):
        asked.append(len(positions))
        return positions

    iterator = reader(stream=RowOrder(numbers, rows=None, count=10**9, length=LENGTH)).iterator()
    assert asked == []
    next(iterator)
    assert asked == [4096]
    assert len(list(iterator)) == LENGTH - 1
    assert max(asked) <= 65_536
    assert sum(asked) == LENGTH


def test_an_iterator_goes_on_from_its_state():
    first = reader(epoch=1).iterator()
    taken = list(itertools.islice(first, 5000))
    second = reader().iterator()
    second.load_state_dict(first.state_dict())
    assert next(second) == next(first) == taken[-1] + 1
    assert second.reader.epoch == 1


def test_the_end_of_an_epoch_stays_its_end():
    first = reader().iterator()
    assert len(list(first)) == LENGTH
    assert first.state_dict() == {"epoch": 0, "position": LENGTH}
    second = reader().iterator()
    second.load_state_dict(first.state_dict())
    assert list(second) == []


def test_an_iterator_refuses_a_foreign_state_and_one_that_comes_late():
    iterator = reader().iterator()
    for state in ({}, {"epoch": 0}, {"epoch": 0, "position": 0, "more": 0}):
        with pytest.raises(StateError, match="epoch and position"):
            iterator.load_state_dict(state)
    next(iterator)
    with pytest.raises(StateError, match="before its first row"):
        iterator.load_state_dict({"epoch": 0, "position": 0})


# --- which rows -------------------------------------------------------------------------------------------


def test_a_stream_gives_the_rows_of_its_numbers():
    stream = RowOrder(lambda positions: positions % 2, rows=np.array([7, 5]), count=2, length=2)
    assert stream(np.arange(4)).tolist() == [7, 5, 7, 5]
    assert STREAM(np.arange(3)).tolist() == [0, 1, 2]
    iterator = reader(stream=RowOrder(lambda positions: positions, np.arange(9), count=9, length=9)).iterator()
    assert type(next(iterator)) is int


@pytest.mark.parametrize(
    ("options", "eligible", "pruned"),
    [
        ({}, (10, 10), (3, 3)),
        ({"epoch_length": "full"}, (10, 10), (3, 10)),
        ({"epoch_length": 4}, (10, 4), (3, 4)),
        ({"rows": [6, 4, 2, 0], "epoch_length": "full"}, (4, 4), (3, 4)),
        ({"rows": [6, 4, 2, 0]}, (4, 4), (3, 3)),
    ],
)
def test_counts_and_lengths_of_streams(options, eligible, pruned):
    for coreset, expected in ((None, eligible), (CORESET, pruned)):
        stream = PrunedSampler(10, coreset=coreset, **options)._stream
        assert (stream.count, stream.length) == expected
        assert len(set(stream(np.arange(stream.count)).tolist())) == stream.count


def test_arguments_are_copied():
    rows, weights = np.array([3, 1, 2]), np.ones(10)
    sampler = PrunedSampler(10, rows=rows, sampling_weights=weights)
    before = list(sampler)
    rows[:], weights[:] = 0, 0
    sampler.set_epoch(0)
    assert list(sampler) == before
    assert sampler.eligible.tolist() == [3, 1, 2]


def test_different_options_have_different_identities():
    options = [{}, {"seed": 1}, {"shuffle": False}, {"replacement": True}, {"epoch_length": 10}, {"rows": range(10)}]
    options += [{"rows": range(9, -1, -1)}, {"sampling_weights": np.ones(10)}, {"sampling_weights": np.arange(10)}]
    identities = [tuple(PrunedSampler(10, **each).state_dict().values()) for each in options]
    assert len(set(identities)) == len(options)
    same = [PrunedSampler(10, rows=rows).state_dict() for rows in ([1, 2], np.array([1, 2], np.int32))]
    assert same[0] == same[1]


def test_a_short_weighted_epoch_is_a_pass_of_its_own():
    weights = np.where(np.arange(10) == 3, 1e6, 1.0)
    sampler = PrunedSampler(10, sampling_weights=weights, epoch_length=1)
    assert [row for _ in range(50) for row in sampler].count(3) > 45
