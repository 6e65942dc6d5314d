"""Every kind of augmentation, pixel by pixel, against plain loops; its gradient against differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from prunesampler.condensation.augment import KINDS, Draw, augment, draw, kinds_of
from prunesampler.condensation.objective import seeded
from prunesampler.errors import ArgumentError

SHAPES = [(3, 1, 8, 8), (2, 3, 7, 10)]


def images(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def plain(kind: str, image: Tensor, numbers: list[float]) -> Tensor:
    """One (C, H, W) image by loops over its pixels, as the paper's code describes each."""
    u, v, w = numbers
    channels, height, width = image.shape
    found = torch.zeros_like(image)

    def at(c: int, i: int, j: int) -> float:
        return float(image[c, i, j]) if 0 <= i < height and 0 <= j < width else 0.0

    def integer(number: float, low: int, high: int) -> int:
        return low + int(number * (high - low + 1))

    if kind == "color":
        bright = image + u - 0.5
        for i in range(height):
            for j in range(width):
                mean = sum(float(bright[c, i, j]) for c in range(channels)) / channels
                for c in range(channels):
                    found[c, i, j] = (bright[c, i, j] - mean) * 2 * v + mean
        total = sum(map(float, found.flatten())) / found.numel()
        return (found - total) * (w + 0.5) + total
    if kind == "flip":
        return torch.stack([image[:, :, width - 1 - j] for j in range(width)], 2) if u < 0.5 else image
    if kind in ("crop", "cutout"):
        halves = [int(side / (8 if kind == "crop" else 2) + 0.5) for side in (height, width)]
        if kind == "crop":
            down, across = integer(u, -halves[0], halves[0]), integer(v, -halves[1], halves[1])
        else:
            down, across = (
                integer(n, 0, s - h % 2) - h // 2 for n, s, h in zip((u, v), (height, width), halves, strict=True)
            )
            rows = [min(max(down + i, 0), height - 1) for i in range(halves[0])]
            columns = [min(max(across + j, 0), width - 1) for j in range(halves[1])]
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    if kind == "crop":
                        found[c, i, j] = at(c, i + down, j + across)
                    else:
                        found[c, i, j] = 0 if i in rows and j in columns else image[c, i, j]
        return found
    if kind == "scale":
        matrix = [[1 / 1.2 + (1.2 - 1 / 1.2) * v, 0], [0, 1 / 1.2 + (1.2 - 1 / 1.2) * u]]
    else:
        angle = (2 * u - 1) * 15 / 180 * math.pi
        matrix = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    for i in range(height):
        for j in range(width):
            x, y = (2 * j + 1) / width - 1, (2 * i + 1) / height - 1
            x, y = matrix[0][0] * x + matrix[0][1] * y, matrix[1][0] * x + matrix[1][1] * y
            column, row = ((x + 1) * width - 1) / 2, ((y + 1) * height - 1) / 2
            left, top = math.floor(column), math.floor(row)
            for c in range(channels):
                found[c, i, j] = sum(
                    at(c, a, b) * (1 - abs(row - a)) * (1 - abs(column - b))
                    for a in (top, top + 1)
                    for b in (left, left + 1)
                )
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_does_to_every_pixel_what_its_source_says(kind: str, shape: tuple[int, ...]) -> None:
    for seed in range(4):
        for count in (1, shape[0]):
            numbers = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            found = augment(images(shape), Draw(kind, numbers))
            rows = numbers.expand(shape[0], 3).tolist()
            expected = torch.stack([plain(kind, *each) for each in zip(images(shape), rows, strict=True)])
            torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_go_through(kind: str) -> None:
    given = images((2, 2, 4, 4)).requires_grad_()
    drawn = Draw(kind, torch.tensor([[0.3, 0.6, 0.8]], dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda batch: augment(batch, drawn), given)


def test_one_draw_does_the_same_to_both_sides_and_all_kinds_are_drawn() -> None:
    real, synthetic = images((2, 1, 8, 8)), images((2, 1, 8, 8))[:1]
    found = set()
    for seed in range(60):
        drawn = draw(kinds_of("dsa"), seeded(seed))
        assert torch.equal(augment(real, drawn)[:1], augment(synthetic, drawn))
        assert torch.equal(drawn.numbers, draw(kinds_of("dsa"), seeded(seed)).numbers)
        found.add(drawn.kind)
    assert found == set(KINDS)
    assert torch.equal(augment(real, draw((), seeded(0))), real)


def test_unknown_kinds_are_refused() -> None:
    assert kinds_of("dsa") == kinds_of("color_crop_cutout_flip_scale_rotate")
    assert kinds_of(None) == kinds_of("none") == ()
    with pytest.raises(ArgumentError, match="did you mean 'rotate'"):
        kinds_of("crop_rotat")
