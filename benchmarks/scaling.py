"""How time and memory grow with the number of rows.

    python benchmarks/scaling.py --out benchmarks/results/scaling.json
    python benchmarks/scaling.py --table benchmarks/results/scaling.json

Every figure comes from a process of its own, the median of three below 10⁸ rows. Memory is the peak above what was held
before: the imports and what the arm is given. The exponent is the slope of a straight line through the logarithms: 0 is
flat, 1 linear. It is taken from 10⁶ rows on, as what does not depend on the rows counts for more below, and memory of
less than a megabyte counts as one. Files are read right after they were written. ``--out`` adds to what the file holds
of other arms and sizes, and writes the tables beside it, and the plot as PNG and SVG.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import sampler_overhead
import selection
import torch
from common import circumstances, make_parser, megabytes, reset_peak, save_report
from merge import present

from prunesampler import Coreset, ScoreTable, ScoreTracker, select

SIZES = [1_000_000, 10_000_000, 100_000_000]
FROM = 1_000_000
ONCE_FROM = 100_000_000
LEAST = {"seconds": 1e-6, "megabytes": 1.0}  # below it there is but noise
BATCH, CLASSES, STEPS = 128, 10, 1600

Figures = dict[str, float]


@contextmanager
def measured(found: Figures) -> Iterator[None]:
    """The seconds that the context takes, and the megabytes by which it exceeds what was held before."""
    before, start = reset_peak(), time.perf_counter()
    yield
    found["seconds"] = time.perf_counter() - start
    found["megabytes"] = max(0.0, megabytes() - before)


def scores_of(rows: int) -> ScoreTable:
    generator = np.random.default_rng(0)
    presentations = np.full(rows, 10, np.int32)
    events = np.minimum(generator.geometric(0.4, rows) - 1, 9).astype(np.int32)
    el2n = generator.beta(0.5, 2, rows).astype(np.float32)
    return ScoreTable(
        {"el2n": el2n}, forgetting_events=events, presentations=presentations, learned=generator.random(rows) < 0.9
    )


def coreset_of(rows: int) -> Coreset:
    kept = np.flatnonzero(np.random.default_rng(0).random(rows) < 0.5)
    return Coreset(kept, num_rows=rows)


def an_epoch(arm: str, share: float = 1.0) -> Callable[[int], Figures]:
    def measure(rows: int) -> Figures:
        run = sampler_overhead.measure(arm, rows, memory=20.0)
        return {"seconds": run["ns_a_row"] * share * rows / 1e9, "megabytes": run["megabytes"]}

    return measure


def first_batch(rows: int) -> Figures:
    found: Figures = {}
    next(iter(sampler_overhead.PrunedSampler(10)))
    with measured(found):
        batches = iter(sampler_overhead.BatchSampler(sampler_overhead.PrunedSampler(rows), 256, drop_last=False))
        assert len(next(batches)) == 256
    return found


def steps(rows: int) -> Figures:
    """So many updates, spread over all rows."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(BATCH, CLASSES, generator=generator)
    where = torch.randint(0, rows, (STEPS, BATCH), generator=generator)
    tracker, found = ScoreTracker(rows), Figures()
    present(tracker, 0, 1, 0)  # so that all memory is there
    tracker.reset_epoch()
    with measured(found):
        for each in where:
            tracker.update(each, logits, each % CLASSES)
    return found


def epoch_end(rows: int) -> Figures:
    tracker, found = ScoreTracker(rows), Figures()
    present(tracker, 0, 1, 0)
    with measured(found):
        tracker.end_epoch()
    assert tracker.value("el2n").isfinite().all()
    return found


def in_memory(rows: int) -> Figures:
    table, found = scores_of(rows), Figures()
    with measured(found):
        coreset = select(table, keep=0.5)
    assert len(coreset) == rows // 2
    return found


def from_file(rows: int) -> Figures:
    found = Figures()
    with tempfile.TemporaryDirectory() as folder:
        scores, out = Path(folder, "scores.parquet"), Path(folder, "coreset.parquet")
        # By another process, so that no memory is at hand that was used to make them.
        maker = multiprocessing.get_context("spawn").Process(target=selection.write_scores, args=(scores, rows))
        maker.start()
        maker.join()
        with measured(found):
            selection.ours(scores, "stratified", out)
        selection.check("stratified", scores, out)
    return found


def written(make: Callable[[int], Any]) -> Callable[[int], Figures]:
    def measure(rows: int) -> Figures:
        what, found = make(rows), Figures()
        with tempfile.TemporaryDirectory() as folder:
            with measured(found):
                what.save(f"{folder}/file.parquet")
            assert type(what).load(f"{folder}/file.parquet") == what
        return found

    return measure


def read(make: Callable[[int], Any]) -> Callable[[int], Figures]:
    def measure(rows: int) -> Figures:
        what, found = make(rows), Figures()
        with tempfile.TemporaryDirectory() as folder:
            what.save(f"{folder}/file.parquet")
            with measured(found):
                again = type(what).load(f"{folder}/file.parquet")
            assert again == what
        return found

    return measure


ARMS: dict[str, Callable[[int], Figures]] = {
    "sampler, an epoch": an_epoch("PrunedSampler"),
    "sampler, an epoch at keep 0.5": an_epoch("PrunedSampler, keep 0.5", 0.5),
    "sampler, the first batch": first_batch,
    f"tracker, {STEPS:,} steps of {BATCH}": steps,
    "tracker, the end of an epoch": epoch_end,
    "selection in memory": in_memory,
    "selection, file to file": from_file,
    "scores written": written(scores_of),
    "scores read": read(scores_of),
    "coreset written": written(coreset_of),
    "coreset read": read(coreset_of),
}


def in_a_process(arm: str, rows: int) -> Figures:
    command = [sys.executable, __file__, "--one", arm, "--sizes", str(rows)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{arm} of {rows:,} rows: {done.stderr}")
    found: Figures = json.loads(done.stdout)
    return found


def compare(arms: list[str], sizes: list[int], repetitions: int) -> dict[str, dict[str, Any]]:
    runs: dict[str, dict[int, list[Figures]]] = {arm: {rows: [] for rows in sizes} for arm in arms}
    for rows in sizes:
        for _ in range(repetitions if rows < ONCE_FROM else 1):
            for arm in arms:
                runs[arm][rows].append(in_a_process(arm, rows))
    return {arm: {str(rows): _median(each) for rows, each in of.items()} for arm, of in runs.items()}


def _median(of: list[Figures]) -> Figures:
    seconds = [each["seconds"] for each in of]
    return {
        "seconds": statistics.median(seconds),
        "lowest": min(seconds),
        "highest": max(seconds),
        "megabytes": round(statistics.median(each["megabytes"] for each in of), 1),
        "runs": len(of),
    }


def exponent(sizes: dict[str, Figures], figure: str) -> float | None:
    """The slope of the straight line through the logarithms, by least squares.

    >>> exponent({"1000000": {"seconds": 2.0}, "10000000": {"seconds": 20.0}}, "seconds")
    1.0
    """
    points = [(int(rows), max(each[figure], LEAST[figure])) for rows, each in sizes.items() if int(rows) >= FROM]
    if len(points) < 2:
        return None
    return round(float(np.polyfit(*np.log(np.array(points)).T, 1)[0]), 2)


def table(report: dict[str, Any]) -> list[str]:
    sizes = sorted({int(rows) for arm in report.values() for rows in arm["sizes"]})
    lines: list[str] = []
    for figure, unit in (("seconds", "s"), ("megabytes", "MB")):
        lines += [
            f"| {'time' if unit == 's' else 'memory above what was given'}, {unit} | "
            + " | ".join(f"{rows:,} rows" for rows in sizes)
            + " | exponent |",
            "| --- |" + " ---: |" * (len(sizes) + 1),
        ]
        for name, arm in report.items():
            told = [_told(arm["sizes"].get(str(rows)), figure) for rows in sizes]
            slope = arm["exponents"][figure]
            lines.append(f"| {name} | {' | '.join(told)} | {'' if slope is None else f'{slope:.2f}'} |")
        lines.append("")
    return lines


def _told(found: Figures | None, figure: str) -> str:
    if found is None:
        return ""
    return f"{found[figure]:.3g}" if figure == "seconds" else f"{found[figure]:,.0f}"


def plot(report: dict[str, Any], out: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(12.8, 4.8))
    shown = {}
    for panel, key, unit in zip(panels, ("seconds", "megabytes"), ("s", "MB"), strict=True):
        for place, name in enumerate(ARMS):
            if name not in report:
                continue
            sizes = {int(rows): max(each[key], LEAST[key]) for rows, each in report[name]["sizes"].items()}
            style = {"color": f"C{place % 10}", "linewidth": 1, "marker": "os"[place // 10], "markersize": 4}
            (shown[name],) = panel.plot(list(sizes), list(sizes.values()), **style)
        panel.set(xscale="log", yscale="log", xlabel="rows", ylabel="time, s" if unit == "s" else "memory, MB")
        low, high = panel.get_xlim()
        bottom, top = panel.get_ylim()
        (shown["linear"],) = panel.plot([low, high], [bottom, bottom * high / low], "k:", linewidth=1)
        panel.set(xlim=(low, high), ylim=(bottom, top))
        panel.grid(alpha=0.3)
    labels = [f"{name} ({report[name]['exponents']['seconds']})" if name in report else name for name in shown]
    given = {"fontsize": 8, "loc": "upper left", "bbox_to_anchor": (1.02, 1), "title": "exponent of time in brackets"}
    panels[-1].legend(list(shown.values()), labels, title_fontsize=8, **given)
    figure.tight_layout()
    for suffix in ("png", "svg"):
        figure.savefig(out.with_suffix(f".{suffix}"), dpi=120, metadata={"Date": None} if suffix == "svg" else None)


def main() -> None:
    parser = make_parser(__doc__, table)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--one", choices=ARMS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        torch.set_num_threads(1)
        ARMS[given.one](1000)  # what is made and imported at the first call
        print(json.dumps(ARMS[given.one](given.sizes[0])))
        return
    if given.smoke:
        given.sizes, given.repetitions = [1000], 1
    report = json.loads(given.out.read_text()) if given.out and given.out.exists() else {}
    where = circumstances("numpy", "pyarrow")
    for name, sizes in compare(given.arms, given.sizes, given.repetitions).items():
        sizes = {**report.get(name, {}).get("sizes", {}), **sizes}
        slopes = {figure: exponent(sizes, figure) for figure in ("seconds", "megabytes")}
        report[name] = {**where, "sizes": sizes, "exponents": slopes}
    report = {name: report[name] for name in ARMS if name in report}
    save_report(report, given.out, table(report))
    if given.out:
        plot(report, given.out)
    print("\n".join(table(report)))


if __name__ == "__main__":
    main()
