"""Differentiable augmentation: one random draw that real and synthetic images go through alike.

Zhao and Bilen 2021, "Dataset Condensation with Differentiable Siamese Augmentation", with the strengths of its code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from prunesampler.errors import ArgumentError, did_you_mean

_NUMBERS = 3  # uniform ones that a kind may use


class Draw(NamedTuple):
    """One random draw: what is done, and how much of it.

    Attributes:
        kind: a name of :data:`KINDS`; None for nothing.
        numbers: (n, 3) float in [0, 1), n being 1, for all images alike, or one for each.
    """

    kind: str | None
    numbers: Tensor


def kinds_of(augment: str | Iterable[str] | None) -> tuple[str, ...]:
    """The kinds that ``augment=`` names: ``"dsa"`` is all of them, ``None`` and ``"none"`` are none.

    >>> kinds_of("crop_flip")
    ('crop', 'flip')
    """
    if augment is None or augment == "none":
        return ()
    if augment == "dsa":
        return tuple(KINDS)
    names = tuple(augment.split("_") if isinstance(augment, str) else augment)
    for name in names:
        if name not in KINDS:
            rule = f'must be "dsa", None, or kinds of {"_".join(KINDS)}'
            raise ArgumentError("augment", rule, augment, did_you_mean(name, KINDS))
    return names


def draw(kinds: tuple[str, ...], rng: torch.Generator, count: int = 1) -> Draw:
    """One kind at random, and its numbers, for all images alike or for ``count`` of them."""
    numbers = torch.rand(count, _NUMBERS, generator=rng)
    if not kinds:
        return Draw(None, numbers)
    return Draw(kinds[int(torch.randint(len(kinds), (), generator=rng))], numbers)


def augment(images: Tensor, drawn: Draw) -> Tensor:
    """Images as drawn; the same draw does the same to every batch of images of a size, and gradients go through.

    Args:
        images: (B, C, H, W), normalized: what leaves the frame or is cut out becomes 0, the mean.
        drawn: numbers of 1 or B rows.

    >>> flipped = augment(torch.tensor([[[[1.0, 2.0]]]]), Draw("flip", torch.zeros(1, 3)))
    >>> flipped
    tensor([[[[2., 1.]]]])
    """
    if drawn.kind is None:
        return images
    numbers = drawn.numbers.to(images)
    return KINDS[drawn.kind](images, *numbers[:, :, None, None, None].unbind(1))


# -- each: (B, C, H, W) and three times (n, 1, 1, 1) in [0, 1) ---------------------------------------------------------


def color(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Brightness + (−½ … ½); then saturation × (0 … 2), about the grey image; then contrast × (½ … 1½)."""
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * (2 * saturation) + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + 0.5) + mean


def crop(images: Tensor, down: Tensor, across: Tensor, _: Tensor) -> Tensor:
    """Shifted by up to an eighth of the side."""
    rows, columns = (
        torch.arange(side, device=images.device) + _integer(number, -_round(side / 8), _round(side / 8))
        for number, side in ((down, images.shape[2]), (across, images.shape[3]))
    )
    inside = ((rows >= 0) & (rows < images.shape[2]))[:, :, None] & ((columns >= 0) & (columns < images.shape[3]))[
        :, None
    ]
    rows, columns = rows.clamp(0, images.shape[2] - 1), columns.clamp(0, images.shape[3] - 1)
    batch, channel = (torch.arange(length, device=images.device) for length in images.shape[:2])
    moved = images[batch[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None]]
    return moved * inside[:, None]


def cutout(images: Tensor, down: Tensor, across: Tensor, _: Tensor) -> Tensor:
    """A rectangle of half the side, its centre anywhere, set to 0."""
    cut = []
    for number, side in ((down, images.shape[2]), (across, images.shape[3])):
        size = _round(side / 2)
        first = _integer(number, 0, side - size % 2) - size // 2
        # as published, what of it leaves the frame covers the edge
        low, high = first.clamp(0, side - 1), (first + size - 1).clamp(0, side - 1)
        at = torch.arange(side, device=images.device)
        cut.append((at >= low) & (at <= high))
    return images * ~(cut[0][:, None, :, None] & cut[1][:, None, None])


def flip(images: Tensor, number: Tensor, *_: Tensor) -> Tensor:
    """Left and right exchanged, every other time."""
    return torch.where(number < 0.5, images.flip(3), images)


def scale(images: Tensor, down: Tensor, across: Tensor, _: Tensor) -> Tensor:
    """Each side by its own factor in [1/1.2, 1.2]."""
    across, down = (1 / 1.2 + (1.2 - 1 / 1.2) * number for number in (across, down))
    zero = torch.zeros_like(down)
    return _affine(images, across, zero, zero, down)


def rotate(images: Tensor, number: Tensor, *_: Tensor) -> Tensor:
    """About the centre, by up to 15 degrees either way."""
    angle = (2 * number - 1) * math.radians(15)
    return _affine(images, angle.cos(), -angle.sin(), angle.sin(), angle.cos())


KINDS: dict[str, Callable[..., Tensor]] = {
    "color": color,
    "crop": crop,
    "cutout": cutout,
    "flip": flip,
    "scale": scale,
    "rotate": rotate,
}


def _integer(number: Tensor, low: int, high: int) -> Tensor:
    """(n, 1), uniform in [low, high]."""
    return low + (number[:, :, 0, 0] * (high - low + 1)).floor().long()


def _round(value: float) -> int:
    return int(value + 0.5)


def _affine(images: Tensor, *entries: Tensor) -> Tensor:
    """Sampled where the matrix (n, 2, 2) of these entries leads, bilinearly, 0 outside."""
    matrix = torch.stack([entry.flatten() for entry in entries], 1).reshape(-1, 2, 2)
    matrix = F.pad(matrix, (0, 1)).expand(len(images), 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
