"""Selecting by features: time and memory of herding, k-center, moderate, prototypes and near duplicates.

    python benchmarks/geometry.py --out benchmarks/results/geometry.json
    python benchmarks/geometry.py --deepcore DIR --out benchmarks/results/geometry.json
    python benchmarks/geometry.py --table benchmarks/results/geometry.json

Features are standard normal around 100 centres, (N, 512), in a memory-mapped file. Herding and k-center choose
``--kept`` rows of all; moderate and prototypes half of them. Each figure is of a process of its own, once: the seconds
of select, the check of the features included, and the most that the process held, pages of the file that were read
included. DIR is a checkout of DeepCore (PatrickZH/DeepCore), whose k-center and herding are then timed on the same
features, in memory; its herding is its own, by argmax. Without DIR the same two are timed as its paper describes them:
k-center with a matrix of all distances, herding with a sum over all chosen rows at each step.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from common import circumstances, make_parser, megabytes, reset_peak, save_report

from prunesampler.selection.near_duplicates import similar_pairs
from prunesampler.selection.select import select
from prunesampler.tables.score_table import ScoreTable

WIDTH, CLASSES = 512, 100
SIZES = [30_000, 100_000]


def write_features(path: Path, rows: int, dtype: str) -> None:
    generator = np.random.default_rng(0)
    centres = 2 * generator.standard_normal((CLASSES, WIDTH), np.float32)
    features = np.lib.format.open_memmap(path, "w+", dtype, (rows, WIDTH))
    for start in range(0, rows, 10_000):
        label = np.arange(start, min(start + 10_000, rows)) % CLASSES
        features[start : start + 10_000] = centres[label] + generator.standard_normal((len(label), WIDTH), np.float32)
    features.flush()


# -- arms: the path of the features, their number, and how many rows are kept ------------------------------------


def ours(method: str, share: float | None, by_class: bool = False) -> Callable[[Path, int, int], Any]:
    def arm(path: Path, rows: int, kept: int) -> Any:
        table = ScoreTable({"none": np.zeros(rows)}, labels=np.arange(rows) % CLASSES)
        return select(table, kept if share is None else share, method=method, features=path, class_balanced=by_class)

    return arm


def duplicates(path: Path, rows: int, kept: int) -> Any:
    return select(features=path, method="deduplicate", method_options={"search": "exact"})


def pairs(path: Path, rows: int, kept: int) -> Any:
    return similar_pairs(path, sample=2000)


def euclidean(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * x @ y.T).clamp(min=1e-12).sqrt()


def deepcore(name: str, folder: str | None) -> Callable[[Path, int, int], Any]:
    def arm(path: Path, rows: int, kept: int) -> Any:
        matrix = torch.from_numpy(np.load(path).astype(np.float32))
        if folder is None:
            return (matrix_k_center if name == "k_center" else summing_herding)(matrix, kept)
        sys.path.insert(0, folder)
        from deepcore.methods.herding import Herding
        from deepcore.methods.kcentergreedy import k_center_greedy
        from deepcore.methods.methods_utils import euclidean_dist

        if name == "k_center":
            return k_center_greedy(matrix, kept, euclidean_dist, "cpu", random_seed=0, already_selected=[])
        given = SimpleNamespace(metric=euclidean_dist, args=SimpleNamespace(print_freq=10**9))
        return Herding.herding(given, matrix, kept)

    return arm


def matrix_k_center(matrix: torch.Tensor, kept: int) -> Any:
    chosen = [0]
    distances = torch.empty(kept, len(matrix))
    for step in range(kept - 1):
        distances[step] = euclidean(matrix[chosen[-1:]], matrix)[0]
        chosen.append(int(distances[: step + 1].min(0).values.argmax()))
    return chosen


def summing_herding(matrix: torch.Tensor, kept: int) -> Any:
    mean, left = matrix.mean(0), torch.ones(len(matrix), dtype=torch.bool)
    for step in range(kept):
        wanted = (step + 1) * mean - matrix[~left].sum(0)
        distances = euclidean(wanted[None], matrix[left])[0]
        left[left.nonzero()[distances.argmin(), 0]] = False
    return left


def arms(folder: str | None) -> dict[str, Callable[[Path, int, int], Any]]:
    peer = "DeepCore" if folder else "as DeepCore's paper"
    return {
        "herding": ours("herding", None),
        f"herding, {peer}": deepcore("herding", folder),
        "k_center": ours("k_center", None),
        f"k_center, {peer}": deepcore("k_center", folder),
        "k_center, 10 % of each class": ours("k_center", 0.1, by_class=True),
        "moderate, half": ours("moderate", 0.5),
        "prototypes, half": ours("prototypes", 0.5),
        "deduplicate, all pairs": duplicates,
        "similar_pairs of 2,000 rows": pairs,
    }


def measure(arm: str, path: Path, rows: int, kept: int, folder: str | None) -> dict[str, float]:
    held = reset_peak()
    began = time.perf_counter()
    arms(folder)[arm](path, rows, kept)
    return {"seconds": time.perf_counter() - began, "megabytes": megabytes(), "imports": held}


def table(report: dict[str, Any]) -> list[str]:
    lines = ["| arm | rows | dtype | kept | seconds | most memory, MB |", "| --- | --- | --- | --- | --- | --- |"]
    for each in report["runs"]:
        cells = f"{each['rows']:,} | {each['dtype']} | {each['kept']} | {each['seconds']:.1f} | {each['megabytes']:.0f}"
        lines.append(f"| {each['arm']} | {cells} |")
    return lines


def main() -> None:
    parser = make_parser(__doc__, table)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--kept", type=int, default=100)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--deepcore", help="a checkout of DeepCore")
    parser.add_argument("--arms", nargs="+", help="only these, by the beginning of their names")
    parser.add_argument("--one", nargs=4, help="measure one arm: its name, a file, its rows and the number kept")
    args = parser.parse_args()
    if args.one:
        arm, path, rows, kept = args.one
        print(json.dumps(measure(arm, Path(path), int(rows), int(kept), args.deepcore)))
        return
    sizes, kept = ([2000], 10) if args.smoke else (args.sizes, args.kept)
    old = json.loads(args.out.read_text())["runs"] if args.out and args.out.exists() else []
    report: dict[str, Any] = {**circumstances("numpy"), "width": WIDTH, "runs": old}
    with tempfile.TemporaryDirectory() as folder:
        for rows in sizes:
            path = Path(folder) / f"{rows}.npy"
            write_features(path, rows, args.dtype)
            for arm in arms(args.deepcore):
                if args.arms and not arm.startswith(tuple(args.arms)):
                    continue
                more = ["--deepcore", args.deepcore] if args.deepcore else []
                command = [sys.executable, __file__, "--one", arm, str(path), str(rows), str(kept), *more]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    print(f"{arm}, {rows:,} rows: {done.stderr.strip().splitlines()[-1]}")
                    continue
                found = json.loads(done.stdout.strip().splitlines()[-1])
                report["runs"].append({"arm": arm, "rows": rows, "dtype": args.dtype, "kept": kept, **found})
                print(f"{arm}, {rows:,} rows: {found['seconds']:.1f} s, {found['megabytes']:.0f} MB", flush=True)
                save_report(report, args.out, table(report))
            path.unlink()


if __name__ == "__main__":
    main()
