"""What ``prunesampler demo`` runs: four ways of training on the same images, and the files that pruning leaves."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import RandomSampler
from tqdm import tqdm

from prunesampler.analysis.format import counted, percent
from prunesampler.cli import training
from prunesampler.cli.console import PlainTable
from prunesampler.cli.training import Images, Recipe
from prunesampler.errors import ArgumentError, PruneSamplerWarning, check_int
from prunesampler.selection.registry import Method
from prunesampler.selection.select import Selection, resolve_keep
from prunesampler.training.attach import attach
from prunesampler.training.attached_loader import AttachedLoader

ARMS = FULL, KEPT, RANDOM, SHORTER = "full data", "kept", "random", "full data, shorter"
FILES = ("scores.parquet", "coreset.parquet")


@dataclass(frozen=True)
class Demo:
    """How one dataset is trained on.

    Attributes:
        name: of the data.
        recipe: the network and its training.
        epochs, score_epochs: passes over the data, and how many of them are scored.
        seeds: repetitions, seeds 0, 1, ….
        large: augment images, use a GPU if there is one, and all threads; small networks gain nothing by these.
        remark: what the numbers do and do not show.
    """

    name: str
    recipe: Recipe
    epochs: int
    score_epochs: int
    seeds: int
    large: bool
    remark: str

    def __post_init__(self) -> None:
        for name in ("epochs", "score_epochs", "seeds"):
            check_int(name, getattr(self, name), 1)
        check_int("batch_size", self.recipe.batch_size, 1)
        if self.score_epochs >= self.epochs:
            raise ArgumentError("score_epochs", f"must be below epochs, {self.epochs}", self.score_epochs)

    @property
    def device(self) -> str:
        """Where images and models are."""
        return "cuda" if self.large and torch.cuda.is_available() else "cpu"

    @property
    def threads(self) -> int:
        """Of torch."""
        return torch.get_num_threads() if self.large else 1


DIGITS = Demo(
    "handwritten digits",
    Recipe(training.digits_network, batch_size=64, precision=torch.float32),
    epochs=20,
    score_epochs=6,
    seeds=3,
    large=False,
    remark="Digits show the mechanics, not the benefit: they are too few and too easy for pruning to pay.",
)
CIFAR10 = Demo(
    "CIFAR-10",
    Recipe(lambda images: training.small(images, width=24), batch_size=256, learning_rate=0.2),
    epochs=8,
    score_epochs=3,
    seeds=1,
    large=True,
    remark="Keeping the harder examples helps long training (200 epochs, training error near zero) and hurts short "
    "runs like this one. At equal cost, training shorter on all the data is the baseline to beat.",
)


@dataclass(frozen=True)
class Result:
    """How one arm ended under one seed: rows of its last epoch, steps, seconds, accuracies on the test set."""

    arm: str
    seed: int
    rows: int
    steps: int
    seconds: float
    accuracy: float
    worst_class: float


def run(demo: Demo, train: Images, test: Images, keep: float, out: Path, *, quiet: bool = False) -> list[Result]:
    """Train every arm under every seed; the kept arm of seed 0 writes its files into the folder ``out``."""
    Selection(keep=keep).check(len(train))
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    recipe = demo.recipe
    if demo.large:
        recipe = replace(recipe, precision=training.fast_precision(demo.device))
    arms = [(seed, *arm) for seed in range(demo.seeds) for arm in _arms(demo, train, keep, out, seed)]
    total = sum(steps for *_, steps in arms)
    results, threads = [], torch.get_num_threads()
    torch.set_num_threads(demo.threads)
    try:
        # Let the libraries set themselves up, or the first arm would pay for it.
        batches = training.loader(train, range(len(train)), recipe.batch_size, drop_last=False)
        training.train(training.new_model(recipe.network, 0, train), batches, recipe, min(5, len(batches)))
        with tqdm(total=total, unit="step", disable=quiet or None, leave=False) as bar:
            for seed, arm, model, batches, steps in arms:
                bar.set_description(f"seed {seed}, {arm}")
                seconds = training.train(model, batches, recipe, steps, progress=bar.update)
                accuracy, by_class = training.accuracies(model, test, recipe)
                coreset = batches.pruning.coreset if isinstance(batches, AttachedLoader) else None
                rows = len(train if coreset is None else coreset)
                results.append(Result(arm, seed, rows, steps, seconds, accuracy, np.nanmin(by_class).item()))
    finally:
        torch.set_num_threads(threads)
    return results


def _arms(demo: Demo, train: Images, keep: float, out: Path, seed: int) -> Iterator[tuple[str, nn.Module, Any, int]]:
    """Name, model, loader and steps: the same first weights, and the same order of the full data."""
    recipe, steps = demo.recipe, 0
    for arm in ARMS:
        images = train.augmented(seed) if demo.large else train
        order = RandomSampler(images, generator=torch.Generator().manual_seed(seed))
        loader = training.loader(images, order, recipe.batch_size, drop_last=False)
        model = training.new_model(recipe.network, seed, train)
        if arm in (KEPT, RANDOM):
            with warnings.catch_warnings():
                # It asks for total_steps, which is what the schedule is given.
                warnings.filterwarnings("ignore", r"len\(loader\)", PruneSamplerWarning)
                method: Method = "stratified" if arm == KEPT else "random"
                folder = out if arm == KEPT and seed == 0 else None
                options: dict[str, Any] = {"score_epochs": demo.score_epochs, "seed": seed, "save_dir": folder}
                loader = attach(loader, model, keep=keep, method=method, **options)
            steps = loader.pruning.total_steps(demo.epochs)
        elif arm == FULL:
            steps = demo.epochs * len(loader)
        yield arm, model, loader, steps  # the shorter run on full data takes as many steps as the pruned one


def report(
    results: Sequence[Result], demo: Demo, train: Images, test: Images, keep: float, out: Path
) -> Iterator[str | PlainTable]:
    """The table, what to make of it, and where the files are."""
    kept = resolve_keep(keep, len(train))
    part = "half" if abs(2 * kept - len(train)) < 2 else percent(kept / len(train))
    names = {KEPT: f"kept {part}", RANDOM: f"random {part}"}
    accuracy, rows = {}, []
    for arm in ARMS:
        of = [each for each in results if each.arm == arm]
        accuracy[arm] = 100 * statistics.mean(each.accuracy for each in of)
        seconds = f"{statistics.mean(each.seconds for each in of):.1f}"
        shares = _spread([each.accuracy for each in of]), _spread([each.worst_class for each in of])
        rows.append([names.get(arm, arm), f"{of[0].rows:,}", f"{of[0].steps:,}", seconds, *shares])
    yield f"{demo.name}: {len(train):,} training and {len(test):,} test images"
    yield PlainTable(["arm", "rows", "steps", "seconds", "test\nacc., %", "worst\nclass, %"], rows)
    yield ""
    repeated = f"± is the standard deviation over {demo.seeds} seeds" if demo.seeds > 1 else "one seed"
    device = "CUDA" if demo.device == "cuda" else f"CPU with {counted(demo.threads, 'thread')}"
    scored = f"{demo.epochs} epochs, the first {demo.score_epochs} scored; steps and seconds include the scoring"
    yield f"{scored}; {repeated}. torch {torch.__version__}, {device}."
    gain = accuracy[KEPT] - accuracy[SHORTER]
    yield f"At equal steps, pruning against training shorter on all the data: {gain:+.1f} points."
    yield from (demo.remark, "")
    yield from (f"{Path(name).stem + ':':8} {out / name}" for name in FILES)


def _spread(shares: list[float]) -> str:
    percents = [100 * share for share in shares]
    mean = f"{statistics.mean(percents):.1f}"
    return mean if len(percents) == 1 else f"{mean} ± {statistics.stdev(percents):.1f}"
