"""What each arm of ``cifar10.py`` costs until it reaches what full data reaches.

    cd benchmarks/results
    python ../cifar10_targets.py cifar10-small/arms --out equal-accuracy.json
    python ../cifar10_targets.py --table equal-accuracy.json

A target is the mean accuracy of full data trained for some length, the full run's first. An arm's cost is the least at
which the mean of its seeds is no lower than the target: of the lengths that were run, so nothing is interpolated, and
a shorter run that was not tried could do as well. Costs are counted in steps, scoring included, the full run being 1.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from cifar10_report import NAMES, Results, collected, cost


def runs(results: Results) -> dict[str, list[dict[str, Any]]]:
    """What was run of each arm, the cheapest first: cost, accuracy (mean over seeds, its standard error), seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for (name, _, _, length), of in results.items():
        accuracy = [each["accuracy"] for each in of]
        found.setdefault(name, []).append(
            {
                "length": length,
                "cost": round(statistics.mean(map(cost, of)), 4),
                "accuracy": statistics.mean(accuracy),
                "error": statistics.stdev(accuracy) / math.sqrt(len(of)) if len(of) > 1 else None,
                "seeds": len(of),
            }
        )
    return {name: sorted(found[name], key=lambda run: run["cost"]) for name in NAMES if name in found}


def equal_accuracy(results: Results) -> dict[str, Any]:
    """By target, and then by arm: whether it is reached, by which run, or else which comes closest.

    >>> def arm(name, length, accuracy, cost):
    ...     return {(name, 0.5, "epochs", length): [{"accuracy": accuracy, "cost": {"training": cost}}]}
    >>> results = arm("full", 1.0, 0.9, 1.0) | arm("full", 0.5, 0.8, 0.5) | arm("random", 1.0, 0.85, 0.5)
    >>> full, half = equal_accuracy(results)["targets"]
    >>> half["accuracy"], half["arms"]["random"]["reached"], half["arms"]["random"]["of_full_data"]
    (0.8, True, 1.0)
    >>> full["arms"]["random"]["reached"], round(full["arms"]["random"]["short_of_it"], 3)
    (False, 0.05)
    """
    arms = runs(results)
    others = {name: of for name, of in arms.items() if name != "full"}
    targets = [
        {**full, "arms": {name: _closest(of, full) for name, of in others.items()}}
        for full in reversed(arms["full"])
        if full["length"] <= 1
    ]
    return {"targets": targets, "runs": arms}


def _closest(of: list[dict[str, Any]], full: dict[str, Any]) -> dict[str, Any]:
    enough = [run for run in of if run["accuracy"] >= full["accuracy"]]
    run = enough[0] if enough else max(of, key=lambda run: run["accuracy"])
    errors = [each["error"] for each in (run, full)]
    return {
        "reached": bool(enough),
        **run,
        "of_full_data": round(run["cost"] / full["cost"], 4),
        "short_of_it": full["accuracy"] - run["accuracy"],
        "short_of_it_error": None if None in errors else math.hypot(*errors),
    }


def table(report: dict[str, Any]) -> list[str]:
    targets = report["targets"]
    heads = [f"as full data{_times(each['length'])}, {100 * each['accuracy']:.2f} %" for each in targets]
    lines = [
        "| arm | " + " | ".join(heads) + " |",
        "| --- |" + " --- |" * len(targets),
        f"| {NAMES['full']} | " + " | ".join(f"**{each['cost']:.2f}**" for each in targets) + " |",
    ]
    for name in targets[0]["arms"]:
        cells = [_cell(each["arms"][name]) for each in targets]
        lines.append(f"| {NAMES[name]} | " + " | ".join(cells) + " |")
    return lines


def _times(length: float) -> str:
    return "" if length == 1 else f" × {length:g}"


def _cell(found: dict[str, Any]) -> str:
    error = found["short_of_it_error"]
    difference = f"{-100 * found['short_of_it']:+.2f}" + (f" ± {100 * error:.2f}" if error is not None else "")
    one = ", one seed" if found["seeds"] == 1 else ""
    if found["reached"]:
        return f"**{found['cost']:.2f}** ({difference}{one})"
    return f"not reached at {found['cost']:.2f}: best {100 * found['accuracy']:.2f} % ({difference}{one})"


def _told(run: dict[str, Any]) -> str:
    return f"{run['cost']:.2f} ({100 * run['accuracy']:.2f} %)"


def page(report: dict[str, Any]) -> list[str]:
    return [
        "# The cost of equal accuracy",
        "",
        "CIFAR-10, recipe small: what each arm costs until the mean of its seeds is no lower than what full data "
        "reaches, with its schedule at full length and shortened. The full run is 1, and scoring is included. In "
        "brackets the difference in accuracy to the target, in points, ± the standard error of that difference.",
        "",
        *table(report),
        "",
        "Costs are counted in steps: the two cores were shared between arms and with other work, so that the seconds "
        "in the raw files compare nothing. Nothing is interpolated: each cost is that of a run, and a shorter one that "
        "was not tried could reach the target too. What was tried of each arm:",
        "",
        "| arm | costs |",
        "| --- | --- |",
        *(f"| {NAMES[name]} | {', '.join(map(_told, tried))} |" for name, tried in report["runs"].items()),
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="the arms' JSON files")
    parser.add_argument("--out", type=Path, help="a file of JSON; a page of Markdown is written beside it")
    parser.add_argument("--table", type=Path, help="print the page of a file of JSON")
    given = parser.parse_args()
    if given.table:
        print("\n".join(page(json.loads(given.table.read_text()))))
        return
    if given.folder is None:
        parser.error("a folder or --table")
    results = collected(given.folder)
    if ("full", 1.0, "epochs", 1.0) not in results:
        parser.error(f"{given.folder} holds no full run")
    report = equal_accuracy(results)
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n")
        given.out.with_suffix(".md").write_text("\n".join(page(report)))
    print("\n".join(page(report)))


if __name__ == "__main__":
    main()
