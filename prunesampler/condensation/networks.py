"""The networks that condensed images are made with and evaluated on, for images of any size and number of channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunesampler.errors import ArgumentError, check_choice, check_int

Shape = tuple[int, int, int]
"""Channels, height, width."""

NORMS = ("instance", "group", "layer", "batch", "none")
POOLINGS = ("average", "max", "none")


class Blocks(nn.Module):
    """Blocks, one after another, and a linear head on the flattened output of the last.

    >>> network = ConvNet((1, 8, 8), classes=10, width=16)
    >>> network(torch.zeros(2, 1, 8, 8)).shape, network.embed(torch.zeros(2, 1, 8, 8)).shape
    (torch.Size([2, 10]), torch.Size([2, 64]))
    """

    def __init__(self, blocks: Sequence[nn.Module], shape: Shape, classes: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        with torch.no_grad():
            width = self.eval().embed(torch.zeros(1, *shape)).shape[1]
        self.head = nn.Linear(width, classes)
        self.train()

    def features(self, images: Tensor) -> list[Tensor]:
        """What each block makes of (B, C, H, W) images, first to last."""
        found = []
        for block in self.blocks:
            images = block(images)
            found.append(images)
        return found

    def embed(self, images: Tensor) -> Tensor:
        """(B, d), the head's input."""
        return self.features(images)[-1].flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, classes) logits."""
        logits: Tensor = self.head(self.embed(images))
        return logits


class ConvNet(Blocks):
    """The field's ConvNet (Gidaris and Komodakis 2018): ``depth`` × [3×3 convolution, norm, ReLU, pooling], linear.

    Args:
        shape: of an image: channels, height, width.
        classes: >= 2.
        depth: how many blocks; by default 3, or fewer where an image is smaller than 16 pixels: the norm of the last
            one is then over 4×4 pixels or more.
        width: channels of each block.
        norm: one of :data:`NORMS`; ``"instance"`` is that of the published figures.
        pooling: one of :data:`POOLINGS`, over 2×2 pixels.
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        *,
        depth: int | None = None,
        width: int = 128,
        norm: str = "instance",
        pooling: str = "average",
    ) -> None:
        channels, *sides = shape
        deepest = int(math.log2(min(sides)))
        depth = max(1, min(3, deepest - 1)) if depth is None else check_int("depth", depth, 1, None)
        if check_choice("pooling", pooling, POOLINGS) != "none" and depth > deepest:
            raise ArgumentError("depth", f"must be at most {deepest} for images of {sides[0]} × {sides[1]}", depth)
        check_int("width", width, 1)
        blocks = []
        for _ in range(depth):
            parts = [nn.Conv2d(channels, width, 3, padding=1), _norm(norm, (width, *sides)), nn.ReLU()]
            if pooling != "none":
                parts.append(nn.AvgPool2d(2) if pooling == "average" else nn.MaxPool2d(2))
                sides = [side // 2 for side in sides]
            blocks.append(nn.Sequential(*parts))
            channels = width
        super().__init__(blocks, shape, classes)


class MLP(Blocks):
    """Two hidden layers of ReLU units."""

    def __init__(self, shape: Shape, classes: int, *, width: int = 128) -> None:
        first = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), check_int("width", width, 1)), nn.ReLU())
        super().__init__([first, nn.Sequential(nn.Linear(width, width), nn.ReLU())], shape, classes)


class ResNet18(Blocks):
    """ResNet-18 for small images (He et al. 2016): a 3×3 stem without pooling, four stages of two residual blocks."""

    def __init__(self, shape: Shape, classes: int, *, width: int = 64, norm: str = "instance") -> None:
        channels, *sides = shape
        wide = check_int("width", width, 1)
        stages: list[nn.Module] = [_convolution(channels, wide, sides, norm)]
        channels = wide
        for stage in range(4):
            stride = 2 if stage and min(sides) >= 4 else 1  # the norm of a single pixel would be zero
            wide, sides = width * 2**stage, [-(-side // stride) for side in sides]
            stages.append(
                nn.Sequential(_Residual(channels, wide, sides, norm, stride), _Residual(wide, wide, sides, norm, 1))
            )
            channels = wide
        stages[-1] = nn.Sequential(stages[-1], nn.AdaptiveAvgPool2d(1))
        super().__init__(stages, shape, classes)


class _Residual(nn.Module):
    def __init__(self, channels: int, width: int, sides: Sequence[int], norm: str, stride: int) -> None:
        super().__init__()
        self.first = _convolution(channels, width, sides, norm, stride)
        self.second = _convolution(width, width, sides, norm)[:2]
        same = stride == 1 and channels == width
        skip = [nn.Conv2d(channels, width, 1, stride, bias=False), _norm(norm, (width, *sides))]
        self.skip = nn.Identity() if same else nn.Sequential(*skip)

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(images)) + self.skip(images))


def _convolution(channels: int, width: int, sides: Sequence[int], norm: str, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, stride, 1, bias=False), _norm(norm, (width, *sides)), nn.ReLU())


def _norm(norm: str, shape: Sequence[int]) -> nn.Module:
    width = shape[0]
    made: dict[str, Callable[[], nn.Module]] = {
        "instance": lambda: nn.GroupNorm(width, width),
        "group": lambda: nn.GroupNorm(math.gcd(4, width), width),
        "layer": lambda: nn.LayerNorm(list(shape)),
        "batch": lambda: nn.BatchNorm2d(width),
        "none": nn.Identity,
    }
    return made[check_choice("norm", norm, NORMS)]()


NETWORKS: dict[str, Callable[..., Blocks]] = {"convnet": ConvNet, "mlp": MLP, "resnet18": ResNet18}

Network = str | Callable[[Shape, int], nn.Module]
"""A name of :data:`NETWORKS`, or a function of an image's shape and the number of classes.

What it returns has ``features`` (the layers' outputs), ``embed`` (the head's input) and gives logits, as
:class:`Blocks` does.
"""


def new_network(network: Network, shape: Shape, classes: int, seed: int, **options: Any) -> nn.Module:
    """A network whose first weights depend on ``seed`` alone; on the CPU.

    Raises:
        ArgumentError: no such network, an option breaks its rule, or it cannot take images of this shape.

    >>> new_network("mlp", (1, 8, 8), 10, seed=0, width=32).head
    Linear(in_features=32, out_features=10, bias=True)
    """
    if not callable(network):
        check_choice("network", network, tuple(NETWORKS))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed % 2**63)
        try:
            made = (network if callable(network) else NETWORKS[network])(shape, classes, **options)
        except TypeError as error:
            raise ArgumentError("network_options", f"must be options of {network!r} ({error})", options) from error
    if not isinstance(made, nn.Module) or not all(hasattr(made, name) for name in ("features", "embed")):
        raise ArgumentError("network", "must give a module with features and embed, as condensation.Blocks", made)
    return made


def check_network(network: nn.Module, shape: Shape, classes: int) -> None:
    """Refuse a network that cannot take images of this shape, or gives other logits than one a class."""
    training = network.training
    try:
        with torch.no_grad():
            found = tuple(network.eval()(torch.zeros(2, *shape)).shape)
    except RuntimeError as error:
        images = " × ".join(map(str, shape))
        raise ArgumentError("network", f"must take images of {images} ({error})", type(network).__name__) from error
    finally:
        network.train(training)
    if found != (2, classes):
        raise ArgumentError("network", f"must give logits of {classes} classes", f"logits of shape {found}")
