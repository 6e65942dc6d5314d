"""The figures of Paul et al. (2021), Deep Learning on a Data Diet, with a small network on CIFAR-10.

Three questions, each with the right labels and with 10 % wrong ones:

* which window of EL2N to keep: accuracy by the number of hardest rows left out, and of random rows;
* where the tangent kernel turns fastest: NTK velocity of groups of 100 rows with neighbouring EL2N, early and late;
* which rows a run settles on first: the error barrier between two children of one parent, by the epoch in which they
  were spawned, on the rows of lowest and highest EL2N and on random ones.
"""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import circumstances, make_parser, save_report
from torch import Tensor, nn
from torch.utils.data import RandomSampler, SequentialSampler

import prunesampler as ps
from prunesampler.analysis.error_barrier import error_barrier
from prunesampler.cli.training import (
    Images,
    Recipe,
    accuracies,
    fast_precision,
    load_cifar10,
    loader,
    new_model,
    one_cycle,
    small,
    train,
)
from prunesampler.scores.ntk import ntk, ntk_velocity

NOISE = (0.0, 0.1)


def trained(model: nn.Module, images: Images, options: Any, seed: int, start: int, end: int, rows: Any = None) -> Any:
    """The model after epochs ``start`` to ``end`` of the schedule, on all rows or some, for as many steps as on all."""
    per_epoch = len(images) // options.batch
    chosen = images if rows is None else images.subset(torch.as_tensor(rows))
    order = RandomSampler(range(len(chosen)), generator=torch.Generator().manual_seed(seed))
    recipe = replace(options.recipe, schedule=lambda step, _: one_cycle(step + start * per_epoch, options.steps))
    batches = loader(chosen.augmented(seed), order, options.batch)
    train(model, batches, recipe, (end - start) * per_epoch)
    return model


def with_wrong_labels(images: Images, share: float) -> Images:
    random = np.random.default_rng(0)
    targets = images.targets.clone()
    wrong = torch.from_numpy(random.choice(len(targets), round(share * len(targets)), replace=False))
    targets[wrong] = (targets[wrong] + torch.from_numpy(random.integers(1, 10, len(wrong)))) % 10
    return replace(images, targets=targets)


def el2n(models: list[nn.Module], images: Images) -> np.ndarray:
    batches = loader(images, SequentialSampler(images), 500, drop_last=False)
    return ps.score(models, batches, progress=False).scores["el2n"]


def window_sweep(images: Images, test: Images, scores: np.ndarray, options: Any) -> dict[str, Any]:
    hardest_first = np.argsort(-scores)
    kept = round(0.4 * len(scores))
    offsets = [round(share * len(scores)) for share in options.offsets]
    found: dict[str, Any] = {"kept": kept, "offsets": offsets, "accuracy": []}
    for offset in offsets:
        rows = np.sort(hardest_first[offset : offset + kept])
        found["accuracy"].append(retrained(images, test, options, rows))
    rows = np.sort(np.random.default_rng(1).choice(len(scores), kept, replace=False))
    return found | {"random": retrained(images, test, options, rows)}


def retrained(images: Images, test: Images, options: Any, rows: np.ndarray) -> float:
    model = new_model(options.network, 1, images)
    return accuracies(trained(model, images, options, 1, 0, options.epochs, rows), test, options.recipe)[0]


def velocities(images: Images, scores: np.ndarray, options: Any) -> dict[str, Any]:
    order = np.argsort(scores)
    size = min(100, len(order) // options.groups)
    starts = np.linspace(0, len(order) - size, options.groups).round().astype(int)
    groups = [order[start : start + size] for start in starts]
    found: dict[str, Any] = {"el2n": [float(scores[rows].mean()) for rows in groups], "velocity": {}}
    model, epoch = new_model(options.network, 2, images), 0
    for first in options.velocity_epochs:
        trained(model, images, options, 2, epoch, first)
        before = kernels(model, images, groups)
        trained(model, images, options, 2, first, epoch := first + 1)
        pairs = zip(before, kernels(model, images, groups), strict=True)
        found["velocity"][first] = [ntk_velocity(*pair) for pair in pairs]
    return found


def kernels(model: nn.Module, images: Images, groups: list[np.ndarray]) -> list[Tensor]:
    plain = copy.deepcopy(model).eval()
    return [ntk(plain, images.__getitems__(rows.tolist())[0], len(rows)) for rows in groups]


def barriers(images: Images, scores: np.ndarray, options: Any) -> dict[str, Any]:
    order, count = np.argsort(scores), min(1000, len(scores) // 4)
    some = np.random.default_rng(2).choice(len(scores), count, replace=False)
    looked_at = {"lowest": order[:count], "highest": order[-count:], "random": some}
    found: dict[str, Any] = {"spawned": options.spawned, **{name: [] for name in looked_at}}
    parent, epoch = new_model(options.network, 3, images), 0
    for spawn in options.spawned:
        trained(parent, images, options, 3, epoch, epoch := spawn)
        children = [trained(copy.deepcopy(parent), images, options, seed, spawn, options.epochs) for seed in (101, 102)]
        for name, rows in looked_at.items():
            found[name].append(error_barrier(*children, [images.__getitems__(rows.tolist())]).height)
    return found


def table(report: dict[str, Any]) -> list[str]:
    lines = [
        f"CIFAR-10, {report['rows']:,} training rows, a network of width {report['width']}, {report['epochs']} epochs; "
        f"EL2N after epoch {report['score_epoch']}, a mean over {report['runs']} models. "
        f"{report['seconds'] / 60:.0f} minutes, {report['circumstances']['machine']}.",
    ]
    for noise, found in report["noise"].items():
        sweep, turn, line = found["window"], found["velocity"], found["barrier"]
        lines += ["", f"**{float(noise):.0%} wrong labels**", ""]
        lines += [
            "| hardest rows left out | " + " | ".join(map(str, sweep["offsets"])) + " | random rows |",
            "| --- |" + " --- |" * (len(sweep["offsets"]) + 1),
            f"| accuracy with {sweep['kept']:,} rows, % | "
            + " | ".join(f"{100 * value:.1f}" for value in [*sweep["accuracy"], sweep["random"]])
            + " |",
            "",
            "| EL2N of the group | " + " | ".join(f"{value:.2f}" for value in turn["el2n"]) + " |",
            "| --- |" + " --- |" * len(turn["el2n"]),
        ]
        for epoch, values in turn["velocity"].items():
            lines.append(f"| velocity from epoch {epoch} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
        lines += ["", "| spawned after epoch | " + " | ".join(map(str, line["spawned"])) + " |"]
        lines += ["| --- |" + " --- |" * len(line["spawned"])]
        for name in ("lowest", "highest", "random"):
            lines.append(f"| barrier, {name} EL2N | " + " | ".join(f"{value:.3f}" for value in line[name]) + " |")
    return lines


def draw(report: dict[str, Any], out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((12, 3.6 * len(report["noise"])), layout="constrained")
    axes = figure.subplots(len(report["noise"]), 3, squeeze=False)
    for (noise, found), (window, turn, line) in zip(report["noise"].items(), axes, strict=True):
        window.plot(found["window"]["offsets"], found["window"]["accuracy"], "o-")
        window.axhline(found["window"]["random"], linestyle="--", color="gray", label="random rows")
        window.set(xlabel="hardest rows left out", ylabel="accuracy", title=f"{float(noise):.0%} wrong labels")
        for epoch, values in found["velocity"]["velocity"].items():
            turn.plot(found["velocity"]["el2n"], values, "o-", label=f"from epoch {epoch}")
        turn.set(xlabel="EL2N", ylabel="NTK velocity")
        for name in ("lowest", "highest", "random"):
            line.plot(found["barrier"]["spawned"], found["barrier"][name], "o-", label=name)
        line.set(xlabel="spawned after epoch", ylabel="error barrier")
        for axis in (window, turn, line):
            axis.legend()
    figure.savefig(out, dpi=120)


def main() -> None:
    parser = make_parser(__doc__, table)
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10; --smoke does without")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3, help="models whose EL2N is averaged")
    parser.add_argument("--noise", type=float, nargs="+", default=NOISE, help="shares of wrong labels")
    options = parser.parse_args()
    options.batch, options.groups, options.offsets = 128, 8, (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6)
    if options.smoke:
        options.rows, options.width, options.epochs, options.runs, options.noise = 96, 4, 2, 2, (0.1,)
        options.batch, options.groups, options.offsets = 32, 2, (0.0, 0.5)
    torch.manual_seed(0)
    if options.smoke:
        pixels, labels = torch.randint(256, (options.rows, 3, 32, 32)).byte(), torch.randint(10, (options.rows,))
        images = test = Images.of(pixels, labels)
    else:
        if options.data is None:
            parser.error("--data is needed: the folder of CIFAR-10")
        images, test = load_cifar10(options.data, rows=options.rows)
    options.network = lambda sample: small(sample, options.width)
    options.recipe = Recipe(options.network, options.batch, precision=fast_precision("cpu"))
    options.steps = options.epochs * (len(images) // options.batch)
    options.score_epoch = max(1, options.epochs // 4)
    options.velocity_epochs = sorted({1, options.epochs // 4, options.epochs // 2} - {0})
    options.spawned = sorted({0, options.epochs // 16, options.epochs // 8, options.epochs // 4, options.epochs // 2})
    began = time.perf_counter()
    report: dict[str, Any] = {name: getattr(options, name) for name in ("rows", "width", "epochs", "runs")}
    report |= {"circumstances": circumstances(), "score_epoch": options.score_epoch, "noise": {}}
    for noise in options.noise:
        noisy = with_wrong_labels(images, noise)
        models = [
            trained(new_model(options.network, seed, noisy), noisy, options, seed, 0, options.score_epoch)
            for seed in range(10, 10 + options.runs)
        ]
        scores = el2n(models, noisy)
        report["noise"][noise] = {
            "window": window_sweep(noisy, test, scores, options),
            "velocity": velocities(noisy, scores, options),
            "barrier": barriers(noisy, scores, options),
        }
        report["seconds"] = time.perf_counter() - began
        save_report(report, options.out, table(report))
    print("\n".join(table(report)))
    if options.out is not None:
        draw(report, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
