"""The two recipes of the CIFAR-10 experiment; images, training loop and the small network are the demo's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from prunesampler.cli.training import Recipe, Residual, convolution, pooled, small

__all__ = ["SETTINGS", "Setting", "milestones", "resnet18", "small_plain"]


def small_plain(images: Tensor, width: int = 48) -> nn.Module:
    """Another architecture to score with: no whitening, no shortcut, average pooling at the end."""
    return nn.Sequential(
        nn.PixelUnshuffle(2),
        *convolution(12, width),
        *pooled(width, 2 * width),
        *convolution(2 * width, 2 * width),
        *pooled(2 * width, 4 * width),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10)),
    )


def resnet18(images: Tensor) -> nn.Module:
    """He et al. 2016 with a stem for CIFAR: 3 × 3, no pooling."""
    widths = (64, 64, 128, 256, 512)
    blocks = [
        Residual(widths[i] if first else widths[i + 1], widths[i + 1], 2 if first and i else 1)
        for i in range(4)
        for first in (True, False)
    ]
    return nn.Sequential(*convolution(3, 64), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def milestones(step: int, steps: int) -> float:
    """Paul et al.: times 0.2 at 60, 120 and 160 of 200 epochs, scaled."""
    return float(0.2 ** sum(step >= share * steps for share in (0.3, 0.6, 0.8)))


@dataclass(frozen=True)
class Setting:
    """A recipe and its experiment.

    Attributes:
        recipe: of every arm.
        transfer: another network, which only scores.
        epochs: of the full run; ``--epochs`` replaces it.
        score_share: how far into the full run the scores are taken.
        floor: test accuracy that full data must reach before any other arm counts.
    """

    recipe: Recipe
    transfer: Callable[[Tensor], nn.Module]
    epochs: int
    score_share: float
    floor: float

    def score_epochs(self, epochs: int) -> int:
        return max(2, round(self.score_share * epochs))


SETTINGS = {
    "small": Setting(Recipe(small, batch_size=64), small_plain, epochs=10, score_share=0.3, floor=0.85),
    # Paul et al. 2021, appendix B.
    "resnet18": Setting(
        Recipe(resnet18, batch_size=128, schedule=milestones), small, epochs=200, score_share=0.1, floor=0.945
    ),
}
