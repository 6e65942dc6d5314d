"""Wang et al. 2022, "CAFE: Learning to Condense Dataset by Aligning Features"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunesampler.condensation.objective import Objective, Task, seeded
from prunesampler.errors import check_int

_WEIGHTS = (1.0, 1.0, 0.1, 0.1)  # of the last layer, the one before it, …
_DISCRIMINATION = 0.01
_SETTLED, _CHANGED = 0.04, 0.03  # of the accuracy, within a window


def alignment_loss(real: Sequence[Sequence[Tensor]], synthetic: Sequence[Sequence[Tensor]]) -> Tensor:
    """Σ over layers and classes of weight · ‖mean feature of the real − of the synthetic images‖² (equation 3).

    Args:
        real: of each class, of each layer first to last, (B, …) features.
        synthetic: alike.
    """
    total = []
    for ours, theirs in zip(synthetic, real, strict=True):
        for place, (one, other) in enumerate(zip(reversed(ours), reversed(theirs), strict=True)):
            weight = _WEIGHTS[min(place, len(_WEIGHTS) - 1)]
            total.append(weight * (one.mean(0) - other.mean(0)).square().sum())
    return torch.stack(total).sum()


def discrimination_loss(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Σ over real images of the cross entropy of their products with the classes' synthetic centres (equation 5).

    Args:
        real: of each class, (B, d) embeddings.
        synthetic: alike.
    """
    centres = torch.stack([embedded.mean(0) for embedded in synthetic])
    losses = []
    for label, embedded in enumerate(real):
        targets = torch.full((len(embedded),), label, device=embedded.device)
        losses.append(F.cross_entropy(embedded @ centres.T, targets, reduction="sum"))
    return torch.stack(losses).sum()


class CAFE(Objective):
    """Images and one network by turns, each until the accuracy on real images says so.

    A network's updates of the images end once the last ``window`` accuracies differ by less than 4 points, and its
    training on the images between two of them once they differ by more than 3; after ``most`` of either in any case.
    """

    rate, iterations = 0.1, 2000

    def __init__(self, window: int = 10, most: int = 100) -> None:
        self.window, self.most = check_int("window", window, 2), check_int("most", most, 2)

    def loss(self, network: nn.Module, real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
        """:func:`alignment_loss` + 0.01 :func:`discrimination_loss`."""
        with torch.no_grad():
            theirs = [network.features(images) for images in real]  # type: ignore[operator]
        ours = [network.features(images) for images in synthetic]  # type: ignore[operator]
        last = [[each[-1].flatten(1) for each in features] for features in (theirs, ours)]
        return alignment_loss(theirs, ours) + _DISCRIMINATION * discrimination_loss(*last)

    def networks(self, task: Task, iteration: int) -> Iterator[nn.Module]:
        """One, as often as the accuracies want it."""
        network, rng = task.network(iteration), seeded(task.seed, 4, iteration)
        optimizer = torch.optim.SGD(network.parameters(), 0.01)
        seen: list[float] = []
        for _ in range(self.most):
            yield network
            seen = [*seen, task.accuracy(network, rng)][-self.window :]
            if len(seen) == self.window and max(seen) - min(seen) < _SETTLED:
                return
            trained: list[float] = []
            for _ in range(self.most):
                task.train_on_synthetic(network, optimizer, rng, 1)
                trained = [*trained, task.accuracy(network, rng)][-self.window :]
                if len(trained) == self.window and max(trained) - min(trained) > _CHANGED:
                    break

    def rate_at(self, share: float) -> float:
        """Halved after 60, 80 and 90 % of the iterations."""
        return self.rate * 0.5 ** sum(share >= each for each in (0.6, 0.8, 0.9))
