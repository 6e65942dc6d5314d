"""A network that is small enough to go along with another one's training."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from prunesampler.errors import ArgumentError, check_int

_SIDE = 32  # pixels of height and width, at most


def tiny_proxy(example: Any, classes: int, width: int = 32) -> nn.Module:
    """A proxy for :class:`prunesampler.ProxyFilter`: three convolutions for images, two linear layers for vectors.

    Args:
        example: inputs of one sample, without the batch dimension, or of a batch of it: (C, H, W) and (B, C, H, W)
            floats are images, (F,) and (B, F) vectors. Images of more than 32 pixels are averaged down to that.
        classes: how many, an int >= 2.
        width: channels of the first convolution, half of those of the others; half of the hidden units for vectors.

    Returns:
        A module on the example's device: (B, ...) → (B, classes). Its first weights come from the global generator.

    Raises:
        ArgumentError: an example of another shape or dtype.

    >>> import torch
    >>> proxy = tiny_proxy(torch.zeros(3, 32, 32), classes=10)
    >>> proxy(torch.zeros(5, 3, 32, 32)).shape
    torch.Size([5, 10])
    >>> sum(parameter.numel() for parameter in proxy.parameters())
    57130
    """
    classes, width = check_int("classes", classes, 2), check_int("width", width, 1)
    rule = "must be a float tensor of one sample, (C, H, W) or (F,), or of a batch of them"
    if not isinstance(example, Tensor) or not example.is_floating_point() or not 1 <= example.dim() <= 4:
        shape = tuple(example.shape) if isinstance(example, Tensor) else example
        raise ArgumentError("example", rule, shape)
    if example.dim() <= 2:
        layers: list[nn.Module] = [nn.Linear(example.shape[-1], 2 * width), nn.ReLU(), nn.Linear(2 * width, classes)]
        return nn.Sequential(*layers).to(example.device)
    channels, height, width = example.shape[-3:]
    layers = []
    if max(height, width) > _SIDE:
        layers.append(nn.AdaptiveAvgPool2d((min(height, _SIDE), min(width, _SIDE))))
    for number, out in enumerate((width, 2 * width, 2 * width)):
        layers += [
            nn.Conv2d(channels, out, 3, stride=2 if number == 0 else 1, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
        ]
        channels = out
        if number < 2:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
    layers += [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*layers).to(example.device)
