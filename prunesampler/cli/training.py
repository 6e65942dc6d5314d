"""Image classifiers for the demo and the benchmarks: images in memory, small networks, and one training loop."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad, unfold
from torch.utils.data import DataLoader, Dataset, Sampler

from prunesampler.analysis.images import read_cifar10
from prunesampler.errors import UnsupportedError

_PAD = 4
_MEAN, _STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)


@dataclass(eq=False)
class Images(Dataset[tuple[Tensor, Tensor]]):
    """Images on one device, normalized and, if augmented, cropped and flipped there, a whole batch at a time.

    ``padded`` is (N, H + 8, W + 8, C) uint8, a margin of 4 pixels around each image; ``targets`` are (N,) int64.
    """

    padded: Tensor
    targets: Tensor
    mean: Tensor
    std: Tensor
    augmentation: torch.Generator | None = None

    @classmethod
    def of(
        cls,
        images: Tensor,
        targets: Tensor,
        mean: tuple[float, ...] = _MEAN,
        std: tuple[float, ...] = _STD,
        device: torch.device | str = "cpu",
    ) -> Images:
        """From (N, C, H, W) uint8; the margin is their reflection."""
        padded = pad(images.float(), (_PAD,) * 4, mode="reflect").byte().permute(0, 2, 3, 1).contiguous()
        mean_, std_ = (torch.tensor(each, device=device) for each in (mean, std))
        return cls(padded.to(device), targets.to(device), mean_, std_)

    def augmented(self, seed: int) -> Images:
        """The same images, cropped and flipped at random."""
        return replace(self, augmentation=torch.Generator(self.padded.device).manual_seed(seed))

    def subset(self, rows: Tensor | slice) -> Images:
        """Some of them, not augmented."""
        rows = rows.to(self.padded.device) if isinstance(rows, Tensor) else rows
        return replace(self, padded=self.padded[rows], targets=self.targets[rows], augmentation=None)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        images, targets = self.__getitems__([row])
        return images[0], targets[0]

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """A batch: (B, C, H, W) float32 and (B,) int64."""
        device, count, side = self.padded.device, len(rows), self.padded.shape[1] - 2 * _PAD
        where = torch.tensor(rows, device=device)
        across = torch.arange(side, device=device).expand(count, side)
        if self.augmentation is None:
            down = across = across + _PAD
        else:
            shift = torch.randint(2 * _PAD + 1, (2, count, 1), generator=self.augmentation, device=device)
            flip = torch.rand((count, 1), generator=self.augmentation, device=device) < 0.5
            down, across = across + shift[0], torch.where(flip, side - 1 - across, across) + shift[1]
        pixels = self.padded[where[:, None, None], down[:, :, None], across[:, None, :]]
        return pixels.float().sub_(self.mean).div_(self.std).permute(0, 3, 1, 2), self.targets[where]


def load_digits() -> tuple[Images, Images]:
    """1,797 scans of 8 × 8 pixels; three quarters for training, stratified by class, always the same ones."""
    try:
        from sklearn import datasets, model_selection
    except ModuleNotFoundError as error:
        raise UnsupportedError(f"digits need scikit-learn ({error}): pip install 'prunesampler[demo]'") from error
    scans = datasets.load_digits()
    train, test = model_selection.train_test_split(
        np.arange(len(scans.target)), test_size=0.25, stratify=scans.target, random_state=0
    )
    images = torch.from_numpy(scans.images.astype(np.uint8)).unsqueeze(1)
    targets = torch.from_numpy(scans.target.astype(np.int64))
    train, test = (Images.of(images[rows], targets[rows], mean=(8.0,), std=(4.0,)) for rows in (train, test))
    return train, test


def load_cifar10(
    root: Path,
    device: torch.device | str = "cpu",
    *,
    download: bool = False,
    rows: int | None = None,
    quiet: bool = False,
) -> tuple[Images, Images]:
    """Training and test images, the first ``rows`` of each; see :func:`prunesampler.analysis.images.read_cifar10`."""
    test = read_cifar10(root, "test", download=download, rows=rows, quiet=quiet)
    train = read_cifar10(root, "train", download=download, rows=rows, quiet=quiet)
    return Images.of(*train, device=device), Images.of(*test, device=device)


def loader(images: Images, sampler: Sampler[int] | Iterable[int], batch_size: int, *, drop_last: bool = True) -> Any:
    """Batches in the sampler's order, fetched whole."""
    return DataLoader(
        images,
        batch_size,
        sampler=sampler,
        drop_last=drop_last,
        collate_fn=lambda batch: batch,
        generator=torch.Generator(),  # else each epoch draws from the global one
    )


def one_cycle(step: int, steps: int) -> float:
    """Up over the first quarter, then down along a cosine to nearly nothing."""
    rise = max(1, steps // 4)
    if step < rise:
        return 0.04 + 0.96 * step / rise
    return 0.5 + 0.5 * math.cos(math.pi * min(1, (step - rise) / max(1, steps - rise)))


@dataclass(frozen=True)
class Recipe:
    """A network and how it is trained: by SGD with Nesterov momentum 0.9.

    Attributes:
        network: makes it from a sample of the images, (M, C, H, W), normalized.
        schedule: (step, steps) → factor on the learning rate.
        precision: of the forwards, the loss excepted.
    """

    network: Callable[[Tensor], nn.Module]
    batch_size: int
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    schedule: Callable[[int, int], float] = one_cycle
    precision: torch.dtype = torch.bfloat16

    def autocast(self, device: torch.device) -> torch.autocast:
        """Around each forward."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision is torch.bfloat16)


def fast_precision(device: str) -> torch.dtype:
    """bfloat16 where the hardware multiplies it quickly: a CPU without AVX-512 emulates it, six times slower."""
    quick = device == "cuda" or torch.backends.cpu.get_cpu_capability() == "AVX512"
    return torch.bfloat16 if quick else torch.float32


def new_model(network: Callable[[Tensor], nn.Module], seed: int, images: Images) -> nn.Module:
    """A model on the device of the images, whose first weights depend on them and on ``seed`` alone."""
    sample, _ = images.__getitems__(list(range(min(2000, len(images)))))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = network(sample.cpu())
    return model.to(sample.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def train(
    model: nn.Module,
    batches: Iterable[Any],
    recipe: Recipe,
    steps: int,
    *,
    of: int | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    progress: Callable[[], object] = lambda: None,
) -> float:
    """Train for the first ``steps`` of a schedule of ``of``, in as many passes as they take, and return the seconds."""
    device = next(model.parameters()).device
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.learning_rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.schedule(step, of or steps))
    model.train()
    began = time.perf_counter()
    passes = itertools.chain.from_iterable(itertools.repeat(batches))
    for images, targets in itertools.islice(passes, steps):
        with recipe.autocast(device):
            logits = model(images)
        optimizer.zero_grad(set_to_none=True)
        loss(logits.float(), targets).backward()
        optimizer.step()
        schedule.step()
        progress()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


@torch.no_grad()
def accuracies(model: nn.Module, images: Images, recipe: Recipe) -> tuple[float, list[float]]:
    """The share of right answers over all images, and class by class (NaN where a class has no image)."""
    model.eval()
    right = []
    for rows in torch.arange(len(images)).split(1000):
        inputs, targets = images.__getitems__(rows.tolist())
        with recipe.autocast(inputs.device):
            right.append(model(inputs).argmax(1) == targets)
    answers = torch.cat(right).double()
    shown = torch.bincount(images.targets)
    return answers.mean().item(), (torch.bincount(images.targets, weights=answers) / shown).tolist()


def digits_network(images: Tensor) -> nn.Module:
    """For 8 × 8 pixels."""
    return nn.Sequential(
        *(*convolution(1, 16), *convolution(16, 32), nn.MaxPool2d(2)),
        *(*convolution(32, 32), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )


def small(images: Tensor, width: int = 48) -> nn.Module:
    """For 32 × 32 pixels: about 4 · 10⁷ multiplications an image at width 48, a quarter of that at 24."""
    return nn.Sequential(
        _Whitening(images, width),
        *(*pooled(width, 2 * width), Residual(2 * width, 2 * width)),
        *(*pooled(2 * width, 4 * width), Residual(4 * width, 4 * width)),
        *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10)),
    )


class _Whitening(nn.Module):
    """Patches projected on their principal axes, both signs, unit variance; fixed (Coates and Ng 2012)."""

    @torch.no_grad()
    def __init__(self, images: Tensor, width: int, size: int = 4, stride: int = 2) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, width, size, stride, padding=1, bias=False)
        weight = self.convolution.weight.requires_grad_(False)
        patches = unfold(images, size, stride=3).transpose(1, 2).flatten(0, 1)
        variances, axes = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (axes / (variances + 1e-2).sqrt()).T.flip(0)[: width // 2].reshape(-1, *weight.shape[1:])
        weight.copy_(torch.cat([filters, -filters]))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(self.convolution(inputs))


class Residual(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, width: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *convolution(width, out, stride), nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or width != out:
            self.shortcut = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, width, H, W) to (B, out, H / stride, W / stride)."""
        return torch.relu(self.body(inputs) + self.shortcut(inputs))


def convolution(width: int, out: int, stride: int = 1) -> tuple[nn.Module, ...]:
    """3 × 3, normalized, ReLU."""
    conv = nn.Conv2d(width, out, 3, stride, padding=1, bias=False)
    return conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True)


def pooled(width: int, out: int) -> tuple[nn.Module, ...]:
    """3 × 3, pooled, normalized, ReLU: pooling first leaves a quarter to normalize."""
    conv = nn.Conv2d(width, out, 3, padding=1, bias=False)
    return conv, nn.MaxPool2d(2), nn.BatchNorm2d(out), nn.ReLU(inplace=True)
