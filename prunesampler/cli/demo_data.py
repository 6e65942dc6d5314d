"""Real images for the demo, in memory: scikit-learn's handwritten digits and CIFAR-10."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from prunesampler.analysis.images import read_cifar10
from prunesampler.errors import ArgumentError, UnsupportedError

__all__ = ["Images", "Split", "load_cifar10", "load_digits", "train_loader"]

_PAD = 4
_FEWEST_ROWS = 100


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels in memory, fetched a whole batch at a time.

    Args:
        images: (N, C, H, W) uint8.
        targets: (N,) int64.
        white: the brightest value, 255 or 16.
        augment: seed of a random crop (4 pixels) and flip of each image; None leaves them as they are.

    >>> images = Images(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.tensor([4, 5, 6]), white=16)
    >>> inputs, targets = images.__getitems__([2, 0])
    >>> inputs.shape, targets.tolist()
    (torch.Size([2, 1, 8, 8]), [6, 4])
    """

    def __init__(self, images: Tensor, targets: Tensor, *, white: int, augment: int | None = None) -> None:
        self.images, self.targets, self.white = images, targets, white
        self._augmentation = None if augment is None else torch.Generator().manual_seed(augment)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.__getitems__([row])
        return inputs[0], targets[0]

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """A batch: (B, C, H, W) float32, roughly in [−2, 2], and (B,) int64."""
        images = self.images[rows]
        if self._augmentation is not None:
            images = _moved(images, self._augmentation)
        inputs = images.float().mul_(4 / self.white).sub_(2)
        return inputs.contiguous(memory_format=torch.channels_last), self.targets[rows]

    def first(self, rows: int) -> Images:
        """The first so many rows, or all where there are fewer."""
        return Images(self.images[:rows], self.targets[:rows], white=self.white)

    def augmented(self, seed: int) -> Images:
        """The same images, moved at random."""
        return Images(self.images, self.targets, white=self.white, augment=seed)


@dataclass(frozen=True)
class Split:
    """What one demo trains and tests on."""

    name: str
    train: Images
    test: Images

    def first(self, rows: int | None) -> Split:
        """The first training rows, and at most as many test rows; None: all.

        Raises:
            ArgumentError: rows is below 100.
        """
        if rows is None:
            return self
        if rows < _FEWEST_ROWS:
            raise ArgumentError("rows", f"must be an int >= {_FEWEST_ROWS}", rows)
        return Split(self.name, self.train.first(rows), self.test.first(rows))


def train_loader(images: Images, batch_size: int, seed: int) -> DataLoader[Any]:
    """An ordinary shuffling loader; its order depends on ``seed`` alone."""
    order = torch.Generator().manual_seed(seed)
    return DataLoader(images, batch_size=batch_size, shuffle=True, generator=order, collate_fn=_as_fetched)


def load_digits() -> Split:
    """1,797 scans of 8 × 8 pixels, three quarters for training, stratified by class; always the same split.

    Raises:
        UnsupportedError: scikit-learn is not installed.

    >>> split = load_digits()
    >>> len(split.train), len(split.test)
    (1347, 450)
    """
    try:
        from sklearn import datasets, model_selection
    except ModuleNotFoundError as error:
        raise _missing("scikit-learn", error) from error
    scans = datasets.load_digits()
    train, test = model_selection.train_test_split(
        np.arange(len(scans.target)), test_size=0.25, stratify=scans.target, random_state=0
    )
    images = torch.from_numpy(scans.images.astype(np.uint8)).unsqueeze(1)
    targets = torch.from_numpy(scans.target.astype(np.int64))
    return Split("handwritten digits", *(Images(images[rows], targets[rows], white=16) for rows in (train, test)))


def load_cifar10(root: Path, *, download: bool = False, rows: int | None = None, quiet: bool = False) -> Split:
    """CIFAR-10 from a folder.

    Args:
        root: holds ``*train*.parquet`` and ``*test*.parquet`` with the columns ``image`` (encoded bytes) and
            ``label``, or torchvision's ``cifar-10-batches-py``.
        download: fetch the latter (170 MB) into ``root`` where neither is there.
        rows: read only so many of the training rows, the first ones, and at most as many test rows.
        quiet: no progress bar.

    Raises:
        ArgumentError: nothing of the kind is there, or it cannot be used.
        UnsupportedError: torchvision is not installed.
        OSError: the download failed.
    """
    if rows is not None and rows < _FEWEST_ROWS:
        raise ArgumentError("rows", f"must be an int >= {_FEWEST_ROWS}", rows)
    test = read_cifar10(root, "test", download=download, rows=rows, quiet=quiet)
    train = read_cifar10(root, "train", download=download, rows=rows, quiet=quiet)
    return Split("CIFAR-10", Images(*train, white=255), Images(*test, white=255))


def _moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image cropped from its padded self at its own place, and half of them flipped."""
    count, side = len(images), images.shape[-1]
    padded = torch.nn.functional.pad(images, (_PAD,) * 4)
    down, right = torch.randint(2 * _PAD + 1, (2, count), generator=generator)
    crops = padded.unfold(2, side, 1).unfold(3, side, 1)[torch.arange(count), :, down, right]
    flipped = torch.rand(count, generator=generator) < 0.5
    return torch.where(flipped[:, None, None, None], crops.flip(-1), crops)


def _as_fetched(batch: Any) -> Any:
    return batch


def _missing(package: str, error: ModuleNotFoundError) -> UnsupportedError:
    return UnsupportedError(f"the demo needs {package} ({error}): pip install 'prunesampler[demo]'")
