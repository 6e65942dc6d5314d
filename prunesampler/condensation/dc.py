"""Gradient matching: Zhao, Mopuri and Bilen 2021, "Dataset Condensation with Gradient Matching"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunesampler.condensation.objective import Objective, Task, seeded
from prunesampler.errors import check_int

_TINY = 1e-6  # as published


def gradient_distance(found: Sequence[Tensor], goal: Sequence[Tensor]) -> Tensor:
    """Σ over layers and their output rows of 1 − cos of the two gradients (section 3.3); vectors, biases, left out.

    >>> gradient_distance([torch.eye(2), torch.ones(2)], [-torch.eye(2), torch.zeros(2)])
    tensor(4.0000)
    """
    total = found[0].new_zeros(())
    for one, other in zip(found, goal, strict=True):
        if one.ndim > 1:
            one, other = one.flatten(1), other.flatten(1)
            cosine = (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1) + _TINY)
            total = total + (1 - cosine).sum()
    return total


def gradient_loss(network: nn.Module, real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Σ over classes of the :func:`gradient_distance` of the network's two loss gradients."""
    parameters = [each for each in network.parameters() if each.requires_grad]

    def gradient(images: Tensor, label: int, graph: bool) -> Sequence[Tensor]:
        targets = torch.full((len(images),), label, device=images.device)
        return torch.autograd.grad(F.cross_entropy(network(images), targets), parameters, create_graph=graph)

    losses = []
    for label, (ours, theirs) in enumerate(zip(synthetic, real, strict=True)):
        losses.append(gradient_distance(gradient(ours, label, True), gradient(theirs, label, False)))
    return torch.stack(losses).sum()


class DC(Objective):
    """Images and one network by turns: the images after its gradients, the network on the images.

    ``outer`` updates of the images an iteration, and ``inner`` epochs of the network between two of them; by default
    the published ones for so many images a class.
    """

    rate, iterations, init = 0.1, 1000, "noise"

    def __init__(self, per_class: int, outer: int | None = None, inner: int | None = None) -> None:
        usual = (1, 1) if per_class < 10 else (10, 50) if per_class < 50 else (50, 10)
        self.outer, self.inner = (
            check_int(name, default if given is None else given, 1)
            for name, given, default in zip(("outer", "inner"), (outer, inner), usual, strict=True)
        )

    def loss(self, network: nn.Module, real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
        """See :func:`gradient_loss`."""
        return gradient_loss(network, real, synthetic)

    def networks(self, task: Task, iteration: int) -> Iterator[nn.Module]:
        """One, ``outer`` times, trained in between."""
        network = task.network(iteration)
        optimizer = torch.optim.SGD(network.parameters(), 0.01)
        for update in range(self.outer):
            if update:
                task.train_on_synthetic(network, optimizer, seeded(task.seed, 4, iteration, update), self.inner)
            yield network
