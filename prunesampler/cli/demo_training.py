"""The ordinary training that the demo attaches to: networks, a loop, and the accuracy at its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunesampler.cli.demo_data import Images
from prunesampler.errors import ArgumentError

__all__ = ["CIFAR10", "DIGITS", "Recipe", "accuracies", "threads", "train"]


@dataclass(frozen=True)
class Recipe:
    """How one dataset is trained.

    Attributes:
        network: makes the model.
        epochs, score_epochs: passes over the data, and how many of them are scored.
        batch_size: rows of a step.
        seeds: repetitions, seeds 0, 1, ….
        learning_rate: highest of the one-cycle schedule, for SGD with Nesterov momentum 0.9.
        augment: random crops and flips.
        accelerate: take CUDA where there is one, bfloat16 where the hardware multiplies it quickly, and all threads.
            Steps of a few milliseconds gain nothing by these.
        remark: what the numbers do and do not show.

    Raises:
        ArgumentError: a number is below 1, or scoring would not end before training does.
    """

    network: Callable[[], nn.Module]
    epochs: int
    score_epochs: int
    batch_size: int
    seeds: int
    learning_rate: float
    augment: bool
    accelerate: bool
    remark: str

    def __post_init__(self) -> None:
        for name in ("epochs", "score_epochs", "batch_size", "seeds"):
            if getattr(self, name) < 1:
                raise ArgumentError(name, "must be an int >= 1", getattr(self, name))
        if self.score_epochs >= self.epochs:
            raise ArgumentError("score_epochs", f"must be below epochs, {self.epochs}", self.score_epochs)

    @property
    def device(self) -> torch.device:
        """Where the model is trained."""
        return torch.device("cuda" if self.accelerate and torch.cuda.is_available() else "cpu")

    @property
    def precision(self) -> torch.dtype:
        """What its convolutions compute in. A CPU without AVX-512 would emulate bfloat16, six times slower."""
        quick = self.device.type == "cuda" or torch.backends.cpu.get_cpu_capability() == "AVX512"
        return torch.bfloat16 if self.accelerate and quick else torch.float32

    @property
    def threads(self) -> int:
        """How many the CPU's share of the work takes."""
        return torch.get_num_threads() if self.accelerate else 1

    def model(self, seed: int) -> nn.Module:
        """A network whose first weights depend on ``seed`` alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = self.network()
        return model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def autocast(self) -> torch.autocast:
        """Around each forward."""
        reduced = self.precision is not torch.float32
        return torch.autocast(self.device.type, torch.bfloat16, enabled=reduced)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads for torch within this context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(model: nn.Module, loader: Any, recipe: Recipe, steps: int, progress: Callable[[], object]) -> float:
    """Train for so many optimizer steps, in as many passes over ``loader`` as they take.

    Returns:
        Seconds.
    """
    began = time.perf_counter()
    rate = recipe.learning_rate
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    model.train()
    done = 0
    while done < steps:
        for images, labels in loader:
            images, labels = images.to(recipe.device), labels.to(recipe.device)
            with recipe.autocast():
                loss = cross_entropy(model(images).float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress()
            done += 1
            if done == steps:
                break
    if recipe.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def accuracies(model: nn.Module, images: Images, recipe: Recipe) -> tuple[float, float]:
    """The share of right answers over all images, and in the class with the lowest."""
    model.eval()
    right = []
    with torch.no_grad(), recipe.autocast():
        for rows in torch.arange(len(images)).split(1000):
            inputs, labels = images.__getitems__(rows.tolist())
            right.append(model(inputs.to(recipe.device)).argmax(1).cpu() == labels)
    answers = torch.cat(right)
    shown = torch.bincount(images.targets)
    per_class = torch.bincount(images.targets[answers], minlength=len(shown)) / shown.double()
    return answers.double().mean().item(), per_class[shown > 0].min().item()


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolution(width, width), _convolution(width, width))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.body(inputs)  # type: ignore[no-any-return]


def _convolution(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True))


def _digits_network() -> nn.Module:
    return nn.Sequential(
        *(_convolution(1, 16), _convolution(16, 32), nn.MaxPool2d(2)),
        *(_convolution(32, 32), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )


def _cifar10_network(width: int = 24) -> nn.Module:
    return nn.Sequential(
        *(_convolution(3, width), nn.MaxPool2d(2)),
        *(_convolution(width, 2 * width), nn.MaxPool2d(2), _Residual(2 * width)),
        *(_convolution(2 * width, 4 * width), nn.MaxPool2d(2), _Residual(4 * width)),
        *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10)),
    )


DIGITS = Recipe(
    _digits_network,
    epochs=20,
    score_epochs=6,
    batch_size=64,
    seeds=3,
    learning_rate=0.1,
    augment=False,
    accelerate=False,
    remark="Digits show the mechanics, not the benefit: they are too few and too easy for pruning to pay.",
)
CIFAR10 = Recipe(
    _cifar10_network,
    epochs=8,
    score_epochs=3,
    batch_size=256,
    seeds=1,
    learning_rate=0.2,
    augment=True,
    accelerate=True,
    remark="Keeping the harder examples helps long training (200 epochs, training error near zero) and hurts short "
    "runs like this one. At equal cost, training shorter on all the data is the arm to beat.",
)
