"""CIFAR-10 on the device, two recipes, and the training that every arm of the experiment runs through."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cifar10_networks import resnet18, small, small_plain
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.utils.data import DataLoader, Dataset, Sampler

from prunesampler.cli.demo_data import load_cifar10

_PAD = 4
_MEAN, _STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Images on one device, fetched a batch at a time, cropped and flipped there where ``augmentation`` is given."""

    def __init__(self, images: Tensor, targets: Tensor, *, augmentation: torch.Generator | None = None) -> None:
        self.images, self.targets, self.augmentation = images, targets, augmentation
        self._mean, self._std = (torch.tensor(each, device=images.device) for each in (_MEAN, _STD))

    @classmethod
    def padded(cls, images: Tensor, targets: Tensor, device: torch.device) -> Images:
        """From (N, 3, 32, 32) uint8; what is kept is (N, 40, 40, 3), its margin reflected."""
        padded = pad(images.float(), (_PAD,) * 4, mode="reflect").byte().permute(0, 2, 3, 1)
        return cls(padded.contiguous().to(device), targets.to(device))

    def augmented(self, seed: int) -> Images:
        generator = torch.Generator(self.images.device).manual_seed(seed)
        return Images(self.images, self.targets, augmentation=generator)

    def subset(self, rows: Tensor) -> Images:
        rows = rows.to(self.images.device)
        return Images(self.images[rows], self.targets[rows])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        images, targets = self.__getitems__([row])
        return images[0], targets[0]

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        device, count, side = self.images.device, len(rows), self.images.shape[1] - 2 * _PAD
        where = torch.tensor(rows, device=device)
        across = torch.arange(side, device=device).expand(count, side)
        if self.augmentation is None:
            down = across = across + _PAD
        else:
            shift = torch.randint(2 * _PAD + 1, (2, count, 1), generator=self.augmentation, device=device)
            flip = torch.rand((count, 1), generator=self.augmentation, device=device) < 0.5
            down, across = across + shift[0], torch.where(flip, side - 1 - across, across) + shift[1]
        pixels = self.images[where[:, None, None], down[:, :, None], across[:, None, :]]
        return pixels.float().sub_(self._mean).div_(self._std).permute(0, 3, 1, 2), self.targets[where]


def read(folder: Path, device: torch.device) -> tuple[Images, Images]:
    """Training and test images."""
    split = load_cifar10(folder)
    train, test = (Images.padded(part.images, part.targets, device) for part in (split.train, split.test))
    return train, test


def loader(images: Images, sampler: Sampler[int] | Iterable[int], batch_size: int, *, drop_last: bool = True) -> Any:
    return DataLoader(
        images, batch_size=batch_size, sampler=sampler, drop_last=drop_last, collate_fn=lambda batch: batch
    )


@dataclass(frozen=True)
class Recipe:
    """A network and how it is trained.

    Attributes:
        networks: name → what makes the model; the first is trained in every arm, the others only score.
        epochs: of the full run; ``--epochs`` replaces it.
        score_share: how far into the full run the scores are taken.
        floor: test accuracy that full data must reach before any other arm counts.
        schedule: (step, steps) → factor on the learning rate.
    """

    networks: dict[str, Callable[[Tensor], nn.Module]]
    epochs: int
    score_share: float
    batch_size: int
    learning_rate: float
    weight_decay: float
    floor: float
    schedule: Callable[[int, int], float]

    def score_epochs(self, epochs: int) -> int:
        return max(2, round(self.score_share * epochs))

    def model(self, network: str, seed: int, images: Images) -> nn.Module:
        """A new one, on the device of the images."""
        torch.manual_seed(seed)
        sample, _ = images.__getitems__(list(range(min(2000, len(images)))))
        model = self.networks[network or next(iter(self.networks))](sample.cpu())
        return model.to(sample.device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16)


def train(
    model: nn.Module, batches: Iterable[Any], recipe: Recipe, steps: int, of: int, device: torch.device, bar: Any
) -> float:
    """Train for the first ``steps`` of a schedule of ``of``, in as many passes over ``batches`` as they take.

    Returns:
        Seconds.
    """
    rate = recipe.learning_rate
    optimizer = torch.optim.SGD(
        model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.schedule(step, of))
    model.train()
    began = time.perf_counter()
    for images, targets in _endless(batches, steps):
        with autocast(device):
            logits = model(images)
        loss = cross_entropy(logits.float(), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.update()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _endless(batches: Iterable[Any], steps: int) -> Iterator[Any]:
    done = 0
    while done < steps:
        for batch in batches:
            yield batch
            done += 1
            if done == steps:
                return


@torch.no_grad()
def class_accuracies(model: nn.Module, images: Images, device: torch.device) -> list[float]:
    """The share of right answers, class by class."""
    model.eval()
    right = []
    for rows in torch.arange(len(images)).split(1000):
        inputs, targets = images.__getitems__(rows.tolist())
        with autocast(device):
            right.append(model(inputs).argmax(1) == targets)
    answers, classes = torch.cat(right).double(), int(images.targets.max()) + 1
    shown = torch.bincount(images.targets, minlength=classes)
    shares: list[float] = (torch.bincount(images.targets, weights=answers, minlength=classes) / shown).tolist()
    return shares


def one_cycle(step: int, steps: int) -> float:
    """Up over the first quarter, then down along a cosine to nearly nothing."""
    rise = max(1, steps // 4)
    if step < rise:
        return 0.04 + 0.96 * step / rise
    fall = torch.tensor((step - rise) / max(1, steps - rise)).clamp(max=1)
    return float(0.5 + 0.5 * torch.cos(fall * torch.pi))


def milestones(step: int, steps: int) -> float:
    """Paul et al.: times 0.2 at 60, 120 and 160 of 200 epochs, scaled."""
    return float(0.2 ** sum(step >= share * steps for share in (0.3, 0.6, 0.8)))


RECIPES = {
    "small": Recipe(
        {"small": small, "transfer": small_plain},
        epochs=10,
        score_share=0.3,
        batch_size=64,
        learning_rate=0.1,
        weight_decay=5e-4,
        floor=0.85,
        schedule=one_cycle,
    ),
    # Paul et al. 2021, appendix B.
    "resnet18": Recipe(
        {"resnet18": resnet18, "transfer": small},
        epochs=200,
        score_share=0.1,
        batch_size=128,
        learning_rate=0.1,
        weight_decay=5e-4,
        floor=0.945,
        schedule=milestones,
    ),
}
