"""The real images: read once from a loader, checked, and held in memory, normalized."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from prunesampler._random import mix
from prunesampler.capture.find import find_targets
from prunesampler.errors import ArgumentError, UnsupportedError
from prunesampler.selection.candidates import Arrays
from prunesampler.selection.features import Features
from prunesampler.selection.herding import herding
from prunesampler.selection.k_center import k_center
from prunesampler.selection.radix_select import tie_keys

CORESETS = ("random", "herding", "k_center")


def read_images(source: Any, name: str = "source") -> tuple[Tensor, Tensor]:
    """All images and labels of a loader, a map-style dataset, or a pair of tensors, in one pass.

    Args:
        source: gives (C, H, W) images, as tensors of floats or of uint8, and class indices, as (image, label, …) or a
            dict of ``image`` and ``label``. Augmentation is better left out.
        name: of the argument, for the errors.

    Returns:
        (N, C, H, W) float32, uint8 being divided by 255, and (N,) int64, on the CPU.

    Raises:
        ArgumentError: images of another or of several shapes, not finite, or labels that are not class indices.
        UnsupportedError: there are no images or labels in a batch.
    """
    if isinstance(source, (tuple, list)) and len(source) == 2 and all(isinstance(each, Tensor) for each in source):
        batches: Any = [source]
    elif isinstance(source, DataLoader) or not hasattr(source, "__getitem__"):
        batches = source
    else:
        batches = DataLoader(source, 256, generator=torch.Generator())  # else it draws from the global one
    found: list[tuple[Tensor, Tensor]] = []
    for batch in batches:
        images, labels = _images(batch, name), torch.as_tensor(find_targets(batch))
        if images.dtype == torch.uint8:
            images = images.float() / 255
        if images.ndim != 4 or not images.is_floating_point() or (found and images.shape[1:] != found[0][0].shape[1:]):
            rule = "must give images (B, C, H, W) of one shape, as floats or uint8"
            raise ArgumentError(name, rule, f"{images.dtype} of shape {tuple(images.shape)}")
        if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
            rule = "must give class indices, one for each image"
            raise ArgumentError(name, rule, f"{labels.dtype} of shape {tuple(labels.shape)}")
        if not bool((finite := images.isfinite().flatten(1).all(1)).all()):
            row = sum(len(each) for each, _ in found) + int((~finite).int().argmax())
            raise ArgumentError(name, "must give finite images", f"NaN or infinity in image {row}")
        if len(labels) and int(labels.min()) < 0:
            raise ArgumentError(name, "must give class indices >= 0", int(labels.min()))
        found.append((images.detach().float().cpu(), labels.long().cpu()))
    if not found or not sum(len(labels) for _, labels in found):
        raise ArgumentError(name, "must give images", "none")
    return torch.cat([images for images, _ in found]), torch.cat([labels for _, labels in found])


def _images(batch: Any, name: str) -> Tensor:
    keys = ("image", "images", "pixel_values", "img") if isinstance(batch, dict) else (0,)
    with suppress(TypeError):  # it cannot be indexed, or holds no numbers
        for key in keys:
            if key == 0 or key in batch:
                return torch.as_tensor(batch[key])
    raise UnsupportedError(f"no images in a batch of type {type(batch).__name__}: {name} must give (image, label)")


def check_classes(labels: Tensor, per_class: int) -> int:
    """How many classes there are: at least two, each with so many images; ArgumentError otherwise."""
    counts = labels.bincount()
    if len(counts) < 2:
        raise ArgumentError("source", "must have two classes or more", "images of class 0 alone")
    if (short := (counts < per_class).nonzero()).numel():
        label = int(short[0])
        rule = f"must be at most the images of every class; class {label} has {int(counts[label])}"
        raise ArgumentError("images_per_class", rule, per_class)
    return len(counts)


def choose_rows(labels: Tensor, per_class: int, method: str, seed: int, features: Tensor | None = None) -> list[Tensor]:
    """Of each class ``per_class`` rows: at random, or by ``(N, d)`` features."""
    held = None if features is None else Features(features.detach().float())
    chosen = []
    for label in range(int(labels.max()) + 1):
        rows = (labels == label).nonzero()[:, 0]
        rng = np.random.default_rng(mix(seed, label))
        if method == "random":
            chosen.append(rows[torch.from_numpy(rng.permutation(len(rows))[:per_class])])
            continue
        assert held is not None
        where, zeros = rows.numpy(), np.zeros(len(rows), np.float32)
        arrays = Arrays(where, zeros, None, tie_keys(seed, where), {}, held.only(where))
        found = (herding if method == "herding" else k_center)(arrays, per_class, rng)
        chosen.append(rows[torch.tensor(found)])
    return chosen


class Normalization:
    """Per channel to mean 0 and deviation 1, and back."""

    def __init__(self, mean: Any, std: Any) -> None:
        self.mean, self.std = (torch.as_tensor(each, dtype=torch.float32).reshape(-1, 1, 1) for each in (mean, std))

    @classmethod
    def of(cls, images: Tensor) -> Normalization:
        """That of (N, C, H, W) images; a channel that is constant is only shifted."""
        std = images.std((0, 2, 3))
        return cls(images.mean((0, 2, 3)).tolist(), torch.where(std > 0, std, 1.0).tolist())

    def apply(self, images: Tensor) -> Tensor:
        """Normalized."""
        return (images - self.mean.to(images)) / self.std.to(images)

    def undo(self, images: Tensor) -> Tensor:
        """As they were."""
        return images * self.std.to(images) + self.mean.to(images)
