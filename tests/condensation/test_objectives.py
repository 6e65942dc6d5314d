"""The losses against plain loops over classes, layers and rows, in float64; their gradients against differences."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from prunesampler.condensation.dc import gradient_distance, gradient_loss
from prunesampler.condensation.dm import distribution_loss
from prunesampler.condensation.networks import new_network
from prunesampler.condensation.objective import Task, contract, expand, seeded

CLASSES = 3


def network(norm: str = "instance") -> nn.Module:
    return new_network("convnet", (1, 4, 4), CLASSES, 0, width=3, norm=norm).double()


def batches(sizes: tuple[int, ...], seed: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 1, 4, 4, generator=rng, dtype=torch.float64) for size in sizes]


REAL, SYNTHETIC = batches((5, 4, 6), 1), batches((2, 2, 2), 2)


def plain_gradient(model: nn.Module, images: Tensor, label: int) -> list[Tensor]:
    """Of the mean cross entropy, image by image, from a copy."""
    model = copy.deepcopy(model)
    for image in images:
        logits = model(image[None])[0]
        (-(logits[label] - logits.exp().sum().log()) / len(images)).backward()
    return [each.grad for each in model.parameters()]  # type: ignore[misc]


def plain_distance(one: list[Tensor], other: list[Tensor]) -> float:
    total = 0.0
    for a, b in zip(one, other, strict=True):
        if a.ndim == 1:
            continue
        for row in range(len(a)):
            x, y = a[row].flatten().tolist(), b[row].flatten().tolist()
            dot = sum(p * q for p, q in zip(x, y, strict=True))
            norms = math.sqrt(sum(p * p for p in x)) * math.sqrt(sum(q * q for q in y))
            total += 1 - dot / (norms + 1e-6)
    return total


def test_distribution_matching_sums_squared_differences_of_mean_embeddings() -> None:
    model, expected = network(), 0.0
    for ours, theirs in zip(SYNTHETIC, REAL, strict=True):
        means = [sum(model.embed(image[None])[0] for image in images) / len(images) for images in (ours, theirs)]
        expected += sum((a.item() - b.item()) ** 2 for a, b in zip(*means, strict=True))
    assert distribution_loss(model, REAL, SYNTHETIC).item() == pytest.approx(expected, rel=1e-12)


def test_gradient_matching_compares_rows_of_layers_and_leaves_biases_out() -> None:
    model = network()
    pairs = zip(SYNTHETIC, REAL, strict=True)
    expected = sum(
        plain_distance(*(plain_gradient(model, images, label) for images in pair)) for label, pair in enumerate(pairs)
    )
    assert gradient_loss(model, REAL, SYNTHETIC).item() == pytest.approx(expected, rel=1e-9)
    same = [torch.randn(3, 2, 2, 2, dtype=torch.float64), torch.ones(3, dtype=torch.float64)]
    assert float(gradient_distance(same, [same[0] * 7, -same[1]])) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("loss", [distribution_loss, gradient_loss])
def test_the_images_gradient_is_that_of_the_loss(loss: object) -> None:
    model = network("none")
    for each in model.modules():
        if isinstance(each, nn.ReLU):
            each.register_forward_hook(smooth)
    given = torch.stack(SYNTHETIC)[:, :1].requires_grad_()
    assert torch.autograd.gradcheck(lambda images: loss(model, REAL, list(images)), given, atol=1e-6)  # type: ignore[operator]


def smooth(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return inputs[0].tanh()  # ReLU has no second derivative where differences step over its corner


def test_parts_are_cut_and_enlarged_and_put_together_again() -> None:
    images = batches((8,), 3)[0]
    quarters = contract(images, 2)
    assert quarters.shape == (2, 1, 4, 4)
    small = nn.functional.interpolate(images[1:2], (2, 2), mode="bilinear", antialias=True)
    torch.testing.assert_close(quarters[0, 0, :2, 2:], small[0, 0])
    shown = expand(quarters, 2)
    assert shown.shape == (8, 1, 4, 4)
    bottom_left = nn.functional.interpolate(quarters[1:, :, 2:, :2], (4, 4), mode="bilinear")
    assert torch.equal(shown[6:7], bottom_left)


def test_a_batch_norm_is_fixed_to_the_statistics_of_real_images() -> None:
    def make(seed: int) -> nn.Module:
        return new_network("convnet", (1, 4, 4), CLASSES, seed, width=3, norm="batch")

    real = [images.float() for images in REAL]
    task = Task(real, torch.stack(SYNTHETIC).float(), make, (), seed=0, batch=4)
    made = task.network(0)
    expected = made.blocks[0][0](torch.cat(real)).mean((0, 2, 3))  # type: ignore[index]
    torch.testing.assert_close(made.blocks[0][1].running_mean, expected)  # type: ignore[index]
    before = made(real[0])
    task.train_on_synthetic(copy.deepcopy(made), torch.optim.SGD([nn.Parameter(torch.zeros(1))]), seeded(0), 1)
    assert torch.equal(made(real[0]), before)
    images, labels = task.real_rows(seeded(1), 15)
    assert labels.bincount().tolist() == [5, 4, 6]
    for image, label in zip(images, labels, strict=True):
        assert any(torch.equal(image, each) for each in real[int(label)])
