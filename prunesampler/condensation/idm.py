"""Zhao et al. 2023, "Improved Distribution Matching for Dataset Condensation"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunesampler.condensation.dm import distribution_loss
from prunesampler.condensation.objective import Objective, Task, seeded, train_step
from prunesampler.errors import check_int

_CROSS_ENTROPY = 0.1
_AT_FIRST, _EVERY, _AT_ONCE = 3, 30, 2  # networks, iterations until a new one, networks that match or are trained
_BATCH, _RATE = 256, 0.01


class Trained(NamedTuple):
    """A network of the queue, and how it did on the real images that it was trained on."""

    network: nn.Module
    right: list[int]  # of how many
    number: int


def class_aware_loss(network: nn.Module, synthetic: Sequence[Tensor]) -> Tensor:
    """Σ over classes of the mean cross entropy of their synthetic images (equation 9)."""
    losses = []
    for label, images in enumerate(synthetic):
        targets = torch.full((len(images),), label, device=images.device)
        losses.append(F.cross_entropy(network(images), targets))
    return torch.stack(losses).sum()


class IDM(Objective):
    """Distribution matching by partly trained networks, each image holding 2 × 2 smaller ones.

    A queue has up to ``queue`` networks. In each iteration two of them move the images, and two are trained for
    ``steps`` steps on real ones; every 30 iterations a fresh one comes in, for the oldest if the queue is full. The
    cross entropy counts 0.1 times a network's accuracy in training.
    """

    augment, parts = "dsa", 2

    def __init__(self, queue: int = 100, steps: int = 10) -> None:
        self.most, self.steps = check_int("queue", queue, 1), check_int("steps", steps, 0)
        self.queue: list[Trained] = []
        self._weight = 0.0

    def loss(self, network: nn.Module, real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
        """The distribution loss, and the class-aware one as it counts for the network that came last."""
        matched = distribution_loss(network, real, synthetic)
        return matched + self._weight * class_aware_loss(network, synthetic) if self._weight else matched

    def networks(self, task: Task, iteration: int) -> Iterator[nn.Module]:
        """Two of the queue."""
        if iteration % _EVERY == 0:
            first = self.queue[-1].number + 1 if self.queue else 0
            numbers = range(first, first + (1 if self.queue else min(_AT_FIRST, self.most)))
            self.queue = [*self.queue, *(Trained(task.network(number), [0, 0], number) for number in numbers)]
            self.queue = self.queue[-self.most :]
        rng = seeded(task.seed, 4, iteration)
        for place in torch.randperm(len(self.queue), generator=rng)[:_AT_ONCE].tolist():
            right, of = self.queue[place].right
            self._weight = _CROSS_ENTROPY * right / max(of, 1)
            yield self.queue[place].network
        for place in torch.randperm(len(self.queue), generator=rng)[:_AT_ONCE].tolist():
            network, right, _ = self.queue[place]
            optimizer = torch.optim.SGD(network.parameters(), _RATE)  # it has no state
            for _ in range(self.steps):
                images, labels = task.real_rows(rng, _BATCH)
                logits = train_step(network, optimizer, images, labels)
                right[0] += int((logits.argmax(1) == labels).sum())
                right[1] += len(labels)

    def state_dict(self) -> dict[str, Any]:
        """The queue."""
        return {"queue": [(each.network.state_dict(), each.right, each.number) for each in self.queue]}

    def load_state_dict(self, state: dict[str, Any], task: Task) -> None:
        """The queue as it was."""
        self.queue = []
        for weights, right, number in state["queue"]:
            network = task.network(number)
            network.load_state_dict(weights)
            self.queue.append(Trained(network, list(right), number))
