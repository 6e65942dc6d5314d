from __future__ import annotations

import numpy as np
import pytest

from prunesampler.errors import ArgumentError
from prunesampler.sampling.population import Population, RowStream, whole
from prunesampler.tables.coreset import Coreset

CORESET = Coreset([2, 4, 6], num_rows=10)


def test_a_stream_looks_its_numbers_up():
    stream = RowStream(lambda positions: positions % 2, rows=np.array([7, 5]), count=2, length=2)
    assert stream(np.arange(4)).tolist() == [7, 5, 7, 5]
    assert RowStream(lambda positions: positions, rows=None, count=9, length=9)(np.arange(3)).tolist() == [0, 1, 2]


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
def test_counts_and_lengths(options, eligible, pruned):
    population = Population(10, **options)
    for coreset, expected in ((None, eligible), (CORESET, pruned)):
        stream = population.stream(coreset)
        assert (stream.count, stream.length) == expected
        assert len(set(stream(np.arange(stream.count)).tolist())) == stream.count


def test_a_population_keeps_what_it_was_given():
    rows, weights = np.array([3, 1, 2]), np.ones(10)
    population = Population(10, rows=rows, sampling_weights=weights)
    before = population.stream(None)(np.arange(9)).tolist()
    rows[:], weights[:] = 0, 0
    assert population.stream(None)(np.arange(9)).tolist() == before


def test_identities_tell_populations_apart():
    options = [{}, {"seed": 1}, {"shuffle": False}, {"replacement": True}, {"epoch_length": 10}, {"rows": range(10)}]
    options += [{"rows": range(9, -1, -1)}, {"sampling_weights": np.ones(10)}, {"sampling_weights": np.arange(10)}]
    identities = [tuple(Population(10, **each).identity.values()) for each in options]
    assert len(set(identities)) == len(options)
    assert Population(10, rows=[1, 2]).identity == Population(10, rows=np.array([1, 2], np.int32)).identity


def test_a_short_weighted_epoch_is_a_pass_of_its_own():
    weights = np.where(np.arange(10) == 3, 1e6, 1.0)
    stream = Population(10, sampling_weights=weights, epoch_length=1).stream(None)
    assert stream(np.arange(50)).tolist().count(3) > 45


@pytest.mark.parametrize("value", [0, 5, 1.0, True, "1", None])
def test_whole_numbers_only(value):
    with pytest.raises(ArgumentError, match=r"steps must be an int in \[1, 4\]"):
        whole("steps", value, 1, 4)
