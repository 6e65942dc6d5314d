"""Curvature against the Hessian, and against gradients of one sample at a time in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunesampler as ps
from prunesampler.scores.curvature import curvature, curvature_rademacher

C, D = 4, 12


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, C)).eval()


def batch(size: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, 4, generator=generator), torch.randint(C, (size,), generator=generator)


def hessian(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    def loss(flat: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(flat.reshape(1, 3, 4)), y[None])

    return torch.autograd.functional.hessian(loss, x.flatten())


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x[None].clone().requires_grad_()
    return torch.autograd.grad(nn.functional.cross_entropy(model(x), y[None]), x)[0].flatten()


def test_one_direction_is_the_hessian_along_the_gradients_signs() -> None:
    model, (x, y) = network(), batch()
    expected = []
    for image, label in zip(x, y, strict=True):
        z = gradient(model, image, label).sign()
        h = 1e-3 * D**0.5
        expected.append(h * (hessian(model, image, label) @ (z / z.norm())).norm())
    torch.testing.assert_close(curvature(model, x, y), torch.stack(expected), rtol=0.02, atol=1e-8)


def test_the_mean_over_random_signs_is_as_in_float64() -> None:
    model, (x, y) = network(), batch()
    found = curvature_rademacher(model, x, y, directions=3, seed=5)
    exact = curvature_rademacher(model.double(), x.double(), y, directions=3, seed=5)
    torch.testing.assert_close(found, exact, rtol=2e-3, atol=1e-8)
    # Its expectation over signs v is close to that of ‖Hv‖, whose square has the mean ‖H‖².
    many = curvature_rademacher(model, x.double(), y, directions=300)
    for value, image, label in zip(many, x.double(), y, strict=True):
        assert 0.6 < value / (1e-3 * hessian(model, image, label).norm()) <= 1.1


@pytest.mark.parametrize("function", [curvature, curvature_rademacher])
def test_neither_the_batch_nor_its_order_nor_the_memory_matters(function: Any) -> None:
    model, (x, y) = network(), batch()
    whole = function(model, x, y)
    assert (whole > 0).all()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(function(model, x[order], y[order], memory=1), whole[order], rtol=1e-3, atol=1e-8)
    assert all(p.grad is None for p in model.parameters())
    assert not whole.requires_grad


def test_several_inputs_move_together_and_the_others_stay() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, a: Tensor, b: Tensor, ids: Tensor) -> dict[str, Tensor]:
            return {"logits": self.inner(torch.cat([a, b], 1) * ids[:, None, None])}

    x, y = batch()
    inputs = {"a": x[:, :1], "b": x[:, 1:], "ids": torch.ones(len(x), dtype=torch.int64)}
    found = curvature(Both().eval(), inputs, y, logits_fn=lambda output: output["logits"])
    torch.testing.assert_close(found, curvature(network(), x, y), rtol=1e-3, atol=1e-8)


def test_inputs_without_floats_are_refused() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, C)).eval()
    with pytest.raises(ps.UnsupportedError, match="none of which is a float"):
        curvature(model, torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
