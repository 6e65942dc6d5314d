"""Tables and plots from what ``cifar10.py`` left in a folder.

    python benchmarks/cifar10_report.py runs/cifar10 --out benchmarks/results/cifar10-small

Writes README.md, accuracy.png and accuracy.svg into ``--out``, the arms' JSON files into ``--out``/arms, and the scores
of the first seed beside them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cifar10_recipes import SETTINGS

from prunesampler.analysis.advice import judge
from prunesampler.tables.agreement import overlap, spearman
from prunesampler.tables.score_table import ScoreTable

NAMES = {
    "full": "full data",
    "random": "random, one subset",
    "fresh": "random, fresh each epoch",
    "el2n-top": "EL2N, hardest",
    "el2n-stratified": "EL2N, stratified",
    "el2n-window": "EL2N, window",
    "forgetting": "forgetting, most forgotten",
    "attach": "attach (stratified)",
    "auto": 'keep="auto"',
    "attach-auto": 'attach, keep="auto"',
}
# Paul et al. 2021 and the authors' score files: ResNet-18, epoch 20 of 200, mean of ten runs.
PUBLISHED = {
    "EL2N median": 0.161,
    "EL2N mean": 0.264,
    "EL2N 90th percentile": 0.70,
    "EL2N 99th percentile": 1.10,
    "never forgotten, %": 6.6,
    "Spearman, EL2N and forgetting": 0.894,
    "overlap of the hardest halves, EL2N and forgetting, %": 87.6,
}

_SAME = 0.01  # costs that differ by rounding to whole batches

Results = dict[tuple[str, float, str, float], list[dict[str, Any]]]


def collected(folder: Path) -> Results:
    """Results by (name, keep, budget, length), one a seed."""
    found: Results = defaultdict(list)
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text())
        arm = result["arm"]
        if arm["name"] not in ("tune", "score"):
            found[arm["name"], arm["keep"], arm["budget"], arm["length"]].append(result)
    return found


def spread(shares: Iterable[float]) -> str:
    percents = [100 * share for share in shares]
    mean = f"{statistics.mean(percents):.2f}"
    return mean if len(percents) == 1 else f"{mean} ± {statistics.stdev(percents):.2f}"


def cost(result: dict[str, Any]) -> float:
    return sum(result["cost"].values())


def full_curve(results: Results) -> list[tuple[float, float]]:
    """(cost, mean accuracy) of full data, schedules of several lengths, ascending."""
    arms = (of for (name, *_), of in results.items() if name == "full")
    return sorted((cost(of[0]), statistics.mean(each["accuracy"] for each in of)) for of in arms)


def table(results: Results) -> list[str]:
    curve = full_curve(results)
    lines = [
        "| arm | keep | budget | rows | steps | cost | of it scoring | test accuracy, % | worst class, % "
        "| against full data at this cost | seeds |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]

    def rank(key: tuple[str, float, str, float]) -> tuple[Any, ...]:
        name, keep, budget, length = key
        return (name != "full" or length != 1, budget if name != "full" else "", -keep, list(NAMES).index(name), length)

    for key in sorted(results, key=rank):
        name, keep, budget, length = key
        of = results[key]
        accuracy = [each["accuracy"] for each in of]
        shown = NAMES[name] if length == 1 else f"{NAMES[name]}, schedule × {length:g}"
        beside = ""
        if name != "full" and curve and curve[0][0] - _SAME <= cost(of[0]) <= curve[-1][0] + _SAME:
            at_cost = float(np.interp(cost(of[0]), *zip(*curve, strict=True)))
            beside = f"{100 * (statistics.mean(accuracy) - at_cost):+.2f}"
        rows = [each["rows"] for each in of]
        told = f"{rows[0]:,}" if len(set(rows)) == 1 else f"{min(rows):,} … {max(rows):,}"
        lines.append(
            f"| {shown} | {keep if 'auto' not in name else 'auto'} "
            f"| {'equal ' + budget if name != 'full' else ''} | {told} | {round(np.mean([e['steps'] for e in of])):,} "
            f"| {statistics.mean(map(cost, of)):.2f} | {of[0]['cost']['scoring']:.2f} | {spread(accuracy)} "
            f"| {spread(each['worst_class'] for each in of)} | {beside} | {len(of)} |"
        )
    return lines


def commands(folder: Path) -> list[str]:
    done = [
        json.loads(file.read_text()) for file in sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime)
    ]
    hours = sum(each["seconds"] for each in done) / 3600
    lines = [f"- `{command}`" for command in dict.fromkeys(each["command"] for each in done)]
    return [f"{len(done)} runs, {hours:.1f} hours of training in all, by:", "", *lines]


def chosen_offsets(folder: Path) -> list[str]:
    tried = defaultdict(list)
    for file in sorted(folder.glob("tune_*.json")):
        result = json.loads(file.read_text())
        arm = result["arm"]
        tried[arm["method"], arm["keep"]].append((arm["offset"], result["accuracy"]))
    lines = [
        f"| {method} | {keep:g} | "
        + ", ".join(f"{offset:g}: {100 * share:.2f}" for offset, share in sorted(found))
        + f" | {max(sorted(found), key=lambda each: each[1])[0]:g} |"
        for (method, keep), found in sorted(tried.items())
    ]
    if not lines:
        return []
    return ["| method | keep | validation accuracy by offset, % | chosen |", "| --- | ---: | --- | ---: |", *lines]


def scores_table(folder: Path) -> list[str]:
    """What the scores look like beside the published ones, and how well they agree."""
    tables = {
        file.parent.name: (ScoreTable.load(file), ScoreTable.load(file.with_name("rescored.parquet")))
        for file in sorted(folder.glob("score_*/scores.parquet"))
    }
    same = {name: pair for name, pair in tables.items() if name.startswith("score_seed")}
    if not same:
        return []
    figures: dict[str, list[float]] = defaultdict(list)
    for online, rescored in same.values():
        el2n, events = rescored.scores["el2n"], online.column("forgetting")
        figures["EL2N median"].append(float(np.median(el2n)))
        figures["EL2N mean"].append(float(np.mean(el2n)))
        for q in (90, 99):
            figures[f"EL2N {q}th percentile"].append(float(np.percentile(el2n, q)))
        figures["never forgotten, %"].append(100 * float(np.mean(events == 0)))
        figures["Spearman, EL2N and forgetting"].append(spearman(el2n, events))
        figures["overlap of the hardest halves, EL2N and forgetting, %"].append(100 * overlap(el2n, events))
        figures["Spearman, EL2N online and rescored"].append(spearman(online.scores["el2n"], el2n))
        figures["Spearman, odd and even scoring epochs (online)"].append(online.protocols["el2n"]["split_half"])
    runs = [rescored.scores["el2n"] for _, rescored in same.values()]
    pairs = [(a, b) for i, a in enumerate(runs) for b in runs[i + 1 :]]
    figures["Spearman, EL2N of two runs"] = [spearman(a, b) for a, b in pairs]
    others = [rescored.scores["el2n"] for name, (_, rescored) in tables.items() if name not in same]
    figures["Spearman, EL2N of two architectures"] = [spearman(a, b) for a in runs for b in others]
    lines = ["| figure | here, mean (lowest … highest) | published |", "| --- | ---: | ---: |"]
    for name, values in figures.items():
        if values:
            low, high = min(values), max(values)
            lines.append(
                f"| {name} | {statistics.mean(values):.3f} ({low:.3f} … {high:.3f}) | {PUBLISHED.get(name, '')} |"
            )
    return lines


def advice(folder: Path, epochs: int) -> list[str]:
    """What ``prunesampler inspect`` says of the first run's scores."""
    file = folder / "score_seed0" / "scores.parquet"
    if not file.exists():
        return []
    keeps: list[float | str] = [0.7, 0.5, 0.3, "auto"]
    return [f"- keep {case.keep}: {case.advice}" for case in judge(ScoreTable.load(file), keeps, epochs=epochs).cases]


def plot(results: Results, out: Path) -> None:
    matplotlib.use("svg")
    from matplotlib import pyplot

    budgets = [budget for budget in ("epochs", "steps") if any(key[2] == budget and key[1] < 1 for key in results)]
    figure, panels = pyplot.subplots(
        1, len(budgets), figsize=(5.2 * len(budgets) + 2.4, 4.8), sharey=True, squeeze=False
    )
    colours = {name: "black" if name == "full" else f"C{place}" for place, name in enumerate(NAMES)}
    shown = {}
    for panel, budget in zip(panels[0], budgets, strict=True):
        lines: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
        for (name, *_), of in results.items():
            if name == "full" or of[0]["arm"]["budget"] == budget:
                shares = [100 * each["accuracy"] for each in of]
                deviation = statistics.stdev(shares) if len(shares) > 1 else 0.0
                lines[name].append((statistics.mean(map(cost, of)), statistics.mean(shares), deviation))
        for name in (name for name in NAMES if name in lines):
            costs, means, deviations = zip(*sorted(lines[name]), strict=True)
            style = {"color": colours[name], "linewidth": 2 if name == "full" else 1}
            shown[name] = panel.errorbar(costs, means, deviations, marker="o", markersize=4, capsize=2, **style)
        panel.set(xlabel="total cost, full run = 1 (scoring included)", title=f"equal {budget}")
        panel.grid(alpha=0.3)
    panels[0][0].set(ylabel="test accuracy, %")
    arms = [name for name in NAMES if name in shown]
    handles, labels = [shown[name] for name in arms], [NAMES[name] for name in arms]
    panels[0][-1].legend(handles, labels, fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    for suffix in ("png", "svg"):
        figure.savefig(out / f"accuracy.{suffix}", dpi=120, metadata={"Date": None} if suffix == "svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    results = collected(given.folder)
    if not results:
        parser.error(f"{given.folder} holds no finished arm")
    one = next(iter(results.values()))[0]
    setting = SETTINGS[one["recipe"]]
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "arms").mkdir(exist_ok=True)
    for file in given.folder.glob("*.json"):
        shutil.copy(file, given.out / "arms")
    for file in given.folder.glob("score_seed0/*scor*.parquet"):
        shutil.copy(file, given.out)
    machine, versions = one["machine"], one["versions"]
    full = results.get(("full", 1.0, "epochs", 1.0), [])
    reached = statistics.mean(each["accuracy"] for each in full) if full else 0.0
    verdict = "" if reached >= setting.floor else f" **Below the floor of {100 * setting.floor:g} %: no arm counts.**"
    text = [
        f"# CIFAR-10, recipe {one['recipe']}",
        "",
        f"{one['epochs']} epochs of batches of {setting.recipe.batch_size}, the first "
        f"{setting.score_epochs(one['epochs'])} of them scored. {machine['device']} ({machine['capability']}, "
        f"{machine['threads']} threads an arm), {machine.get('precision', 'bfloat16')}, "
        f"torch {versions['torch']}, Python {versions['python']}. Cost is in full runs; ± is the standard deviation "
        f"over seeds. Equal epochs: as many passes over the kept rows, so fewer steps. Equal steps: as many steps, "
        "so more passes." + verdict,
        "",
        *commands(given.folder),
        "",
        *table(results),
        "",
        "The column before the last is the difference to full data whose schedule was shortened, or lengthened, to the "
        "same total cost, interpolated between its runs.",
        "",
        "![accuracy against cost](accuracy.svg)",
        "",
        "## The offset, chosen on a tenth of the training images, set aside",
        "",
        *chosen_offsets(given.folder),
        "",
        "## The scores",
        "",
        f"EL2N after {setting.score_epochs(one['epochs'])} of {one['epochs']} epochs, in eval mode, not augmented; "
        "forgetting over these epochs alone. Published: ResNet-18 after 20 of 200 epochs, the mean of ten runs, and "
        "forgetting over whole runs.",
        "",
        *scores_table(given.folder),
        "",
        "## What `prunesampler inspect scores.parquet` says of them",
        "",
        *advice(given.folder, one["epochs"]),
        "",
    ]
    (given.out / "README.md").write_text("\n".join(text))
    plot(results, given.out)


if __name__ == "__main__":
    main()
