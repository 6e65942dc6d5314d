"""The losses against plain loops over classes, layers and rows, in float64; their gradients against differences."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from prunesampler.condensation.cafe import CAFE
from prunesampler.condensation.dc import gradient_distance, gradient_loss
from prunesampler.condensation.dm import distribution_loss
from prunesampler.condensation.idm import IDM, class_aware_loss
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


def test_cafe_aligns_every_layer_and_tells_classes_apart_by_the_images_centres() -> None:
    model = new_network("convnet", (1, 8, 8), CLASSES, 0, depth=3, width=2).double()
    real, ours = ([torch.nn.functional.interpolate(each, (8, 8)) for each in given] for given in (REAL, SYNTHETIC))
    expected, centres = 0.0, []
    for label in range(CLASSES):
        means = []
        for images in (ours[label], real[label]):
            each = [model.features(image[None]) for image in images]
            means.append([sum(features[layer][0] for features in each) / len(images) for layer in range(3)])
        for layer, weight in ((0, 0.1), (1, 1), (2, 1)):
            expected += weight * ((means[0][layer] - means[1][layer]) ** 2).sum().item()
        centres.append(means[0][2].flatten())
    for label in range(CLASSES):
        for image in real[label]:
            products = [(model.embed(image[None])[0] * centre).sum().item() for centre in centres]
            expected += 0.01 * (math.log(sum(map(math.exp, products))) - products[label])
    assert CAFE().loss(model, real, ours).item() == pytest.approx(expected, rel=1e-9)
    rates = [CAFE().rate_at(share) for share in (0, 0.59, 0.6, 0.8, 0.9)]
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.025, 0.0125])


def test_idm_adds_cross_entropy_by_how_well_a_network_is_trained() -> None:
    def make(seed: int) -> nn.Module:
        return new_network("convnet", (1, 4, 4), CLASSES, seed, width=3).double()

    task = Task(REAL, torch.stack(SYNTHETIC), make, (), seed=0, batch=4, parts=2)
    objective = IDM(queue=4, steps=3)
    shown = task.current()
    assert [len(each) for each in shown] == [8, 8, 8]
    for iteration in (0, 1, 30, 60):
        for model in objective.networks(task, iteration):
            [entry] = [each for each in objective.queue if each.network is model]
            logits = [model(images) for images in shown]
            right, of = entry.right
            entropy = sum((each.logsumexp(1) - each[:, label]).mean().item() for label, each in enumerate(logits))
            expected = distribution_loss(model, REAL, shown).item() + 0.1 * right / max(of, 1) * entropy
            assert objective.loss(model, REAL, shown).item() == pytest.approx(expected, rel=1e-9)
        assert [each.number for each in objective.queue] == {0: [0, 1, 2], 1: [0, 1, 2], 30: [0, 1, 2, 3]}.get(
            iteration, [1, 2, 3, 4]
        )
    again = IDM(queue=4, steps=3)
    again.load_state_dict(objective.state_dict(), task)
    for one, other in zip(objective.queue, again.queue, strict=True):
        assert one.right == other.right
        assert torch.equal(one.network(REAL[0]), other.network(REAL[0]))


def class_aware(model: nn.Module, real: list[Tensor], synthetic: list[Tensor]) -> Tensor:
    return class_aware_loss(model, synthetic)


@pytest.mark.parametrize("loss", [distribution_loss, gradient_loss, CAFE().loss, class_aware])
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
