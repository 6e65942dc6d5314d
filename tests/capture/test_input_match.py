"""A few values distinguish one batch from another."""

from __future__ import annotations

import gc

import torch
from hypothesis import given
from hypothesis import strategies as st

from prunesampler.capture.input_match import Input, Probe, likeness, sample


@given(st.integers(1, 2000), st.integers(0, 10**6))
def test_a_sample_is_that_of_any_view_of_the_same_elements(numel: int, seed: int) -> None:
    x = torch.randn(numel, generator=torch.Generator().manual_seed(seed))
    assert len(sample(x)) == min(numel, 256)
    assert set(sample(x).tolist()) <= set(x.tolist())
    if numel % 6 == 0:
        image = x.reshape(1, 2, 3, -1)
        assert torch.equal(sample(image.contiguous(memory_format=torch.channels_last)), sample(x))
    for same in (x.double(), x.bfloat16()):
        assert Probe(x).equals(same, sample(same))
    assert not Probe(x).equals(x + 1, sample(x + 1))
    assert not Probe(x).equals(torch.zeros(numel + 1), sample(x))


def test_samples_are_spread_over_the_whole() -> None:
    places = sample(torch.arange(10_000)).sort().values
    gaps = places.diff(prepend=torch.tensor([0]), append=torch.tensor([10_000]))
    assert gaps.max() < 110  # even would be 39


def test_constant_inputs_stand_apart_and_where_they_are_not_constant_throughout_they_do_not() -> None:
    ids, mask = torch.arange(6), torch.ones(6)
    probes = [Probe(mask), Probe(ids)]
    samples = [sample(mask), sample(ids)]
    assert likeness(probes, [mask, ids], samples) == ([(1, 1)], [])
    assert likeness(probes, [mask], samples) == ([], [(0, 0)])
    sparse = torch.zeros(100_000)
    sparse[70_001] = 3.0
    assert sample(sparse).eq(0).all()
    probe, copy, empty = Probe(sparse), sparse.clone(), torch.zeros(100_000)
    assert likeness([probe], [copy], [sample(copy)]) == ([(0, 0)], [])
    assert likeness([probe], [empty], [sample(empty)]) == ([], [])
    assert probe.equals_whole(copy) is True
    assert probe.equals_whole(empty) is False
    assert (int(probe.differs(copy)), int(probe.differs(empty))) == (0, 1)
    del sparse
    gc.collect()
    assert probe.equals_whole(copy) is None
    assert likeness([probe], [copy], [sample(copy)]) == ([(0, 0)], [])


def test_an_input_is_itself_until_it_changes_or_dies() -> None:
    x = torch.zeros(3)
    known = Input.of(x)
    assert known.is_still(x)
    assert known.is_still(x.detach())
    assert not known.is_still(x.clone())
    x += 1
    assert not known.is_still(x)
    known, view = Input.of(x), x.detach()
    del x
    gc.collect()
    assert not known.is_still(view)
