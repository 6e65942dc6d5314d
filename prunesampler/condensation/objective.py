"""What an objective works on, and what it must say of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunesampler._random import mix
from prunesampler.condensation.augment import augment, draw

Rng = torch.Generator


def seeded(*parts: int) -> Rng:
    """A generator on the CPU of mixed seeds."""
    return torch.Generator().manual_seed(mix(*parts) % 2**63)


@dataclass
class Task:
    """The real images, the synthetic ones, and how networks come about. Images are normalized, on one device.

    Attributes:
        classes: of each class its real images, (N_c, C, H, W).
        synthetic: (K, n, C, H, W), a leaf that takes a gradient.
        make: seed → a network on the device.
        kinds: of augmentation.
        seed: everything random is drawn by it and by what it is for.
        parts: each synthetic image holds parts × parts smaller ones.
    """

    classes: list[Tensor]
    synthetic: Tensor
    make: Callable[[int], nn.Module]
    kinds: tuple[str, ...]
    seed: int
    batch: int
    parts: int = 1

    def network(self, number: int) -> nn.Module:
        """A fresh network; where it has batch norms, these are fixed to the statistics of 16 real images a class."""
        network = self.make(mix(self.seed, 1, number)).train()
        norms = [each for each in network.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
        if norms:
            for norm in norms:
                norm.momentum = None  # the plain mean
            with torch.no_grad():
                network(torch.cat(self.real(seeded(self.seed, 2, number), 16)))
            for norm in norms:
                norm.eval()
        return network

    def real(self, rng: Rng, count: int) -> list[Tensor]:
        """Of each class up to ``count`` real images at random."""
        return [images[torch.randperm(len(images), generator=rng)[:count]] for images in self.classes]

    def current(self) -> list[Tensor]:
        """Of each class the synthetic images that a network is shown, with their gradient."""
        return [expand(images, self.parts) for images in self.synthetic]

    def pairs(self, rng: Rng) -> tuple[list[Tensor], list[Tensor]]:
        """Real and synthetic images of each class, both of a class through one draw of augmentation."""
        real, synthetic = self.real(rng, self.batch), self.current()
        drawn = [draw(self.kinds, rng) for _ in real]
        return [[augment(*each) for each in zip(images, drawn, strict=True)] for images in (real, synthetic)]  # type: ignore[return-value]

    def real_rows(self, rng: Rng, count: int) -> tuple[Tensor, Tensor]:
        """Real images of all classes, as often as they come, and their labels."""
        sizes = torch.tensor([len(images) for images in self.classes])
        labels = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        rows = torch.randperm(len(labels), generator=rng)[:count]
        first = sizes.cumsum(0) - sizes
        found = [self.classes[label][row - first[label]] for row, label in zip(rows, labels[rows], strict=True)]
        return torch.stack(found), labels[rows].to(found[0].device)

    def train_on_synthetic(self, network: nn.Module, optimizer: torch.optim.Optimizer, rng: Rng, epochs: int) -> None:
        """Train a network on the synthetic images as they are now."""
        images, labels = stacked([each.detach() for each in self.current()])
        for _ in range(epochs):
            for rows in torch.randperm(len(labels), generator=rng).split(256):
                drawn = draw(self.kinds, rng, len(rows))
                train_step(network, optimizer, augment(images[rows], drawn), labels[rows])

    @torch.no_grad()
    def accuracy(self, network: nn.Module, rng: Rng) -> float:
        """The share of right answers on up to 128 real images a class, each class counted alike."""
        right = [
            (network(images).argmax(1) == label).float().mean() for label, images in enumerate(self.real(rng, 128))
        ]
        return float(torch.stack(right).mean())


class Objective(ABC):
    """How far synthetic images are from real ones, and the networks by which it is measured.

    Attributes:
        rate: the images' learning rate.
        iterations: as published.
        batch: real images of a class, each time.
        init: what the images are at first.
        augment: by default.
        parts: see :class:`Task`.
    """

    rate: float = 1.0
    iterations: int = 20_000
    batch: int = 256
    init: str = "real"
    augment: str | None = None
    parts: int = 1

    @abstractmethod
    def loss(self, network: nn.Module, real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
        """Of (B, C, H, W) images of each class."""

    @abstractmethod
    def networks(self, task: Task, iteration: int) -> Iterator[nn.Module]:
        """One network for each update of the images in this iteration; it may be trained between two of them."""

    def rate_at(self, share: float) -> float:
        """The learning rate once this share of all iterations is done."""
        return self.rate

    def state_dict(self) -> dict[str, Any]:
        """What the next iterations need beside the images: tensors and plain Python."""
        return {}

    def load_state_dict(self, state: dict[str, Any], task: Task) -> None:  # noqa: B027
        """Go on from a state."""


def expand(images: Tensor, parts: int) -> Tensor:
    """Each image cut into parts × parts and each part made as large as the whole: (n, …) → (n · parts², …).

    Zhao et al. 2023, "Improved Distribution Matching for Dataset Condensation", section 3.1.

    >>> expand(torch.arange(16.0).reshape(1, 1, 4, 4), 2).shape
    torch.Size([4, 1, 4, 4])
    """
    if parts == 1:
        return images
    cut = [part for rows in images.chunk(parts, -2) for part in rows.chunk(parts, -1)]
    sized = [F.interpolate(part, images.shape[-2:], mode="bilinear", align_corners=False) for part in cut]
    return torch.stack(sized, 1).flatten(0, 1)


def contract(images: Tensor, parts: int) -> Tensor:
    """The other way round: (n · parts², …) → (n, …), each made smaller."""
    if parts == 1:
        return images
    *_, height, width = images.shape
    small = F.interpolate(images, (height // parts, width // parts), mode="bilinear", antialias=True)
    small = small.unflatten(0, (-1, parts, parts))  # n, down, across, C, h, w
    joined: Tensor = small.permute(0, 3, 1, 4, 2, 5).reshape(-1, images.shape[1], height, width)
    return joined


def stacked(classes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Images of each class, together, and their labels."""
    sizes = torch.tensor([len(images) for images in classes])
    labels = torch.repeat_interleave(torch.arange(len(classes)), sizes)
    images = torch.cat(list(classes))
    return images, labels.to(images.device)


def train_step(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> Tensor:
    """One step by cross entropy; the logits before it."""
    logits: Tensor = network(images)
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(logits, labels).backward()
    optimizer.step()
    return logits.detach()
