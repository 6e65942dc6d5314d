"""Four ways of training on the same images, side by side, and the files that pruning leaves."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn
from tqdm import tqdm

from prunesampler.cli.demo_data import Split, train_loader
from prunesampler.cli.demo_training import Recipe, accuracies, threads, train
from prunesampler.errors import PruneSamplerWarning, StateError
from prunesampler.selection.select import Selection, resolve_keep
from prunesampler.training.attach import AttachedLoader, attach

__all__ = ["Result", "check_free", "print_report", "run"]

ARMS = FULL, KEPT, RANDOM, SHORTER = "full data", "kept", "random", "full data, shorter"


@dataclass(frozen=True)
class Result:
    """How one arm ended under one seed: rows of its last epoch, steps of the optimizer, seconds, shares of right
    answers on the test set.
    """

    arm: str
    seed: int
    rows: int
    steps: int
    seconds: float
    accuracy: float
    worst_class: float


@dataclass
class _Run:
    arm: str
    seed: int
    model: nn.Module
    loader: Any
    steps: int


def check_free(out: Path, force: bool) -> None:
    """Refuse to write over an earlier demo, before any work is done.

    Raises:
        StateError: files are there, and ``force`` is false.

    >>> check_free(Path("no such folder"), force=False)
    """
    found = [path.name for path in _files(out) if path.exists()]
    if found and not force:
        raise StateError(f"{out} holds {' and '.join(found)} already: give another --out, or --force to replace them")
    if any(path.exists() and not path.is_dir() for path in (out, *out.parents)):
        raise StateError(f"{out} cannot be a folder: give another --out")


def run(split: Split, recipe: Recipe, keep: float, out: Path, *, quiet: bool = False) -> list[Result]:
    """Train every arm under every seed; the kept arm of seed 0 writes its files into ``out``.

    Args:
        split: the data.
        recipe: how to train.
        keep: of :func:`prunesampler.attach`.
        out: a folder; files of an earlier demo in it are replaced.
        quiet: no progress bar; nor is there one where stderr is not a terminal.

    Raises:
        ArgumentError: keep breaks its rule.
    """
    Selection(keep=keep).check(len(split.train))
    runs = [prepared for seed in range(recipe.seeds) for prepared in _prepare(split, recipe, keep, out, seed)]
    results = []
    total = sum(each.steps for each in runs)
    with threads(recipe.threads), tqdm(total=total, unit="step", disable=quiet or None, leave=False) as bar:
        _warm_up(split, recipe)
        for each in runs:
            bar.set_description(f"seed {each.seed}, {each.arm}")
            seconds = train(each.model, each.loader, recipe, each.steps, bar.update)
            accuracy, worst = accuracies(each.model, split.test, recipe)
            coreset = each.loader.pruning.coreset if isinstance(each.loader, AttachedLoader) else None
            rows = len(split.train if coreset is None else coreset)
            results.append(Result(each.arm, each.seed, rows, each.steps, seconds, accuracy, worst))
    return results


def _prepare(split: Split, recipe: Recipe, keep: float, out: Path, seed: int) -> list[_Run]:
    """The four arms of one seed: same first weights, same order of the full data."""

    def fresh() -> tuple[nn.Module, Any]:
        images = split.train.augmented(seed) if recipe.augment else split.train
        return recipe.model(seed), train_loader(images, recipe.batch_size, seed)

    save_dir = None
    if seed == 0:
        save_dir = out
        for path in _files(out):
            path.unlink(missing_ok=True)
    runs = []
    for arm in ARMS:
        model, loader = fresh()
        if arm in (KEPT, RANDOM):
            with warnings.catch_warnings():
                # It asks for total_steps, which is what the schedule is given below.
                warnings.filterwarnings("ignore", r"len\(loader\)", PruneSamplerWarning)
                loader = attach(
                    loader,
                    model,
                    keep=keep,
                    score_epochs=recipe.score_epochs,
                    method="stratified" if arm == KEPT else "random",
                    seed=seed,
                    save_dir=save_dir if arm == KEPT else None,
                )
            steps = loader.pruning.total_steps(recipe.epochs)
        elif arm == FULL:
            steps = recipe.epochs * len(loader)
        runs.append(_Run(arm, seed, model, loader, steps))
    return runs


def _warm_up(split: Split, recipe: Recipe) -> None:
    """Let the libraries set themselves up on a model of no account, or the first arm would pay for it."""
    loader = train_loader(split.train, recipe.batch_size, 0)
    train(recipe.model(0), loader, recipe, min(5, len(loader)), lambda: None)


def print_report(
    results: Sequence[Result], split: Split, recipe: Recipe, keep: float, out: Path, console: Console
) -> None:
    """The table, what to make of it, and where the files are."""
    kept = resolve_keep(keep, len(split.train))
    part = "half" if abs(2 * kept - len(split.train)) < 2 else f"{kept / len(split.train):.0%}"
    console.print(_table(results, split, recipe, part))
    lines = [_circumstances(recipe), _comparison(results), recipe.remark, ""]
    lines += [f"{path.stem + ':':8} {path}" for path in _files(out)]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table(results: Sequence[Result], split: Split, recipe: Recipe, part: str) -> Table:
    names = {KEPT: f"kept {part}", RANDOM: f"random {part}"}
    table = Table(
        title=f"{split.name}: {len(split.train):,} training and {len(split.test):,} test images",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("arm")
    for heading in ("rows", "steps", "seconds", "test acc., %", "worst class, %"):
        table.add_column(heading, justify="right")
    for arm in ARMS:
        of = [each for each in results if each.arm == arm]
        table.add_row(
            names.get(arm, arm),
            f"{of[0].rows:,}",
            f"{of[0].steps:,}",
            f"{statistics.mean(each.seconds for each in of):.1f}",
            _spread([each.accuracy for each in of]),
            _spread([each.worst_class for each in of]),
        )
    return table


def _spread(shares: list[float]) -> str:
    percents = [100 * share for share in shares]
    mean = f"{statistics.mean(percents):.1f}"
    return mean if len(percents) == 1 else f"{mean} ± {statistics.stdev(percents):.1f}"


def _circumstances(recipe: Recipe) -> str:
    repeated = f"± is the standard deviation over {recipe.seeds} seeds" if recipe.seeds > 1 else "one seed"
    device = recipe.device.type.upper()
    if device == "CPU":
        device += f" with {recipe.threads} thread{'s' if recipe.threads > 1 else ''}"
    precision = str(recipe.precision).removeprefix("torch.")
    return (
        f"{recipe.epochs} epochs, the first {recipe.score_epochs} scored; steps and seconds include the scoring; "
        f"{repeated}. torch {torch.__version__}, {device}, {precision}."
    )


def _comparison(results: Sequence[Result]) -> str:
    kept, shorter = (statistics.mean(each.accuracy for each in results if each.arm == arm) for arm in (KEPT, SHORTER))
    difference = 100 * (kept - shorter)
    return f"At equal steps, pruning against training shorter on all the data: {difference:+.1f} points."


def _files(out: Path) -> list[Path]:
    return [out / "scores.parquet", out / "coreset.parquet"]
