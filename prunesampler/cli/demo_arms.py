"""What ``prunesampler demo`` runs: ways of training on the same images, and the files that pruning leaves.

Once with the labels as they are, where pruning does not pay; and once with some made wrong, where it does.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import RandomSampler
from tqdm import tqdm

from prunesampler._format import counted, percent
from prunesampler.cli import training
from prunesampler.cli.console import PlainTable
from prunesampler.cli.training import Images, Recipe
from prunesampler.errors import ArgumentError, PruneSamplerWarning, check_int
from prunesampler.selection.select import Selection, resolve_keep
from prunesampler.training.attach import attach
from prunesampler.training.attached_loader import AttachedLoader

ARMS = FULL, KEPT, RANDOM, SHORTER = "full data", "kept", "random", "full data, shorter"
NOISY_ARMS = (FULL, KEPT, RANDOM, RIGHT) = (FULL, KEPT, RANDOM, "right labels alone")
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
        wrong: share of the labels that are made wrong for a second table; 0: there is none.
    """

    name: str
    recipe: Recipe
    epochs: int
    score_epochs: int
    seeds: int
    large: bool
    remark: str
    wrong: float = 0.0

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
    wrong=0.2,
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
    return _perform(demo, train, test, lambda seed: _arms(demo, train, keep, out, seed), quiet=quiet)


def run_noisy(demo: Demo, train: Images, test: Images, *, quiet: bool = False) -> list[Result]:
    """The same with a share of the training labels made wrong, all arms for the steps of the full data."""
    return _perform(demo, train, test, lambda seed: _noisy_arms(demo, train, seed), quiet=quiet)


_Arm = tuple[str, nn.Module, Any, int]
"""Name, model, loader and steps."""


def _perform(
    demo: Demo, train: Images, test: Images, arms_of: Callable[[int], Iterator[_Arm]], *, quiet: bool
) -> list[Result]:
    recipe = demo.recipe
    if demo.large:
        recipe = replace(recipe, precision=training.fast_precision(demo.device))
    arms = [(seed, *arm) for seed in range(demo.seeds) for arm in arms_of(seed)]
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
                rows = len(batches.dataset if coreset is None else coreset)
                results.append(Result(arm, seed, rows, steps, seconds, accuracy, np.nanmin(by_class).item()))
    finally:
        torch.set_num_threads(threads)
    return results


def _arms(demo: Demo, train: Images, keep: float, out: Path, seed: int) -> Iterator[_Arm]:
    """The same first weights, and the same order of the full data."""
    steps = 0
    for arm in ARMS:
        model, loader = _begun(demo, train, seed)
        if arm in (KEPT, RANDOM):
            selection = Selection(keep, method="stratified" if arm == KEPT else "random", seed=seed)
            loader = _attached(demo, loader, model, selection, out if arm == KEPT and seed == 0 else None)
            steps = loader.pruning.total_steps(demo.epochs)
        elif arm == FULL:
            steps = demo.epochs * len(loader)
        yield arm, model, loader, steps  # the shorter run on full data takes as many steps as the pruned one


def _noisy_arms(demo: Demo, train: Images, seed: int) -> Iterator[_Arm]:
    rng, given = np.random.default_rng([seed, 0x776E]), train.targets.cpu().numpy().copy()
    classes = int(given.max()) + 1
    wrong = rng.permutation(len(given))[: round(demo.wrong * len(given))]
    given[wrong] = (given[wrong] + rng.integers(1, classes, len(wrong))) % classes
    noisy = replace(train, targets=torch.from_numpy(given).to(train.targets.device))
    for arm in NOISY_ARMS:
        right = torch.from_numpy(np.setdiff1d(np.arange(len(given)), wrong))
        model, loader = _begun(demo, noisy.subset(right) if arm == RIGHT else noisy, seed)
        steps = demo.epochs * -(-len(given) // demo.recipe.batch_size)
        if arm in (KEPT, RANDOM):
            selection = Selection(1 - demo.wrong, method="bottom" if arm == KEPT else "random", seed=seed)
            loader = _attached(demo, loader, model, selection, None)
        yield arm, model, loader, steps


def _begun(demo: Demo, train: Images, seed: int) -> tuple[nn.Module, Any]:
    images = train.augmented(seed) if demo.large else train
    order = RandomSampler(images, generator=torch.Generator().manual_seed(seed))
    loader = training.loader(images, order, demo.recipe.batch_size, drop_last=False)
    return training.new_model(demo.recipe.network, seed, train), loader


def _attached(
    demo: Demo, loader: Any, model: nn.Module, selection: Selection, folder: Path | None
) -> AttachedLoader[Any]:
    with warnings.catch_warnings():
        # It asks for total_steps, which is what the schedule is given.
        warnings.filterwarnings("ignore", r"len\(loader\)", PruneSamplerWarning)
        return attach(
            loader, model, selection=selection, score_epochs=demo.score_epochs, seed=selection.seed, save_dir=folder
        )


def report(
    results: Sequence[Result],
    demo: Demo,
    train: Images,
    test: Images,
    keep: float,
    out: Path,
    noisy: Sequence[Result] = (),
) -> Iterator[str | PlainTable]:
    """The tables, what to make of it, and where the files are."""
    kept = resolve_keep(keep, len(train))
    part = "half" if abs(2 * kept - len(train)) < 2 else percent(kept / len(train))
    names = {KEPT: f"kept {part}", RANDOM: f"random {part}"}
    accuracy, rows = _table(results, ARMS, names)
    yield f"{demo.name}: {len(train):,} training and {len(test):,} test images"
    yield PlainTable(_COLUMNS, rows)
    yield ""
    repeated = f"± is the standard deviation over {demo.seeds} seeds" if demo.seeds > 1 else "one seed"
    device = "CUDA" if demo.device == "cuda" else f"CPU with {counted(demo.threads, 'thread')}"
    scored = f"{demo.epochs} epochs, the first {demo.score_epochs} scored; steps and seconds include the scoring"
    yield f"{scored}; {repeated}. torch {torch.__version__}, {device}."
    gain = accuracy[KEPT] - accuracy[SHORTER]
    yield f"At equal steps, pruning against training shorter on all the data: {gain:+.1f} points."
    yield from (demo.remark, "")
    if noisy:
        yield from noisy_report(noisy, demo)
    yield from (f"{Path(name).stem + ':':8} {out / name}" for name in FILES)


def noisy_report(results: Sequence[Result], demo: Demo) -> Iterator[str | PlainTable]:
    """The table of the second part, and what to make of it."""
    gone = percent(demo.wrong)
    accuracy, rows = _table(
        results, NOISY_ARMS, {KEPT: f"without the hardest {gone}", RANDOM: f"without {gone} at random"}
    )
    yield f"the same with {gone} of the training labels made wrong, all arms for as many steps"
    yield PlainTable(_COLUMNS, rows)
    yield ""
    gain, most = accuracy[KEPT] - accuracy[FULL], accuracy[RIGHT] - accuracy[FULL]
    yield f"At equal steps, pruning against all the data: {gain:+.1f} points."
    yield f"Knowing which labels are right, and training on these alone: {most:+.1f} points."
    yield f"Pruning was told the share, {gone}, and not which; they have the highest scores while the network is young."
    yield ""


_COLUMNS = ["arm", "rows", "steps", "seconds", "test\nacc., %", "worst\nclass, %"]


def _table(
    results: Sequence[Result], arms: Sequence[str], names: dict[str, str]
) -> tuple[dict[str, float], list[list[str]]]:
    accuracy, rows = {}, []
    for arm in arms:
        of = [each for each in results if each.arm == arm]
        accuracy[arm] = 100 * statistics.mean(each.accuracy for each in of)
        seconds = f"{statistics.mean(each.seconds for each in of):.1f}"
        shares = _spread([each.accuracy for each in of]), _spread([each.worst_class for each in of])
        rows.append([names.get(arm, arm), f"{of[0].rows:,}", f"{of[0].steps:,}", seconds, *shares])
    return accuracy, rows


def _spread(shares: list[float]) -> str:
    percents = [100 * share for share in shares]
    mean = f"{statistics.mean(percents):.1f}"
    return mean if len(percents) == 1 else f"{mean} ± {statistics.stdev(percents):.1f}"
