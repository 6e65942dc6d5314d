from __future__ import annotations

import itertools

import numpy as np
import pytest

from prunesampler.errors import StateError
from prunesampler.sampling.epochs import Reading
from prunesampler.sampling.population import RowStream

LENGTH = 150_000
STREAM = RowStream(lambda positions: positions, rows=None, count=10**9, length=LENGTH)


def reading(*, rank=0, num_replicas=1, epoch=0, start=0, stream=STREAM):
    return Reading(stream, rank=rank, num_replicas=num_replicas, drop_last=False, epoch=epoch, start=start)


@pytest.mark.parametrize(("rank", "num_replicas", "epoch", "start"), [(0, 1, 0, 0), (1, 3, 2, 0), (0, 2, 1, 149_000)])
def test_the_position_is_exact_after_every_row(rank, num_replicas, epoch, start):
    one = reading(rank=rank, num_replicas=num_replicas, epoch=epoch, start=start)
    assert one.position == start
    for step, row in enumerate(one.iterator()):
        assert row == epoch * LENGTH + start + rank + step * num_replicas
        assert one.position == start + (step + 1) * num_replicas
    assert step + 1 == one.share()


def test_rows_are_evaluated_as_they_are_asked_for():
    asked = []

    def numbers(positions):
        asked.append(len(positions))
        return positions

    iterator = reading(stream=RowStream(numbers, rows=None, count=10**9, length=LENGTH)).iterator()
    assert asked == []
    next(iterator)
    assert asked == [4096]
    assert len(list(iterator)) == LENGTH - 1
    assert max(asked) <= 65_536
    assert sum(asked) == LENGTH


def test_an_iterator_goes_on_from_its_state():
    first = reading(epoch=1).iterator()
    taken = list(itertools.islice(first, 5000))
    second = reading().iterator()
    second.load_state_dict(first.state_dict())
    assert next(second) == next(first) == taken[-1] + 1
    assert second.reading.epoch == 1


def test_the_end_of_an_epoch_stays_its_end():
    first = reading().iterator()
    assert len(list(first)) == LENGTH
    assert first.state_dict() == {"epoch": 0, "position": LENGTH}
    second = reading().iterator()
    second.load_state_dict(first.state_dict())
    assert list(second) == []


@pytest.mark.parametrize("state", [{}, {"epoch": 0}, {"epoch": 0, "position": 0, "more": 0}])
def test_a_foreign_state_is_refused(state):
    with pytest.raises(StateError, match="epoch and position"):
        reading().iterator().load_state_dict(state)


def test_a_state_is_not_loaded_halfway():
    iterator = reading().iterator()
    next(iterator)
    with pytest.raises(StateError, match="before its first row"):
        iterator.load_state_dict({"epoch": 0, "position": 0})


def test_rows_are_ints():
    stream = RowStream(lambda positions: positions, rows=np.arange(LENGTH), count=LENGTH, length=LENGTH)
    assert type(next(reading(stream=stream).iterator())) is int
