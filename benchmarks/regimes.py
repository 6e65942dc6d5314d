"""Where pruning pays: ours beside arms of the same cost in the regimes that people are in; CIFAR-10 at 16 × 16 pixels.

    python benchmarks/regimes.py --data DIR --out runs/regimes --regimes "frozen features" imbalance
    python benchmarks/regimes.py --table benchmarks/results/regimes

A row of a training step costs 1, a forward alone a third; scoring, and nets that are trained for features alone, count.
Each arm leaves a JSON file when it is finished; the same command again runs those that are missing, the cheapest
regimes first. ``--table`` writes the tables and the plot beside the folder of results. Options are those named here and
in ``regimes_arms.py``: none was chosen by its result, and each arm reads the test set once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from common import add_data, circumstances, skip_without_data
from regimes_arms import REGIMES, SMOKE, Data, Regime, Result, Size, judged

from prunesampler.analysis.compare import Gain
from prunesampler.errors import ArgumentError
from prunesampler.selection.select import Selection

Found = dict[str, list[Result]]  # arm → results, one a seed, ascending
UNITS = {"accuracy": "accuracy, %", "balanced": "balanced accuracy, %"}
EXTRAS = {
    "rows": ("rows", "{:,.0f}", 1),
    "wrong_labels_left": ("wrong labels left, %", "{:.1f}", 100),
    "copies_left": ("copies left, %", "{:.1f}", 100),
    "images_lost": ("images lost, %", "{:.1f}", 100),
    "rank_correlation": ("rank correlation", "{:.2f}", 1),
    "regret": ("regret, points", "{:.2f}", 100),
    "worst_class": ("worst class, %", "{:.1f}", 100),
}


def file_of(regime: str, arm: str, seed: int) -> str:
    words = " ".join([regime, arm, str(seed)]).replace(",", "").replace("%", "").split()
    return f"{'-'.join(words)}.json"


def collected(folder: Path) -> dict[str, Found]:
    """All results; those of one regime are all of the same size."""
    found: dict[str, Found] = defaultdict(lambda: defaultdict(list))
    for regime, each in REGIMES.items():
        for arm in each.arms:
            for file in sorted(folder.glob(file_of(regime, arm, 0).replace("-0.json", "-[0-9]*.json"))):
                result = json.loads(file.read_text())
                if (result["regime"], result["arm"]) == (regime, arm):
                    found[regime][arm].append(result)
    if "many runs" in found:
        whole = {each["seed"]: each for each in found["many runs"].get("full", [])}
        for arm, runs in found["many runs"].items():
            found["many runs"][arm] = [judged(run, whole[run["seed"]]) for run in runs if run["seed"] in whole]
    return found


def control_of(arm: str, control: str) -> str:
    """Its name, for an arm whose name ends in its cost."""
    return f"{control}, {arm.rsplit(', ', 1)[1]}" if ", cost " in arm else control


def gain(found: Found, arm: str, control: str, metric: str, key: str | None = None) -> Gain | None:
    """Of an arm over a control, over the seeds that both have; None where there is none."""
    runs = [{run["seed"]: _value(run, metric, key) for run in found.get(name, [])} for name in (arm, control)]
    seeds = sorted(set(runs[0]) & set(runs[1]))
    return Gain.of([runs[0][seed] - runs[1][seed] for seed in seeds], 0.95) if seeds else None


def _value(run: Result, metric: str, key: str | None) -> float:
    return run[metric] if key is None else run[metric][key]  # type: ignore[no-any-return]


def spread(values: list[float], unit: float = 100, form: str = "{:.2f}") -> str:
    both = [unit * statistics.mean(values), *([unit * statistics.stdev(values)] if len(values) > 1 else [])]
    return " ± ".join(form.format(each) for each in both)


def shown(found: Gain | None) -> str:
    """In points; bold where it beats the control."""
    if found is None:
        return "–"
    half = f" ± {100 * found.half_width:.1f}" if len(found.differences) > 1 else ""
    text = f"{100 * found.mean:+.1f}{half}"
    return f"**{text}**" if found.verdict == "beats" else text


def tables(folder: Path) -> list[str]:
    """A table a regime."""
    lines: list[str] = []
    for name, found in collected(folder).items():
        regime, first = REGIMES[name], next(iter(found.values()))[0]
        size = first["size"]
        lines += [f"**{name}**: {regime.question}. {size['rows']:,} rows before that, {size['epochs']} epochs.", ""]
        lines += _of_shares(found, regime) if regime.metric == "accuracies" else _of_one(found, regime)
        lines.append("")
    return lines[:-1]


def _of_one(found: Found, regime: Regime) -> list[str]:
    extras = [key for key in EXTRAS if any(key in run for runs in found.values() for run in runs)]
    heads = ["arm", "seeds", "cost", UNITS[regime.metric], *(EXTRAS[key][0] for key in extras)]
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for arm in (arm for arm in regime.arms if arm in found):
        runs = found[arm]
        cells = [f"**{arm}**" if arm in regime.ours else arm, str(len(runs))]
        cells += [f"{statistics.mean(run['cost'] for run in runs):.2f}", spread([run[regime.metric] for run in runs])]
        for key in extras:
            _, form, unit = EXTRAS[key]
            values = [run[key] for run in runs if key in run]
            cells.append(form.format(unit * statistics.mean(values)) if values else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _of_shares(found: Found, regime: Regime) -> list[str]:
    keys = list(next(iter(found.values()))[0]["accuracies"])
    lines = [f"| arm | seeds | {' | '.join(keys)} |", "| --- |" + " ---: |" * (len(keys) + 1)]
    for arm in (arm for arm in regime.arms if arm in found):
        runs = found[arm]
        cells = [spread([run["accuracies"][key] for run in runs]) for key in keys]
        lines.append(f"| {f'**{arm}**' if arm in regime.ours else arm} | {len(runs)} | {' | '.join(cells)} |")
    return lines


def summary(folder: Path) -> list[str]:
    """One table: what each of our arms gains over each kind of control of the same cost."""
    heads = ("regime", "ours", "over random rows", "over all rows, at equal cost", "of what the oracle gains", "seeds")
    lines = [f"| {' | '.join(heads)} |", "| --- | --- |" + " ---: |" * 4]
    for name, found in collected(folder).items():
        regime = REGIMES[name]
        for arm in (arm for arm in regime.ours if arm in found):
            if regime.metric == "accuracies":
                for key in (key for key in found[arm][0]["accuracies"] if key == "linear, 5%"):
                    over = shown(gain(found, arm, "random", "accuracies", key))
                    lines.append(f"| {name}, {key} | {arm} | {over} | – | – | {len(found[arm])} |")
                continue
            longer = regime.dearer.get(arm, control_of(arm, regime.longer))
            over = [shown(gain(found, arm, regime.random.get(arm, control_of(arm, "random")), regime.metric))]
            over.append(shown(gain(found, arm, longer, regime.metric)))
            part = "–"
            if regime.oracle is not None:
                most = gain(found, control_of(arm, regime.oracle), longer, regime.metric)
                ours = gain(found, arm, longer, regime.metric)
                if most is not None and ours is not None and most.verdict == "beats":
                    part = f"{ours.mean / most.mean:.0%}"
            lines.append(f"| {name} | {arm} | {' | '.join(over)} | {part} | {len(found[arm])} |")
    return lines


def plot(folder: Path, out: Path) -> None:
    """What each arm reaches, a panel a regime."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    found = {name: arms for name, arms in collected(folder).items() if REGIMES[name].metric != "accuracies"}
    if not found:
        return
    figure, panels = pyplot.subplots(len(found), 1, figsize=(8, 2.6 * len(found)), squeeze=False)
    for panel, (name, arms) in zip(panels[:, 0], found.items(), strict=True):
        regime = REGIMES[name]
        names = [arm for arm in reversed(regime.arms) if arm in arms]
        for place, arm in enumerate(names):
            values = [100 * run[regime.metric] for run in arms[arm]]
            color = "tab:orange" if arm in regime.ours else "tab:gray"
            panel.plot(values, [place] * len(values), ".", color=color, alpha=0.5)
            panel.plot(statistics.mean(values), place, "|", color=color, markersize=14, markeredgewidth=2)
        panel.set_yticks(range(len(names)), names, fontsize=7)
        panel.set_title(name, fontsize=9, loc="left")
        panel.set_xlabel(UNITS[regime.metric], fontsize=8)
        panel.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def supported(arm: str) -> bool:
    """Whether this version has what an arm takes."""
    if not arm.startswith("keep clean"):
        return True
    try:
        Selection("clean")  # type: ignore[arg-type]
    except ArgumentError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/regimes"))
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES))
    parser.add_argument("--arms", nargs="+", help="only these")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=Size.rows, help="to train on; one number for all arms of a regime")
    parser.add_argument("--hours", type=float, default=10.0, help="no arm begins after them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="tiny")
    parser.add_argument("--table", type=Path, help="only write the tables and the plot of a folder of results")
    given = parser.parse_args()
    if given.table is not None:
        beside = given.table.with_suffix("")
        beside.with_name(f"{beside.name}.md").write_text("\n".join(tables(given.table)) + "\n")
        beside.with_name(f"{beside.name}-summary.md").write_text("\n".join(summary(given.table)) + "\n")
        plot(given.table, beside.with_name(f"{beside.name}.png"))
        return
    skip_without_data(parser, given)
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    size, began = SMOKE if given.smoke else Size(given.rows), time.monotonic()
    todo = [
        (regime, seed, arm)
        for regime, seed in itertools.product(given.regimes, given.seeds)
        for arm in REGIMES[regime].arms
        if (given.arms is None or arm in given.arms) and not (given.out / file_of(regime, arm, seed)).exists()
    ]
    data = Data.load(Path(given.data), size, given.out) if todo else None
    for regime, seed, arm in todo:
        name = file_of(regime, arm, seed)
        if not supported(arm) or time.monotonic() - began > 3600 * given.hours:
            print(f"left out, {'no time' if supported(arm) else 'not in this version'}: {name}")
            continue
        start = time.perf_counter()
        done: dict[str, Any] = {"regime": regime, "arm": arm, "seed": seed, "size": vars(size)}
        done |= REGIMES[regime].perform(data, arm, seed)  # type: ignore[arg-type]
        done |= {"seconds": time.perf_counter() - start, **circumstances("numpy")}
        done["command"] = done["command"].replace(str(given.data), "DIR").replace(str(Path(__file__).parent) + "/", "")
        scratch = given.out / f"{name}.tmp"
        scratch.write_text(json.dumps(done, indent=1) + "\n")
        os.replace(scratch, given.out / name)
        told = done.get(REGIMES[regime].metric) or done.get("test")
        print(f"{name}: {told}, {done['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
