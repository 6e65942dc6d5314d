"""Distribution matching: Zhao and Bilen 2023, "Dataset Condensation with Distribution Matching", equation 5."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from prunesampler.condensation.objective import Objective, Task


def distribution_loss(network: nn.Module, real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Σ over classes of ‖mean embedding of the real − of the synthetic images‖²."""
    with torch.no_grad():
        goals = [network.embed(images).mean(0) for images in real]  # type: ignore[operator]
    found = [network.embed(images).mean(0) for images in synthetic]  # type: ignore[operator]
    return (torch.stack(found) - torch.stack(goals)).square().sum()


class DM(Objective):
    """A fresh network for every update of the images; none is trained."""

    augment = "dsa"

    def loss(self, network: nn.Module, real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
        """See :func:`distribution_loss`."""
        return distribution_loss(network, real, synthetic)

    def networks(self, task: Task, iteration: int) -> Iterator[nn.Module]:
        """One."""
        yield task.network(iteration)
