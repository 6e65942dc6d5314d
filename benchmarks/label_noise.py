"""How well wrong labels are found, by number of scoring epochs, in CIFAR-10 with known wrong ones.

    python benchmarks/label_noise_runs.py --data DIR --out runs/noise          # and again with --folds
    python benchmarks/label_noise.py --runs runs/noise --out benchmarks/results/label-noise.json

Each run's recorded logits pass through a ScoreTracker epoch by epoch, so scores, answers and audits are those of that
ordinary run. Beside it stands cleanlab on out-of-sample probabilities from five-fold cross-validation of the same
network, that is, five more trainings, where the folds were run.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common import circumstances, make_parser, save_report

import prunesampler as ps

EPOCHS = (1, 2, 4, 6, 8, 12)
SCORES = ("el2n", "loss", "margin", "entropy", "forgetting")
_FILE = re.compile(r"logits-(symmetric|pairs)-([\d.]+)-(\d+)\.npz")
_Array = npt.NDArray[Any]


def auroc(score: _Array, wrong: _Array) -> float | None:
    """The chance that a wrong label has a higher score than a right one, ties halved."""
    if not wrong.any() or wrong.all():
        return None
    higher, lower = score[wrong], np.sort(score[~wrong])
    below, upto = np.searchsorted(lower, higher, "left"), np.searchsorted(lower, higher, "right")
    return float((below + upto).mean() / 2 / len(lower))


def average_precision(score: _Array, wrong: _Array) -> float | None:
    """The mean over wrong labels of the precision among the rows ranked no lower; equal scores in the order of rows."""
    if not wrong.any():
        return None
    found = wrong[np.argsort(-score, kind="stable")]
    return float((np.cumsum(found) / np.arange(1, len(found) + 1))[found].mean())


def judged(score: _Array, flagged: _Array, rate: float, wrong: _Array) -> dict[str, Any]:
    """Ranking, flags and rate of one audit against the truth; None where there is nothing to measure it on."""
    hits = int((flagged & wrong).sum())
    return {
        "auroc": auroc(score, wrong),
        "average_precision": average_precision(score, wrong),
        "flagged": int(flagged.sum()),
        "precision": hits / int(flagged.sum()) if flagged.any() else None,
        "recall": hits / int(wrong.sum()) if wrong.any() else None,
        "rate": rate,
        "rate_error": rate - float(wrong.mean()),
    }


def audits(table: ps.ScoreTable, wrong: _Array, true: _Array) -> Iterator[dict[str, Any]]:
    for score in SCORES:
        hardness = -table.column(score) if table.directions[score] == "lower" else table.column(score)
        hardness = np.where(np.isinf(hardness), np.finfo(np.float32).max, hardness)
        ranking = {"auroc": auroc(hardness, wrong), "average_precision": average_precision(hardness, wrong)}
        yield {"method": "score", "by": score, **ranking}
    for method, by in (
        ("disagreement", "el2n"),
        ("disagreement", "margin"),
        ("disagreement", "loss"),
        ("mixture", "el2n"),
        ("mixture", "margin"),
        ("mixture", "loss"),
    ):
        issues = ps.audit(table, method=method, by=by)
        everything, flagged = issues.all(), np.zeros(len(table), np.bool_)
        flagged[issues.rows] = True
        score = np.empty(len(table))
        score[everything.rows] = everything.scores
        found = judged(score, flagged, issues.noise_rate.rate, wrong)
        low, high = issues.noise_rate.low, issues.noise_rate.high
        if low == low:
            found |= {"low": low, "high": high, "inside": low <= float(wrong.mean()) <= high}
        hits = issues.rows[wrong[issues.rows]]
        right = table.suggested_label[hits] == true[hits] if table.suggested_label is not None else np.empty(0)
        found["suggestion_right"] = float(right.mean()) if len(hits) else None
        yield {"method": method, "by": by, **found}


def cleanlab(file: Path) -> Iterator[dict[str, Any]]:
    """On out-of-sample probabilities; one line for each of its label quality scores."""
    from cleanlab.rank import get_label_quality_scores

    held = np.load(file)
    given, probabilities = held["given"].astype(np.int64), held["probabilities"].astype(np.float64)
    wrong = given != held["true"]
    table = ps.ScoreTable({"el2n": np.zeros(len(given))}, labels=given)
    issues = ps.audit(table, method="confident_learning", probabilities=probabilities)
    flagged = np.zeros(len(given), np.bool_)
    flagged[issues.rows] = True
    for quality in ("self_confidence", "normalized_margin"):
        score = -get_label_quality_scores(given, probabilities, method=quality)
        yield {"method": "cleanlab", "by": quality, **judged(score, flagged, issues.noise_rate.rate, wrong)}


def replay(file: Path) -> dict[str, Any]:
    """All audits of one run, after each number of scoring epochs."""
    found = _FILE.fullmatch(file.name)
    assert found is not None
    held = np.load(file)
    logits, given, true = held["logits"], held["given"].astype(np.int64), held["true"].astype(np.int64)
    tracker = ps.ScoreTracker(len(given), scores=SCORES)
    lines = []
    for epoch, of_epoch in enumerate(logits, 1):
        for rows in torch.arange(len(given)).split(4096):
            part = rows.numpy()
            tracker.update(rows, torch.from_numpy(of_epoch[part].astype(np.float32)), torch.from_numpy(given[part]))
        tracker.end_epoch()
        if epoch in EPOCHS:
            lines += [{"epochs": epoch, **line} for line in audits(tracker.table(), given != true, true)]
    folds = file.with_name(file.name.replace("logits", "folds"))
    if folds.exists():
        lines += [{"epochs": None, **line} for line in cleanlab(folds)]
    return {
        "kind": found[1],
        "noise": float((given != true).mean()),
        "seed": int(found[3]),
        "rows": len(given),
        "right_at_the_end": float((logits[-1].argmax(1) == true).mean()),
        "audits": lines,
    }


# -- tables ----------------------------------------------------------------------------------------------------------


def table(report: dict[str, Any]) -> list[str]:
    runs = report["runs"]
    settings = sorted({(run["noise"], run["kind"]) for run in runs})
    seeds = {setting: sum((run["noise"], run["kind"]) == setting for run in runs) for setting in settings}

    def values(setting: Any, epochs: int | None, method: str, by: str, name: str) -> list[float]:
        return [
            line[name]
            for run in runs
            if (run["noise"], run["kind"]) == setting
            for line in run["audits"]
            if (line["epochs"], line["method"], line["by"]) == (epochs, method, by) and line.get(name) is not None
        ]

    def cell(found: list[float], text: str = "{:.3f}") -> str:
        return text.format(statistics.mean(found)) if found else "–"

    heads = [f"{kind}, {noise:.0%}" for noise, kind in settings]
    ranked = [(method, by) for method, by in _arms(runs) if method != "cleanlab"]
    clean = [(method, by) for method, by in _arms(runs) if method == "cleanlab"]
    last = max(EPOCHS)
    lines = ["# Wrong labels", ""]
    several = ", ".join(f"{head}: {seeds[setting]}" for head, setting in zip(heads, settings, strict=True))
    runs_of = "One seed each" if max(seeds.values()) == 1 else f"Means over seeds ({several})"
    lines += [f"{runs_of}, after {last} scoring epochs unless said.", ""]
    for name, title in (("auroc", "AUROC"), ("average_precision", "average precision")):
        lines += [f"| {title} | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(heads)]
        rankings = [arm for arm in ranked if arm[0] != "mixture"]  # which ranks as its score does
        for epochs, (method, by) in [*((last, arm) for arm in rankings), *((None, arm) for arm in clean)]:
            cells = [cell(values(setting, epochs, method, by, name)) for setting in settings]
            if any(each != "–" for each in cells):
                lines.append(f"| {_named(method, by)} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["| estimated rate; flagged: precision, recall | " + " | ".join(heads) + " |"]
    lines += ["| --- |" + " --- |" * len(heads)]
    for epochs, (method, by) in [
        *((last, arm) for arm in ranked if arm[0] != "score"),
        *((None, arm) for arm in clean),
    ]:
        cells = []
        for setting in settings:
            shown = [cell(values(setting, epochs, method, by, "rate"), "{:.1%}")]
            shown += [cell(values(setting, epochs, method, by, part), "{:.2f}") for part in ("precision", "recall")]
            cells.append("–" if shown[0] == "–" else f"{shown[0]}; {shown[1]}, {shown[2]}")
        lines.append(f"| {_named(method, by)} | " + " | ".join(cells) + " |")
    lines += ["", "The default (disagreement, by EL2N), by number of scoring epochs:", ""]
    lines += ["| epochs | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(heads)]
    for epochs in EPOCHS:
        cells = []
        for setting in settings:
            low, rate, high = (
                cell(values(setting, epochs, "disagreement", "el2n", part), "{:.1%}")
                for part in ("low", "rate", "high")
            )
            found = cell(values(setting, epochs, "disagreement", "el2n", "auroc"))
            cells.append(f"{found}; {rate} ({low} to {high})")
        lines.append(f"| {epochs} | " + " | ".join(cells) + " |")
    lines += ["", "AUROC; estimated rate (its interval)."]
    return lines


def _arms(runs: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((line["method"], line["by"]) for run in runs for line in run["audits"]))


def _named(method: str, by: str) -> str:
    names = {"margin": "margin (AUM)", "el2n": "EL2N"}
    by = names.get(by, by.replace("_", " "))
    return by if method == "score" else f"cleanlab, 5 folds, {by}" if method == "cleanlab" else f"{method}, by {by}"


def main() -> None:
    parser: argparse.ArgumentParser = make_parser(__doc__, table, smoke=None)
    parser.add_argument("--runs", type=Path, required=True, help="folder that label_noise_runs.py has written")
    given = parser.parse_args()
    files = sorted(file for file in given.runs.glob("logits-*.npz") if _FILE.fullmatch(file.name))
    if not files:
        parser.error(f"{given.runs} holds no logits-*.npz")
    report: dict[str, Any] = {**circumstances("numpy"), "runs": []}
    report["command"] = report["command"].replace(str(given.runs), "runs/noise")
    for file in files:
        report["runs"].append(run := replay(file))
        print(json.dumps({name: value for name, value in run.items() if name != "audits"}), flush=True)
        save_report(report, given.out, table(report))
    print("\n".join(table(report)))


if __name__ == "__main__":
    main()
