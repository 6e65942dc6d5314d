"""``prunesampler demo``: four ways of training on the same images, side by side, and the files that pruning leaves."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table
from torch import nn
from torch.utils.data import RandomSampler
from tqdm import tqdm

from prunesampler.analysis.format import counted
from prunesampler.cli import training
from prunesampler.cli.console import plain_table, write
from prunesampler.cli.options import Quiet, keep_option
from prunesampler.cli.training import Images, Recipe
from prunesampler.errors import ArgumentError, PruneSamplerWarning, StateError, check_int
from prunesampler.selection.registry import Method
from prunesampler.selection.select import Selection, resolve_keep
from prunesampler.training.attach import AttachedLoader, attach

ARMS = FULL, KEPT, RANDOM, SHORTER = "full data", "kept", "random", "full data, shorter"
_FILES = ("scores.parquet", "coreset.parquet")
_FEWEST_ROWS = 100


class Data(str, Enum):
    """What ``demo`` can train on."""

    digits = "digits"
    cifar10 = "cifar10"


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


def demo(
    data: Annotated[Data, typer.Option(help="Handwritten digits (of scikit-learn), or CIFAR-10.")] = Data.digits,
    root: Annotated[Path | None, typer.Option(help="CIFAR-10: torchvision's folder, or one of Parquet files.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch CIFAR-10 (170 MB) into --root.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the two files.")] = Path("prunesampler-demo"),
    force: Annotated[bool, typer.Option("--force", help="Replace the files of an earlier demo.")] = False,
    keep: Annotated[str, typer.Option(help="Fraction in (0, 1], or number, of the rows to keep.")] = "0.5",
    seeds: Annotated[int | None, typer.Option(help="Repetitions. Default: 3; cifar10: 1.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data. Default: 20; cifar10: 8.")] = None,
    score_epochs: Annotated[int | None, typer.Option(help="How many are scored. Default: 6; cifar10: 3.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows of a step. Default: 64; cifar10: 256.")] = None,
    rows: Annotated[int | None, typer.Option(help="Only so many training and test rows, for a quick look.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train on all rows, on the kept ones and on random ones; print a table and write both files.

    Digits take half a minute on two cores, CIFAR-10 about a quarter of an hour.
    """
    given: dict[str, Any] = {"seeds": seeds, "epochs": epochs, "score_epochs": score_epochs}
    chosen = CIFAR10 if data is Data.cifar10 else DIGITS
    recipe = chosen.recipe if batch_size is None else replace(chosen.recipe, batch_size=batch_size)
    chosen = replace(chosen, recipe=recipe, **{name: number for name, number in given.items() if number is not None})
    fraction = keep_option(keep)
    if isinstance(fraction, str):
        raise ArgumentError("keep", "must be a number here, for the arm of random rows to be as large", keep)
    resolve_keep(fraction, 2**63)
    if rows is not None:
        check_int("rows", rows, _FEWEST_ROWS)
    found = [name for name in _FILES if (out / name).exists()]
    if found and not force:
        raise StateError(f"{out} holds {' and '.join(found)} already: give another --out, or --force to replace them")
    if any(path.exists() and not path.is_dir() for path in (out, *out.parents)):
        raise StateError(f"{out} cannot be a folder: give another --out")
    if data is Data.cifar10:
        if root is None:
            raise ArgumentError("root", "must be given with --data cifar10: its folder", root)
        split = training.load_cifar10(root, chosen.device, download=download, rows=rows, quiet=quiet)
    else:
        if root is not None or download:
            raise ArgumentError("root", "and download belong to --data cifar10", data.value)
        train, test = training.load_digits()
        split = train.subset(slice(rows)), test.subset(slice(rows))
    results = run(chosen, *split, fraction, out, quiet=quiet)
    write(report(results, chosen, *split, fraction, out))


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
    for name in _FILES:
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
) -> Iterator[str | Table]:
    """The table, what to make of it, and where the files are."""
    kept = resolve_keep(keep, len(train))
    part = "half" if abs(2 * kept - len(train)) < 2 else f"{kept / len(train):.0%}"
    names = {KEPT: f"kept {part}", RANDOM: f"random {part}"}
    accuracy, rows = {}, []
    for arm in ARMS:
        of = [each for each in results if each.arm == arm]
        accuracy[arm] = 100 * statistics.mean(each.accuracy for each in of)
        seconds = f"{statistics.mean(each.seconds for each in of):.1f}"
        shares = _spread([each.accuracy for each in of]), _spread([each.worst_class for each in of])
        rows.append([names.get(arm, arm), f"{of[0].rows:,}", f"{of[0].steps:,}", seconds, *shares])
    yield f"{demo.name}: {len(train):,} training and {len(test):,} test images"
    yield plain_table(["arm", "rows", "steps", "seconds", "test acc., %", "worst class, %"], rows)
    yield ""
    repeated = f"± is the standard deviation over {demo.seeds} seeds" if demo.seeds > 1 else "one seed"
    device = "CUDA" if demo.device == "cuda" else f"CPU with {counted(demo.threads, 'thread')}"
    scored = f"{demo.epochs} epochs, the first {demo.score_epochs} scored; steps and seconds include the scoring"
    yield f"{scored}; {repeated}. torch {torch.__version__}, {device}."
    gain = accuracy[KEPT] - accuracy[SHORTER]
    yield f"At equal steps, pruning against training shorter on all the data: {gain:+.1f} points."
    yield from (demo.remark, "")
    yield from (f"{Path(name).stem + ':':8} {out / name}" for name in _FILES)


def _spread(shares: list[float]) -> str:
    percents = [100 * share for share in shares]
    mean = f"{statistics.mean(percents):.1f}"
    return mean if len(percents) == 1 else f"{mean} ± {statistics.stdev(percents):.1f}"
