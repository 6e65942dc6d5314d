"""The networks that CIFAR-10 is trained on; each is made from a sample of the images, (M, 3, 32, 32), normalized."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["resnet18", "small", "small_plain"]


def small(images: Tensor, width: int = 48) -> nn.Module:
    """About 4 · 10⁷ multiplications an image: what two cores can train often enough to compare a dozen arms."""
    whitening = _Whitening(width)
    whitening.fit(images)
    return nn.Sequential(
        whitening,
        *_pooled(width, 2 * width),
        _Residual(2 * width, 2 * width),
        *_pooled(2 * width, 4 * width),
        _Residual(4 * width, 4 * width),
        *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10)),
    )


def small_plain(images: Tensor, width: int = 48) -> nn.Module:
    """Another architecture to score with: no whitening, no shortcut, average pooling at the end."""
    return nn.Sequential(
        nn.PixelUnshuffle(2),
        *_convolution(12, width),
        *_pooled(width, 2 * width),
        *_convolution(2 * width, 2 * width),
        *_pooled(2 * width, 4 * width),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10)),
    )


def resnet18(images: Tensor) -> nn.Module:
    """He et al. 2016 with a stem for CIFAR: 3 × 3, no pooling."""
    widths = (64, 64, 128, 256, 512)
    blocks = [
        _Residual(widths[i] if first else widths[i + 1], widths[i + 1], 2 if first and i else 1)
        for i in range(4)
        for first in (True, False)
    ]
    return nn.Sequential(*_convolution(3, 64), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class _Whitening(nn.Module):
    """Patches projected on their principal axes, both signs, unit variance; fixed (Coates and Ng 2012)."""

    def __init__(self, width: int, size: int = 4, stride: int = 2) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, width, size, stride, padding=1, bias=False)
        self.convolution.weight.requires_grad = False

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(self.convolution(inputs))

    @torch.no_grad()
    def fit(self, inputs: Tensor) -> None:
        """Take the axes from some images."""
        weight = self.convolution.weight
        patches = nn.functional.unfold(inputs, weight.shape[-1], stride=3).transpose(1, 2).flatten(0, 1)
        variances, axes = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (axes / (variances + 1e-2).sqrt()).T.flip(0)[: len(weight) // 2].reshape(-1, *weight.shape[1:])
        weight.copy_(torch.cat([filters, -filters]))


class _Residual(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, width: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(width, out, stride), nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or width != out:
            self.shortcut = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(self.body(inputs) + self.shortcut(inputs))


def _convolution(width: int, out: int, stride: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(width, out, 3, stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(out), nn.ReLU(inplace=True)


def _pooled(width: int, out: int) -> tuple[nn.Module, ...]:
    """Pooling before normalizing leaves a quarter to normalize."""
    convolution = nn.Conv2d(width, out, 3, padding=1, bias=False)
    return convolution, nn.MaxPool2d(2), nn.BatchNorm2d(out), nn.ReLU(inplace=True)
