"""What pruning CIFAR-10 is worth, beside every fair alternative.

    python benchmarks/cifar10.py --data DIR --out runs/cifar10
    python benchmarks/cifar10_report.py runs/cifar10 --out benchmarks/results/cifar10-small

DIR holds torchvision's ``cifar-10-batches-py``, the binary ``cifar-10-batches-bin``, which needs NumPy alone, or
Parquet files with the columns image and label. Each arm leaves a JSON file, written when it is finished; the same
command again runs those that are missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import multiprocessing
import os
import platform
import shutil
import sys
import time
import warnings
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import cifar10_arms as arms_
import numpy as np
import torch
from cifar10_arms import Arm
from cifar10_recipes import SETTINGS, Setting
from common import add_data, skip_without_data
from torch.utils.data import RandomSampler
from tqdm import tqdm

import prunesampler
from prunesampler._version import __version__
from prunesampler.cli.training import Images, Recipe, accuracies, fast_precision, load_cifar10, loader, new_model, train
from prunesampler.errors import PruneSamplerWarning

FORWARD_SHARE = 1 / 3  # of a training step's cost: a forward, where training has a backward of twice that as well


@dataclasses.dataclass(frozen=True)
class Run:
    """What all arms have in common."""

    data: Path
    out: Path
    recipe: str
    epochs: int
    device: str
    threads: int
    command: str

    @property
    def setting(self) -> Setting:
        return SETTINGS[self.recipe]

    @property
    def training(self) -> Recipe:
        return dataclasses.replace(self.setting.recipe, precision=fast_precision(self.device))

    @property
    def score_epochs(self) -> int:
        return self.setting.score_epochs(self.epochs)

    @property
    def scoring_cost(self) -> float:
        """Of the scoring epochs and the pass over all rows at their end, as a share of the full run."""
        return (self.score_epochs + FORWARD_SHARE) / self.epochs

    def file(self, arm: Arm) -> Path:
        return self.out / f"{arm.id}.json"

    def folder(self, arm: Arm) -> Path:
        return self.out / arm.id

    def finished(self, arm: Arm) -> bool:
        return self.file(arm).exists()

    def offset(self, arm: Arm) -> float | None:
        """That of the best validation accuracy; of equal ones the smallest."""
        if arm.name not in arms_.TUNED:
            return None
        tried = [json.loads(self.file(each).read_text()) for each in arms_.tuning(arm.keep, arms_.TUNED[arm.name])]
        return float(max(tried, key=lambda each: each["accuracy"])["arm"]["offset"])


@functools.cache
def _images(folder: Path, device: str) -> tuple[Images, Images]:
    return load_cifar10(folder, device)


def perform(run: Run, arm: Arm) -> dict[str, Any]:
    """Train one arm and write its file."""
    torch.set_num_threads(run.threads)
    warnings.simplefilter("ignore", PruneSamplerWarning)  # short runs and top at small keeps: shown by the results
    images, test = _images(run.data, run.device)
    with tqdm(desc=arm.id, unit="step", disable=None, mininterval=1) as bar:
        result = _attached(run, arm, images, bar) if _attaches(arm) else _static(run, arm, images, bar)
    if arm.name == "tune":
        test = images.subset(arms_.fitting_rows(len(images))[1])
    if arm.name != "score":
        _, per_class = accuracies(result.pop("model"), test, run.training)
        result |= {"accuracy": float(np.mean(per_class)), "worst_class": min(per_class), "per_class": per_class}
    result.pop("model", None)
    done = {"arm": dataclasses.asdict(arm), "recipe": run.recipe, "epochs": run.epochs, **result, **_circumstances(run)}
    scratch = run.file(arm).with_suffix(".tmp")
    scratch.write_text(json.dumps(done, indent=1) + "\n")
    os.replace(scratch, run.file(arm))
    return done


def _attaches(arm: Arm) -> bool:
    return arm.name in ("attach", "attach-auto", "score")


def _static(run: Run, arm: Arm, images: Images, bar: Any) -> dict[str, Any]:
    """On rows that are known beforehand."""
    recipe = run.training
    coreset, offset, scored = None, None, False
    if arm.name == "random":
        anything = prunesampler.ScoreTable({"el2n": np.zeros(len(images))})
        coreset = prunesampler.select(anything, keep=arm.keep, method="random", seed=arm.seed)
    elif arm.name in (*arms_.BY_SCORE, "auto", "tune"):
        scored = True
        offset = run.offset(arm) if arm.offset is None else arm.offset
        folder = run.folder(Arm("score", seed=0 if arm.name == "tune" else arm.seed))
        online, rescored = (prunesampler.ScoreTable.load(folder / f"{name}.parquet") for name in ("scores", "rescored"))
        coreset = arms_.coreset_of(arm, online, rescored, offset)
    sampler = arms_.sampler_of(arm, len(images), coreset)
    rows_kept = len(sampler)  # type: ignore[arg-type]
    batches = loader(images.augmented(arm.seed), sampler, recipe.batch_size)
    full_steps = run.epochs * _steps(len(images), recipe)
    steps = full_steps if arm.budget == "steps" else run.epochs * _steps(rows_kept, recipe)
    steps = round(arm.length * steps)
    bar.reset(total=steps)
    model = new_model(recipe.network, arm.seed, images)
    seconds = train(model, batches, recipe, steps, progress=bar.update)
    cost = {"training": steps / full_steps, "scoring": run.scoring_cost if scored else 0.0}
    return {"model": model, "rows": rows_kept, "steps": steps, "seconds": seconds, "cost": cost, "offset": offset}


def _attached(run: Run, arm: Arm, images: Images, bar: Any) -> dict[str, Any]:
    """Scoring on the way."""
    recipe = run.training
    shutil.rmtree(run.folder(arm), ignore_errors=True)  # of an attempt that was interrupted
    order = RandomSampler(images, generator=torch.Generator().manual_seed(arm.seed))
    batches = loader(images.augmented(arm.seed), order, recipe.batch_size)
    # Scores come from a run of its own, with other weights and another order than the arms that they are used in.
    seed = arm.seed + 1000 if arm.name == "score" else arm.seed
    model = new_model(run.setting.transfer if arm.network else recipe.network, seed, images)
    offset = run.offset(arm)
    batches = prunesampler.attach(
        batches,
        model,
        keep={"score": None, "attach-auto": "auto"}.get(arm.name, arm.keep),  # type: ignore[arg-type]
        score_epochs=run.score_epochs,
        offset=offset,
        epoch_length="full" if arm.budget == "steps" else "kept",
        seed=arm.seed,
        save_dir=run.folder(arm),
    )
    full_steps = run.epochs * _steps(len(images), recipe)
    pruning = batches.pruning
    of = full_steps if arm.name in ("score", "attach-auto") else pruning.total_steps(run.epochs)
    steps = run.score_epochs * _steps(len(images), recipe) if arm.name == "score" else of
    bar.reset(total=steps)
    seconds = train(model, batches, recipe, steps, of=of, progress=bar.update)
    pruning.finish()
    if arm.name == "score":
        with recipe.autocast(torch.device(run.device)):
            rescored = prunesampler.score(
                model, loader(images, range(len(images)), 1000, drop_last=False), progress=False, num_rows=len(images)
            )
        rescored.save(run.folder(arm) / "rescored.parquet")
    kept = len(images) if pruning.coreset is None else len(pruning.coreset)
    cost = {"training": steps / full_steps, "scoring": 0.0}
    return {"model": model, "rows": kept, "steps": steps, "seconds": seconds, "cost": cost, "offset": offset}


def _steps(rows: int, recipe: Recipe) -> int:
    return max(1, rows // recipe.batch_size)  # the last, smaller batch of a pass is left out


def _circumstances(run: Run) -> dict[str, Any]:
    cuda = run.device == "cuda"
    chip = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = {line.split(":")[1].strip() for line in chip.splitlines() if line.startswith("model name")}
    return {
        "machine": {
            "device": torch.cuda.get_device_name() if cuda else " ".join(sorted(models)) or platform.processor(),
            "cores": os.cpu_count(),
            "threads": run.threads,
            "precision": str(run.training.precision).removeprefix("torch."),
            "capability": "CUDA" if cuda else torch.backends.cpu.get_cpu_capability(),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "prunesampler": __version__,
        },
        "command": run.command,
    }


def run_all(run: Run, arms: list[Arm], processes: int, hours: float) -> list[Arm]:
    """Run what is not finished, in the order given as far as needs allow.

    Returns:
        The arms that the time budget left out.
    """
    deadline = time.monotonic() + 3600 * hours
    waiting = [arm for arm in arms if not run.finished(arm)]
    running: dict[Future[Any], tuple[Arm, float]] = {}
    # Seconds that the full run would take at the pace of the slowest arm so far.
    slowest = max((_seconds(run, arm) / _length(arm, run) for arm in arms if run.finished(arm)), default=0.0)
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(processes, mp_context=context) as pool, tqdm(total=len(waiting), unit="arm") as bar:
        while waiting or running:
            for arm in list(waiting):
                if len(running) == processes:
                    break
                if time.monotonic() + slowest * _length(arm, run) > deadline:
                    continue
                if all(map(run.finished, arm.needs)):
                    waiting.remove(arm)
                    running[pool.submit(perform, run, arm)] = arm, time.monotonic()
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                arm, began = running.pop(future)
                done = future.result()
                slowest = max(slowest, (time.monotonic() - began) / _length(arm, run))
                told = f"{100 * done['accuracy']:.2f} %" if "accuracy" in done else "scored"
                bar.write(f"{arm.id}: {told}, {done['steps']} steps, {done['seconds']:.0f} s", file=sys.stdout)
                sys.stdout.flush()
                bar.update()
    return waiting


def _seconds(run: Run, arm: Arm) -> float:
    return float(json.loads(run.file(arm).read_text())["seconds"])


def _length(arm: Arm, run: Run) -> float:
    if arm.name == "score":
        return run.score_epochs / run.epochs
    return arm.length * (1.0 if arm.budget == "steps" else arm.keep)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data(parser)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", choices=SETTINGS, default="small")
    parser.add_argument("--epochs", type=int, help="of the full run; schedules scale with it")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.3, 0.7], help="the most telling first")
    parser.add_argument("--budgets", nargs="+", choices=("epochs", "steps"), default=["epochs", "steps"])
    parser.add_argument("--arms", nargs="+", choices=arms_.ALL, default=arms_.ALL)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--hours", type=float, default=12.0, help="no arm begins that would not end within them")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, default=1, help="arms at a time")
    parser.add_argument("--threads", type=int, help="of each; by default the cores shared out")
    given = parser.parse_args()
    skip_without_data(parser, given)
    setting = SETTINGS[given.recipe]
    epochs = given.epochs or setting.epochs
    if epochs <= setting.score_epochs(epochs):
        parser.error(f"--epochs must be above {setting.score_epochs(epochs)}, which are scored")
    run = Run(
        Path(given.data),
        given.out,
        given.recipe,
        epochs,
        given.device,
        given.threads or max(1, (os.cpu_count() or 1) // given.processes),
        " ".join(["python", *("DIR" if each == str(given.data) else each for each in sys.argv)]),
    )
    run.out.mkdir(parents=True, exist_ok=True)
    arms = arms_.plan(given.arms, given.keep, given.budgets, range(given.seeds), run.scoring_cost)
    left = run_all(run, arms, given.processes, given.hours)
    for arm in left:
        print(f"left out for want of time: {arm.id}")


if __name__ == "__main__":
    main()
