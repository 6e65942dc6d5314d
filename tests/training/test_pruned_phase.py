"""The pruned epochs: how long they are, where they stand, and that they give way again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from prunesampler.capture.binder import Pass, Token
from prunesampler.errors import BindingError, StateError
from prunesampler.selection.select import Selection
from prunesampler.tables.coreset import Coreset
from prunesampler.training.checkpoint import coreset_state
from prunesampler.training.config import RunConfig
from prunesampler.training.policies.prune_once import PruneOnce
from prunesampler.training.pruned_phase import PrunedPhase
from prunesampler.training.sampler_swap import SamplerSwap

N, BATCH = 20, 3
KEPT = [1, 2, 3, 5, 8, 13, 19]


def made(**options: Any) -> tuple[Any, PrunedPhase]:
    loader = DataLoader(range(N), batch_size=BATCH, shuffle=True)  # type: ignore[arg-type]
    policy = PruneOnce(options.get("selection", Selection(keep=7)), 1, options.get("epoch_length", "kept"))
    config = RunConfig(policy, ("el2n",), "mean", False, seed=0)
    return loader, PrunedPhase(config, SamplerSwap.of(loader), None, fingerprint=None)


def test_their_length_is_known_before_unless_it_hangs_on_the_scores() -> None:
    assert made()[1].batches(0) == 3
    assert made(epoch_length="full")[1].batches(0) == made(selection=None)[1].batches(0) == 7
    loader, pruned = made(selection=Selection(keep=5))
    assert pruned.batches(0) == 2
    pruned.begin(Coreset(KEPT, num_rows=N))
    assert pruned.batches(0) == len(loader) == 3


def test_they_go_on_where_they_were_and_give_way_again() -> None:
    loader, pruned = made()
    base = pruned.sampler
    pruned.begin(Coreset(KEPT, num_rows=N))
    epochs = [list(loader.batch_sampler.sampler) for _ in range(2)]
    assert [sorted(rows) for rows in epochs] == [KEPT] * 2
    of = Pass(0)
    pruned.started(of)
    of.trained = 1
    state = coreset_state(Coreset(KEPT, num_rows=N)), pruned.position(of)

    again, resumed = made()
    assert resumed.resume(*state, mid_epoch=True) == 0
    assert list(again.batch_sampler.sampler) == epochs[1][BATCH:]
    assert resumed.resume(*state, mid_epoch=False) == 1
    assert list(again.batch_sampler.sampler) == epochs[1]
    pruned.end()
    assert loader.batch_sampler.sampler is pruned.sampler is base


def test_what_does_not_fit_changes_nothing() -> None:
    loader, pruned = made()
    base = pruned.sampler
    pruned.begin(Coreset(KEPT, num_rows=N))
    position = pruned.position(None)
    pruned.end()
    for coreset, where in (
        (Coreset(KEPT, num_rows=N + 1), position),
        (Coreset(KEPT[1:], num_rows=N), position),
        (Coreset(KEPT, num_rows=N), None),
    ):
        with pytest.raises(StateError):
            pruned.resume(coreset_state(coreset), where, mid_epoch=True)
        assert loader.batch_sampler.sampler is pruned.sampler is base


def test_weights_reach_the_gradient() -> None:
    _, pruned = made()
    assert not pruned.weighted
    pruned.begin(Coreset([1, 4], num_rows=N, weights=[0.5, 2.0]))
    assert pruned.weighted
    token = Token(torch.tensor([4, 1]), None, Pass(0), 0, True)
    iter(pruned.sampler)
    pruned.started(token.of)
    pruned.begin(Coreset([1, 4], num_rows=N, weights=[3.0, 4.0]))  # the loop looks ahead: the pass has its own weights
    scored = Token(token.rows, None, Pass(1), 0, True)
    for of, expected in ((token, [2.0, 0.5]), (scored, [1.0, 1.0])):
        logits = torch.ones(2, 1, requires_grad=True)
        pruned.weight(of, logits)
        logits.sum().backward()
        assert logits.grad is not None
        assert logits.grad.flatten().tolist() == expected
    with pytest.raises(BindingError):
        pruned.weight(token, logits[:1])
    pruned.end()
    assert not pruned.weighted
