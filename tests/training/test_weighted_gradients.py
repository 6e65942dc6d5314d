"""The gradient of a weighted run, in loops of many kinds, is that of a loss that is weighted sample by sample."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import prunesampler as ps
from tests.helpers.training import Leaky, Net

N, BATCH = 24, 4
CHANCES = np.linspace(0.3, 0.7, N)  # they add up to the budget
WEIGHTS = torch.from_numpy(1 / CHANCES).float()
Loss = Callable[..., Tensor]


def by_probability(epoch: int, table: Any) -> ps.Probabilities:
    return ps.Probabilities(CHANCES, budget=N // 2)


def attached(model: nn.Module, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.PruneSamplerWarning)  # of the length
        return ps.attach(DataLoader(Leaky(N), BATCH), model, policy=by_probability, **options)


def plain(logits: Tensor, x: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
    return cross_entropy(logits.float(), y, label_smoothing=smoothing)


def weighted(logits: Tensor, x: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
    each = cross_entropy(logits.float(), y, label_smoothing=smoothing, reduction="none")
    return (each * WEIGHTS[x[:, 0].long()]).mean()


# -- loops: each leaves gradients -------------------------------------------------------------------------------------


def ordinary(model: Any, batches: Iterator[Any], loss: Loss) -> None:
    x, y = next(batches)
    loss(model(x), x, y).backward()


def smoothed(model: Any, batches: Iterator[Any], loss: Loss) -> None:
    x, y = next(batches)
    loss(model(x), x, y, smoothing=0.1).backward()


def with_a_penalty(model: Any, batches: Iterator[Any], loss: Loss) -> None:
    x, y = next(batches)
    logits = model(x)
    logits /= 2  # in place, as temperatures are
    (loss(logits, x, y) + sum(parameter.square().sum() for parameter in model.parameters())).backward()


def accumulated(model: Any, batches: Iterator[Any], loss: Loss) -> None:
    for x, y in itertools.islice(batches, 3):
        (loss(model(x), x, y) / 3).backward()


def in_bfloat16(model: Any, batches: Iterator[Any], loss: Loss) -> None:
    x, y = next(batches)
    with torch.autocast("cpu", torch.bfloat16):
        loss(model(x), x, y).backward()


def scaled_float16(model: Any, batches: Iterator[Any], loss: Loss) -> None:
    x, y = next(batches)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with torch.autocast("cpu", torch.float16):
        value = loss(model(x), x, y)
    scaler.scale(value).backward()
    scaler.unscale_(torch.optim.SGD(model.parameters(), lr=0.1))


def compiled(model: Any, batches: Iterator[Any], loss: Loss) -> None:
    called = torch.compile(model, backend="aot_eager")
    for x, y in itertools.islice(batches, 2):
        loss(called(x), x, y).backward()


def recomputed_blocks(model: Any, batches: Iterator[Any], loss: Loss) -> None:
    body, model.body = model.body, Recomputed(model.body)
    ordinary(model, batches, loss)
    model.body = body


def recomputed_altogether(model: Any, batches: Iterator[Any], loss: Loss) -> None:
    x, y = next(batches)
    loss(checkpoint(model, x.requires_grad_(), use_reentrant=False), x, y).backward()


def recomputed_reentrant(model: Any, batches: Iterator[Any], loss: Loss) -> None:
    x, y = next(batches)
    loss(checkpoint(model, x.requires_grad_(), use_reentrant=True), x, y).backward()


def sharpness_aware(model: Any, batches: Iterator[Any], loss: Loss) -> None:
    x, y = next(batches)
    loss(model(x), x, y).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += parameter.grad
    model.zero_grad()
    loss(model(x), x, y).backward()


def by_autograd_grad(model: Any, batches: Iterator[Any], loss: Loss) -> None:
    x, y = next(batches)
    found = torch.autograd.grad(loss(model(x), x, y), tuple(model.parameters()))
    for parameter, gradient in zip(model.parameters(), found, strict=True):
        parameter.grad = gradient


class Recomputed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.inner, x, use_reentrant=False)


LOOPS = [
    ordinary,
    smoothed,
    with_a_penalty,
    accumulated,
    in_bfloat16,
    scaled_float16,
    compiled,
    recomputed_blocks,
    recomputed_altogether,
    recomputed_reentrant,
    sharpness_aware,
    by_autograd_grad,
]


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler; torch hides it by other means
@pytest.mark.parametrize("loop", LOOPS)
def test_the_gradient_is_that_of_a_loss_weighted_sample_by_sample(loop: Any) -> None:
    model = Net()
    loader, twin, taken = attached(model), copy.deepcopy(model), []
    loop(model, (taken.append(batch) or batch for batch in loader), plain)
    loop(twin, iter(taken), weighted)
    low = {in_bfloat16: 2.0**-7, scaled_float16: 2.0**-10}.get(loop)  # rounding of its logits' gradients
    assert len(gradients(model)) == 4
    for mine, expected in zip(gradients(model), gradients(twin), strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(mine, expected, rtol=low or 1e-5, atol=(low or 1e-6) * scale)
    loop(twin, iter(taken), plain)
    unweighted = torch.cat([gradient.flatten() for gradient in gradients(twin)])
    assert not torch.allclose(unweighted, torch.cat([each.flatten() for each in gradients(model)]), rtol=0.05)


def test_a_loss_that_the_model_computes_from_its_logits_is_weighted() -> None:
    model = Net(output="hf")
    twin = copy.deepcopy(model)
    loader = attached(model)
    x, y = next(iter(loader))
    model(x, labels=y)["loss"].backward()
    weighted(twin(x)["logits"], x, y).backward()
    for mine, expected in zip(gradients(model), gradients(twin), strict=True):
        torch.testing.assert_close(mine, expected)


class Heads(Net):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        return super().forward(x), self.second(x[:, 1:])


@pytest.mark.parametrize(
    ("model", "options", "loss", "message"),
    [
        (Net, {"logits_fn": lambda output: output * 1.0}, lambda out: out, "weights were not applied"),
        (Net, {"logits_fn": lambda output: output.detach()}, lambda out: out, "no gradient"),
        (Heads, {}, lambda out: out[0] + 0.4 * out[1], "several"),
    ],
)
def test_a_loss_that_cannot_be_weighted_through_the_logits_is_refused(
    model: Any, options: Any, loss: Any, message: str
) -> None:
    model = model()
    loader = attached(model, **options)
    x, y = next(iter(loader))
    with pytest.raises(ps.BindingError, match=message):
        cross_entropy(loss(model(x)), y).backward()


def _endless(loader: Any) -> Iterator[tuple[Any, dict[int, float] | None]]:
    while True:
        for number, batch in enumerate(loader):
            if number == 0:
                drawn = loader.pruning.coreset if loader.pruning.phase == "pruned" else None
            weighted = drawn is not None and drawn.weights is not None
            yield batch, dict(zip(drawn.rows.tolist(), drawn.weights, strict=True)) if weighted else None


@pytest.mark.filterwarnings("ignore::prunesampler.PruneSamplerWarning")
@pytest.mark.parametrize("policy", [ps.InfoBatch(anneal=0, budget=0.6), ps.ImportanceSampling(keep=0.5)])
def test_a_loop_that_looks_ahead_weights_by_the_draw_of_each_pass(policy: Any, tmp_path: Path) -> None:
    n = 61
    labels = torch.arange(n) % 3
    loader = DataLoader(TensorDataset(torch.eye(n), labels), batch_size=8, shuffle=True)
    model = nn.Linear(n, 3, bias=False)
    loader = ps.attach(loader, model, policy=policy, save_dir=tmp_path)
    batches = _endless(loader)
    waiting = next(batches)
    seen = 0
    for _ in range(60):
        (x, y), weights = waiting
        waiting = next(batches)
        logits = model(x)
        cross_entropy(logits, y, reduction="sum").backward()
        error = logits.detach().softmax(1) - one_hot(y, 3)
        rows = x.argmax(1).tolist()
        factors = torch.tensor([1.0 if weights is None else weights[row] for row in rows])
        torch.testing.assert_close(model.weight.grad[:, rows].T, factors[:, None] * error)
        seen += int((factors != 1).sum())
        with torch.no_grad():
            model.weight -= 0.1 * model.weight.grad
        model.weight.grad = None
    assert seen > 20
