"""Weighted gradients equal weighted losses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunesampler.errors import BindingError
from prunesampler.tables.coreset import Coreset
from prunesampler.training.sample_weights import SampleWeights, weight_gradient


def test_weighted_gradients_equal_weighted_losses() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 4, generator=generator), torch.tensor([0, 1, 2, 1, 0])
    weights = torch.tensor([0.0, 1.0, 2.5, 0.5, 4.0])
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    logits = ours(x)
    weight_gradient(logits, weights, ours.weight)
    nn.functional.cross_entropy(logits, y).backward()
    (weights * nn.functional.cross_entropy(theirs(x), y, reduction="none")).mean().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_a_loss_that_passes_the_logits_by_is_noticed() -> None:
    model = nn.Linear(4, 3)
    hidden = model(torch.ones(2, 4))
    weight_gradient(hidden * 1.0, torch.ones(2), model.weight)
    with pytest.raises(BindingError, match="weights were not applied"):
        hidden.sum().backward()


def test_weights_are_looked_up_by_row_and_the_path_of_the_loss_is_checked_once() -> None:
    model = nn.Linear(4, 3)
    weights = SampleWeights(Coreset([7, 2, 5], num_rows=9, weights=[0.7, 0.2, 0.5]), model)
    assert weights.of(torch.tensor([5, 7, 2, 5])).tolist() == pytest.approx([0.5, 0.7, 0.2, 0.5])
    large = [2**24, 2**24 + 1, 2**31 + 1]  # in a float32 the first two would be one
    assert SampleWeights(Coreset(large, num_rows=2**32, weights=[1.0, 2.0, 3.0]), None).of(
        torch.tensor(large[::-1])
    ).tolist() == [3.0, 2.0, 1.0]
    logits = model(torch.ones(2, 4))
    weights.apply(torch.tensor([7, 2]), logits * 1.0)
    with pytest.raises(BindingError):
        logits.sum().backward()
    other = model(torch.ones(1, 4))
    weights.apply(torch.tensor([5]), other * 1.0)
    other.sum().backward()  # checked already
