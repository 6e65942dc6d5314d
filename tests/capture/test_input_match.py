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
    assert Probe(numel, sample(x)).equals(numel, sample(x.double()))
    assert Probe(numel, sample(x)).equals(numel, sample(x.bfloat16()))
    assert not Probe(numel, sample(x)).equals(numel, sample(x + 1))
    assert not Probe(numel, sample(x)).equals(numel + 1, sample(x))


def test_samples_are_spread_over_the_whole() -> None:
    places = sample(torch.arange(10_000)).sort().values
    gaps = places.diff(prepend=torch.tensor([0]), append=torch.tensor([10_000]))
    assert gaps.max() < 110  # even would be 39


def test_constant_inputs_count_only_where_there_is_nothing_else() -> None:
    ids, mask = torch.arange(6), torch.ones(6)
    probes = [Probe(6, sample(mask)), Probe(6, sample(ids))]
    assert likeness(probes, [(6, sample(mask)), (6, sample(ids))]) == [(1, 1)]
    assert likeness(probes, [(6, sample(mask))]) == []
    assert likeness(probes[:1], [(6, sample(mask))]) == [(0, 0)]


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
