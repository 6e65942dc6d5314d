"""What a row costs in PrunedSampler and in torch's samplers, when the first batch comes, and the memory held.

    python benchmarks/sampler_overhead.py --out benchmarks/results/sampler.json
    python benchmarks/sampler_overhead.py --table benchmarks/results/sampler.json

Each sampler is driven through torch's BatchSampler, as a DataLoader drives it, over a whole epoch of 256 rows a batch.
Every figure comes from a process of its own; samplers take turns, and medians count. Memory is the peak above what was
held before the sampler was made: the imports and, for those that are given one, the coreset. What an epoch yields is
checked afterwards. A peer that does not fit into ``--memory`` is shown with its error. Of an epoch of more than 10⁸
rows the first 10⁸ are read, by our samplers alone.

The same command again goes on where it stopped: what the file of ``--out`` has is not measured again. So ``--sizes``
and ``--arms`` may also be measured in portions.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from common import circumstances, make_parser, megabytes, reset_peak, save_report
from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from prunesampler.sampling.sampler import PrunedSampler
from prunesampler.tables.coreset import Coreset

BATCH = 256
RANKS = 8
SIZES = [100_000, 1_000_000, 4_194_305, 10_000_000, 100_000_000, 1_000_000_000]  # the third is 4**11 + 1
LARGEST_PEER = 100_000_000
LARGEST_CHECK = 100_000_000
LARGEST_WALK = 100_000_000


class _Rows:
    """A dataset that is nothing but its length."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows


def _half(rows: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.arange(0, rows, 2)


# Each makes what a user holds anyway, and then from it the sampler.
ARMS: dict[str, tuple[Callable[[int], Any], Callable[[int, Any], Any]]] = {
    "PrunedSampler": (lambda rows: None, lambda rows, _: PrunedSampler(rows)),
    "RandomSampler": (_Rows, lambda rows, data: RandomSampler(data)),
    "PrunedSampler, keep 0.5": (
        lambda rows: Coreset(_half(rows), num_rows=rows),
        lambda rows, coreset: PrunedSampler(rows, coreset=coreset),
    ),
    "SubsetRandomSampler, list": (lambda rows: _half(rows).tolist(), lambda rows, kept: SubsetRandomSampler(kept)),
    "SubsetRandomSampler, tensor": (
        lambda rows: torch.from_numpy(_half(rows)),
        lambda rows, kept: SubsetRandomSampler(kept),
    ),
    "SubsetRandomSampler, array": (_half, lambda rows, kept: SubsetRandomSampler(kept)),
    "PrunedSampler, weights": (
        lambda rows: np.ones(rows),
        lambda rows, weights: PrunedSampler(rows, sampling_weights=weights, replacement=True),
    ),
    "WeightedRandomSampler": (
        lambda rows: torch.ones(rows, dtype=torch.double),
        lambda rows, weights: WeightedRandomSampler(weights, rows),
    ),
    "PrunedSampler, 8 ranks": (lambda rows: None, lambda rows, _: PrunedSampler(rows, num_replicas=RANKS, rank=3)),
    "PrunedSampler, keep 0.5, 8 ranks": (
        lambda rows: Coreset(_half(rows), num_rows=rows),
        lambda rows, coreset: PrunedSampler(rows, coreset=coreset, num_replicas=RANKS, rank=3),
    ),
    "DistributedSampler, 8 ranks": (
        _Rows,
        lambda rows, data: DistributedSampler(data, num_replicas=RANKS, rank=3),
    ),
}
BESIDE = {
    "PrunedSampler": "RandomSampler",
    "PrunedSampler, keep 0.5": "SubsetRandomSampler, list",
    "PrunedSampler, weights": "WeightedRandomSampler",
    "PrunedSampler, 8 ranks": "DistributedSampler, 8 ranks",
    "PrunedSampler, keep 0.5, 8 ranks": "DistributedSampler, 8 ranks",
}


def measure(name: str, rows: int, memory: float) -> dict[str, Any]:
    """One epoch of one sampler, in this process."""
    resource.setrlimit(resource.RLIMIT_AS, (int(memory * 2**30),) * 2)
    torch.set_num_threads(1)
    make_given, make_sampler = ARMS[name]
    next(iter(make_sampler(10, make_given(10))))  # lazy imports
    given = make_given(rows)
    before = reset_peak()
    start, processor = time.perf_counter(), time.process_time()
    sampler = make_sampler(rows, given)
    batches: Iterator[list[int]] = iter(BatchSampler(sampler, BATCH, drop_last=False))
    count = len(next(batches))
    first = time.perf_counter() - start
    for batch in batches:
        count += len(batch)
        if count >= LARGEST_WALK:
            break
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    peak = megabytes() - before
    assert count == len(sampler) or count >= LARGEST_WALK
    if rows <= LARGEST_CHECK:
        check(name, rows, sampler)
    return {
        "rows_read": count,
        "ns_a_row": round(seconds / count * 1e9, 1),
        "processor_ns_a_row": round(processor / count * 1e9, 1),
        "first_batch_ms": round(first * 1e3, 2),
        "megabytes": round(peak, 1),
    }


def check(name: str, rows: int, sampler: Any) -> None:
    """What an epoch must yield: every row that is due, once."""
    seen = np.zeros(rows, np.uint8)
    drawn = 0
    for batch in BatchSampler(sampler, 65_536, drop_last=False):
        seen[batch] = 1
        drawn += len(batch)
    if "weights" in name.lower() or "Weighted" in name:
        assert drawn == rows
        return
    due = -(-(-(-rows // 2) if "keep" in name or "Subset" in name else rows) // (RANKS if "ranks" in name else 1))
    assert drawn == due
    assert int(seen.sum()) == due
    if "keep" in name or "Subset" in name:
        assert not seen[1::2].any()


def in_a_process(name: str, rows: int, memory: float) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", name, "--sizes", str(rows), "--memory", str(memory)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]}
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def compare(found: dict[str, Any], names: list[str], rows: int, repetitions: int, memory: float) -> None:
    """Add the figures of one size that are not there yet."""
    arms = [name for name in names if name not in found and (rows <= LARGEST_PEER or _reaches_all(name))]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    for _ in range(repetitions if rows < LARGEST_PEER else 1):
        for name in arms:
            if not any("error" in run for run in runs[name]):
                runs[name].append(in_a_process(name, rows, memory))
    found |= {name: _median(each) for name, each in runs.items()}
    for ours, peer in BESIDE.items():
        pair = [found.get(name, {}) for name in (ours, peer)]
        if all("ns_a_row" in each for each in pair):
            pair[0]["times_peer"] = round(pair[0]["processor_ns_a_row"] / pair[1]["processor_ns_a_row"], 3)


def _reaches_all(name: str) -> bool:
    return name.startswith("PrunedSampler") and "weights" not in name


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    if "error" in runs[-1]:
        return runs[-1]
    figures = {key: round(statistics.median(run[key] for run in runs), 2) for key in runs[0]}
    slowest, fastest = (pick(run["processor_ns_a_row"] for run in runs) for pick in (max, min))
    return {**figures, "spread_ns": [fastest, slowest], "runs": len(runs)}


def table(report: dict[str, Any]) -> list[str]:
    lines = [
        "| rows | sampler | ns a row | beside | first batch, ms | memory, MB |",
        "| ---: | --- | ---: | --- | ---: | ---: |",
    ]
    for rows, arms in sorted(report["sizes"].items(), key=lambda each: int(each[0])):
        for name in (name for name in ARMS if name in arms):
            run = arms[name]
            if "error" in run:
                lines.append(f"| {int(rows):,} | {name} | fails: {run['error'][:60]} | | | |")
                continue
            beside = f"{run['times_peer']:.2f} × {BESIDE[name]}" if "times_peer" in run else ""
            lines.append(
                f"| {int(rows):,} | {name} | {run['processor_ns_a_row']:.0f} | {beside} | {run['first_batch_ms']:.1f} "
                f"| {run['megabytes']:.0f} |"
            )
    return lines


def main() -> None:
    parser = make_parser(__doc__, table)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--memory", type=float, default=20.0, help="GiB of address space that a process may take")
    parser.add_argument("--one", choices=ARMS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.sizes[0], given.memory)))
        return
    if given.smoke:
        given.sizes, given.repetitions = [1000], 1
    report: dict[str, Any] = {**circumstances("numpy"), "sizes": {}}
    if given.out and given.out.exists():
        report |= {"sizes": json.loads(given.out.read_text())["sizes"]}
    for rows in given.sizes:
        compare(report["sizes"].setdefault(str(rows), {}), given.arms, rows, given.repetitions, given.memory)
        save_report(report, given.out, table(report))
    print("\n".join(table(report)))


if __name__ == "__main__":
    main()
