"""GraNd against autograd on each sample alone, for layers with a closed form and for all others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import prunesampler as ps
from prunesampler.cli.training import digits_network, load_digits
from prunesampler.scores import gradients
from prunesampler.scores.gradients import grand, grand_last
from prunesampler.tables.agreement import spearman

C = 5


class Convolutions(nn.Module):
    """Strides, groups, dilation, padding, in-place ReLU, three normalizations, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False).requires_grad_(False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 12, (3, 2), stride=(2, 1), padding=(0, 1), groups=2),
            nn.GroupNorm(3, 12),
            nn.ReLU(inplace=True),
            nn.Conv2d(12, 6, 2, dilation=2, padding_mode="circular", padding=1),
            nn.LayerNorm(6),
        )
        self.head = nn.Linear(6, C)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body[:-1](x)
        return self.head(self.body[-1](x.movedim(1, -1)).mean((1, 2)))


class Tokens(nn.Module):
    """Parameters outside of layers, a layer used twice, and one whose parameters are read from outside."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, 6))
        self.attention = nn.TransformerEncoderLayer(6, 2, 8, batch_first=batch_first)
        self.twice, self.outside, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.LayerNorm(6)
        self.unused, self.head = nn.Linear(6, 6), nn.Linear(6, C, bias=False)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.first.expand(len(x), 1, 6), x.flatten(1).unflatten(1, (-1, 6))[:, :7]], 1)
        x = self.attention(x) if self.batch_first else self.attention(x.transpose(0, 1)).transpose(0, 1)
        x = self.twice(torch.tanh(self.twice(x)))
        x = self.outside(x) + x @ self.outside.weight
        return self.head(self.norm(x).mean(1))


class Mixes(nn.Module):
    """Centres the batch, as a batch norm without running statistics does."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = (
            nn.Linear(12, 6),
            nn.BatchNorm1d(4, track_running_stats=False),
            nn.Linear(24, C),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x.reshape(-1, 12)).reshape(len(x), 4, 6)
        return self.head(torch.tanh(self.norm(x)).flatten(1))


class BranchesOnValues(nn.Module):
    """What torch.func.vmap refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.ones(48)), nn.Linear(48, C)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1) * self.scale
        return self.head(x if x.sum().item() > -1e9 else -x)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "convolutions": Convolutions,
    "tokens": lambda: Tokens(batch_first=True),
    "tokens first": lambda: Tokens(batch_first=False),
    "mixes the batch": Mixes,
    "branches": BranchesOnValues,
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return model


def batch(size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, 4, 4, generator=generator), torch.randint(C, (size,), generator=generator)


def one_at_a_time(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    norms = []
    trained = [p for p in model.parameters() if p.requires_grad]
    for i in range(len(x)):
        loss = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        found = torch.autograd.grad(loss, trained, allow_unused=True)
        norms.append(torch.cat([g.flatten() for g in found if g is not None]).norm())
    return torch.stack(norms)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("memory", [None, 1])
def test_grand_is_the_norm_of_each_samples_own_gradient(name: str, memory: int | None) -> None:
    model, (x, y) = made(name), batch()
    found = grand(model, x, y, memory=memory)
    torch.testing.assert_close(found, one_at_a_time(model, x, y), rtol=1e-4, atol=1e-6)
    assert not found.requires_grad
    assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(grand(model, x[2:5], y[2:5]), found[2:5], rtol=1e-4, atol=1e-6)


def test_a_layout_without_the_batch_first_is_noticed() -> None:
    # As many tokens as samples, so that no shape tells them apart.
    model, (x, y) = made("tokens first"), batch()
    wrong = gradients._together(gradients.Batch(model, x, y), dict(model.named_parameters()), 1 << 20)
    assert not torch.allclose(wrong.sqrt(), one_at_a_time(model, x, y), rtol=1e-2)


def test_a_model_that_vmap_cannot_take_is_done_sample_by_sample(caplog: pytest.LogCaptureFixture) -> None:
    model, (x, y) = made("branches"), batch()
    with caplog.at_level(logging.INFO, "prunesampler"):
        grand(model, x, y)
        grand(model, x, y)
    assert caplog.text.count("GraNd of this BranchesOnValues goes sample by sample") == 1


def test_a_confident_sample_keeps_its_precision() -> None:
    model, (x, y) = nn.Sequential(nn.Flatten(), nn.Linear(48, C)).eval(), batch(3)
    x = 30 * x
    y = model(x).argmax(1)
    logits = model(x).double()
    others = logits.softmax(1).scatter(1, y[:, None], 0)
    error = torch.cat([others, -others.sum(1, keepdim=True)], 1).norm(dim=1)
    wanted = error * (x.double().flatten(1).square().sum(1) + 1).sqrt()
    torch.testing.assert_close(grand(model, x, y), wanted.float(), rtol=1e-3, atol=0)


def test_half_precision_and_keywords_and_an_output_with_logits() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(48, C)

        def forward(self, *, images: Tensor, scale: float) -> dict[str, Tensor]:
            return {"logits": self.head(images.flatten(1) * scale)}

    torch.manual_seed(0)
    model, (x, y) = Named().eval(), batch()
    inputs = {"images": x, "scale": 0.5}
    expected = one_at_a_time(nn.Sequential(nn.Flatten(), model.head), x / 2, y)
    options: dict[str, Any] = {"logits_fn": lambda output: output["logits"]}
    torch.testing.assert_close(grand(model, inputs, y, **options), expected, rtol=1e-5, atol=1e-6)
    model.to(torch.bfloat16)
    found = grand(model, {"images": x.bfloat16(), "scale": 0.5}, y, **options)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.01)


def test_a_model_without_anything_to_train_is_refused() -> None:
    with pytest.raises(ps.UnsupportedError, match="no parameter of this Sequential requires a gradient"):
        grand(made("convolutions").body.requires_grad_(False), *batch())


@pytest.mark.parametrize("bias", [True, False])
def test_grand_last_is_the_norm_of_the_last_layers_gradient(bias: bool) -> None:
    body, (x, y) = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.Tanh()).requires_grad_(False), batch()
    layer = nn.Linear(6, C, bias=bias)
    found = grand_last(layer, body(x), layer(body(x)).detach(), y)
    torch.testing.assert_close(found, one_at_a_time(nn.Sequential(body, layer), x, y))


def test_on_digits_grand_ranks_as_el2n_does_after_some_epochs() -> None:
    train, _ = load_digits()
    dataset = TensorDataset(*train.__getitems__(list(range(600))))
    loader: Any = DataLoader(dataset, 50, shuffle=True, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = digits_network(torch.empty(0))
    names = ("el2n", "grand", "grand_last")
    with pytest.warns(ps.PruneSamplerWarning, match="grand and grand_last of a model that predicts no better than"):
        ps.score(model, loader, scores=names, progress=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(5):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    table = ps.score(model, loader, scores=names, progress=False)
    for name in ("grand", "grand_last"):
        assert spearman(table.scores[name], table.scores["el2n"]) > 0.9
        assert table.directions[name] == "higher"
