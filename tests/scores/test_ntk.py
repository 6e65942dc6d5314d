"""The kernel against Jacobians by autograd, one logit at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunesampler as ps
from prunesampler.scores.ntk import ntk, ntk_velocity


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Tanh(), nn.Flatten(), nn.Linear(9, 4)).eval()


@pytest.mark.parametrize("memory", [None, 1, 2000])
def test_it_is_the_product_of_the_logits_gradients(memory: int | None) -> None:
    model, x = network(), torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(1))
    model[0].bias.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(logit, trained, retain_graph=True)])
        for logit in model(x).flatten()
    ]
    jacobian = torch.stack(rows)
    found = ntk(model, {"input": x}, 5, memory=memory)
    torch.testing.assert_close(found, jacobian @ jacobian.T, rtol=1e-4, atol=1e-5)
    assert not found.requires_grad


def test_the_velocity_is_one_minus_a_cosine() -> None:
    x = torch.randn(3, 2, 4)
    first, second = ntk(network(0), x, 3), ntk(network(1), x, 3)
    wanted = 1 - nn.functional.cosine_similarity(first.flatten().double(), second.flatten().double(), dim=0)
    assert ntk_velocity(first, second) == pytest.approx(float(wanted), abs=1e-6)
    assert 0 < ntk_velocity(first, second) < 1
    assert ntk_velocity(first, 3 * first) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ps.ArgumentError, match=r"after must be a kernel of shape \(12, 12\)"):
        ntk_velocity(first, second[:4, :4])


def test_a_frozen_model_is_refused() -> None:
    with pytest.raises(ps.UnsupportedError, match="no parameter of this Sequential requires a gradient"):
        ntk(network().requires_grad_(False), torch.zeros(3, 2, 4), 3)
