"""Whether what is taken for logits and targets can be that, told from the first batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from prunesampler.capture.plausibility import FirstBatches, all_in_unit_interval, check_no_probabilities, many_columns
from prunesampler.errors import UnsupportedError


def some(n: int = 40, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, classes, generator=generator), torch.randint(classes, (n,), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_probabilities_are_refused_and_their_logarithms_are_not(dtype: torch.dtype, classes: int) -> None:
    logits, _ = some(classes=classes)
    probabilities = logits.softmax(1).to(dtype)
    with pytest.raises(UnsupportedError, match=r"logits_fn=lambda output: output\.clamp_min\(1e-9\)\.log\(\)"):
        check_no_probabilities(probabilities)
    with pytest.raises(UnsupportedError):
        check_no_probabilities(probabilities.float())  # as a framework makes them
    cured = probabilities.float().clamp_min(1e-9).log()
    check_no_probabilities(cured)
    assert (cured.softmax(1) - logits.softmax(1)).abs().max() < 0.01


@pytest.mark.parametrize(
    "logits",
    [
        some()[0],
        some()[0].relu(),
        torch.zeros(5, 3),
        torch.full((5, 4), 0.26),
        torch.tensor([[0.5, 0.5], [0.4, 0.5]]),
        torch.tensor([[1.5, -0.5]]),
        torch.zeros(0, 3),
        torch.full((2, 3), torch.nan),
    ],
)
def test_logits_are_no_probabilities(logits: Tensor) -> None:
    check_no_probabilities(logits)


def test_outputs_of_a_sigmoid_are_told_of() -> None:
    logits, targets = some()
    text = str(all_in_unit_interval(logits.sigmoid()))
    assert "logits_fn=lambda output: torch.logit(output, 1e-6)" in text
    torch.testing.assert_close(torch.logit(logits.sigmoid(), 1e-6), logits, rtol=0, atol=1e-5)
    assert FirstBatches(given=False).look(logits.sigmoid(), targets) == text
    assert FirstBatches(given=True).look(logits.sigmoid(), targets) is None
    for other in (logits, torch.zeros(40, 4), torch.ones(40, 4), logits.sigmoid()[:3], 2 * logits.sigmoid()):
        assert all_in_unit_interval(other) is None


LOSSES: dict[str, Any] = {
    "cross entropy": cross_entropy,
    "smoothed": lambda z, y: cross_entropy(z, y, label_smoothing=0.1),
    "scaled, as a GradScaler does": lambda z, y: 65536 * cross_entropy(z, y),
    "focal": lambda z, y: ((1 - z.softmax(1)[range(len(y)), y]) ** 2 * cross_entropy(z, y, reduction="none")).mean(),
    "one against all": lambda z, y: nn.functional.binary_cross_entropy_with_logits(z, one_hot(y, 4).float()),
    "hinge": nn.functional.multi_margin_loss,
    "distances": lambda z, y: mse_loss(z / 4, one_hot(y, 4).float()),
    "of a part of the batch": lambda z, y: cross_entropy(z[::2], y[::2]),
    "with a penalty": lambda z, y: cross_entropy(z, y) + 1e-4 * z.square().mean(),
}


def verdict(loss: Any, *, batches: int = 4, told: Any = lambda y: y, several_heads: bool = False) -> str | None:
    first = FirstBatches(given=False)
    for seed in range(batches):
        logits, targets = some(10, seed=seed)
        logits.requires_grad_()
        first.look(logits, told(targets))
        if loss is not None:
            loss(logits, targets).backward()
    return first.verdict(several_heads=several_heads)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_of_these_labels_agrees(loss: str) -> None:
    assert verdict(LOSSES[loss]) is None


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_of_other_labels_does_not(loss: str) -> None:
    text = verdict(LOSSES[loss], told=lambda y: (y + 1) % 4)
    assert text is not None
    assert "target_fn=" in text
    assert "logits_fn=" in text
    assert verdict(LOSSES[loss], told=lambda y: y // 2) is not None


@pytest.mark.parametrize(
    "loss", [None, lambda z, y: 0 * z.sum(), lambda z, y: z.sum() * torch.nan, lambda z, y: z[:1].mean() * 0]
)
def test_where_no_gradient_comes_nothing_is_said(loss: Any) -> None:
    assert verdict(loss) is None
    assert (verdict(loss, several_heads=True) is None) == (loss is not None)


def test_the_gradient_is_left_as_it_was() -> None:
    logits, targets = some()
    plain, looked_at = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    FirstBatches(given=True).look(looked_at, targets)
    for z in (plain, looked_at):
        cross_entropy(z, targets).backward()
    assert torch.equal(plain.grad, looked_at.grad)  # type: ignore[arg-type]


def test_embeddings_are_told_by_their_columns_once_enough_labels_are_known() -> None:
    first = FirstBatches(given=False)
    told = [first.look(torch.randn(8, 64), torch.arange(8) % 5) for _ in range(8)]
    assert [text is not None for text in told] == [False, False, False, True, *[False] * 4]
    assert "labels go up to 4" in str(told[3])
    assert first.over
    assert FirstBatches(given=True).look(torch.randn(40, 64), torch.arange(40) % 5) is None


@pytest.mark.parametrize(
    ("columns", "classes", "told"), [(10, 10, False), (10, 3, False), (40, 10, True), (4, 1, False)]
)
def test_far_more_columns_than_classes(columns: int, classes: int, told: bool) -> None:
    assert (many_columns(columns, classes) is not None) == told
