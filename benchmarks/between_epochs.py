"""What happens between two epochs, in nanoseconds a row: the tracker's table, a policy's draw, and the audit.

    python benchmarks/between_epochs.py --out benchmarks/results/between-epochs.json

One thread. A boundary is the policy's answer, the rows and weights that are drawn from it, and a sampler that has given
the first row of the next epoch. Beside it stands numpy's own draw of half of the rows without replacement, in
proportion to the same losses, which gives no exact weights. The table is that of a tracker that has seen each row once.
Arms take turns; the lowest of ``--repeats`` counts, in processor time, as other work on the machine only adds to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import circumstances, make_parser, save_report

from prunesampler import ImportanceSampling, InfoBatch, PrunedSampler, RandomSubset, ScoreTable, ScoreTracker, audit
from prunesampler.training.policies.policy import coreset_of

SIZES = [1_000_000, 10_000_000]
LARGEST_AUDIT, LARGEST_NUMPY = 1_000_000, 10_000_000
WRONG = 0.1


def losses(rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).exponential(size=rows).astype(np.float32)


def boundary(policy: Any, rows: int) -> Callable[[], None]:
    table, all_rows, sampler = ScoreTable({"loss": losses(rows)}), np.arange(rows), PrunedSampler(rows)
    repeats = iter(range(1, 1000))

    def turn() -> None:
        epoch = next(repeats)
        answer = policy.draw(epoch, table, all_rows, seed=0)
        drawn = coreset_of(answer, all_rows, num_rows=rows, fingerprint=None, seed=0, epoch=epoch)
        sampler.prune(drawn)
        first = next(iter(sampler))
        assert drawn.rows[np.searchsorted(drawn.rows, first)] == first
        budget = answer.budget if hasattr(answer, "budget") else len(answer)
        assert len(drawn) == budget < rows
        if drawn.weights is not None:  # every row is expected to count once, or a step's gradient to stay what it is
            wanted = 1.0 if getattr(answer, "preserves", "epoch") == "epoch" else budget / rows
            assert abs(drawn.weights.sum(dtype=np.float64) / rows / wanted - 1) < 0.02

    return turn


def by_numpy(rows: int) -> Callable[[], None]:
    shares, generator = losses(rows).astype(np.float64), np.random.default_rng(1)
    shares /= shares.sum()

    def draw() -> None:
        assert len(generator.choice(rows, rows // 2, replace=False, p=shares)) == rows // 2

    return draw


def tracked(rows: int) -> Callable[[], None]:
    tracker = ScoreTracker(rows)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    logits = torch.randn(min(rows, 10_000), 10, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(len(logits)) % 10
    for part in order.split(len(logits)):
        tracker.update(part, logits[: len(part)], targets[: len(part)])
    tracker._credit_waiting()  # of the steps, not of the boundary

    def merge() -> None:
        tracker.end_epoch()
        assert tracker.table().presentations.min() == 1  # type: ignore[union-attr]

    return merge


def audited(rows: int) -> Callable[[], None]:
    rng = np.random.default_rng(0)
    true, labels = np.arange(rows) % 10, np.arange(rows) % 10
    wrong = rng.random(rows) < WRONG
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, int(wrong.sum()))) % 10
    sure = np.clip(np.where(wrong, -1, 1) * rng.normal(0.7, 0.2, rows), -1, 1)
    suggested = np.where(wrong, true, (true + rng.integers(1, 10, rows)) % 10)
    table = ScoreTable({"el2n": 1 - sure}, labels=labels, signed_confidence=sure, suggested_label=suggested)

    def look() -> None:
        assert abs(len(audit(table)) / rows - WRONG) < 0.03

    return look


def arms(rows: int) -> dict[str, Callable[[], None]]:
    found = {
        "InfoBatch": boundary(InfoBatch(ratio=0.5, anneal=0), rows),
        "ImportanceSampling": boundary(ImportanceSampling(0.5), rows),
        "RandomSubset": boundary(RandomSubset(0.5), rows),
        "the tracker's end_epoch and table": tracked(rows),
    }
    if rows <= LARGEST_NUMPY:
        found["numpy's choice by weights, half"] = by_numpy(rows)
    if rows <= LARGEST_AUDIT:
        found["audit"] = audited(rows)
    return found


def measure(rows: int, repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {}
    made = arms(rows)
    for number in range(repeats):
        for name, arm in made.items():
            if number and name.startswith("the tracker"):
                continue  # an epoch is merged once
            began = time.process_time()
            arm()
            times.setdefault(name, []).append(round(1e9 * (time.process_time() - began) / rows, 2))
    return times


def table(report: dict[str, Any]) -> list[str]:
    sizes = list(report["ns_a_row"])
    lines = ["| ns a row | " + " | ".join(f"{int(size):,} rows" for size in sizes) + " |"]
    lines.append("| --- |" + " ---: |" * len(sizes))
    for name in report["ns_a_row"][sizes[0]]:
        cells = [report["ns_a_row"][size].get(name) for size in sizes]
        lines.append(f"| {name} | " + " | ".join(f"{min(each):.0f}" if each else "–" for each in cells) + " |")
    return lines


def main() -> None:
    parser = make_parser(__doc__, table)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sizes, repeats = ([20_000], 1) if given.smoke else (given.sizes, given.repeats)
    report: dict[str, Any] = {**circumstances("numpy"), "ns_a_row": {}}
    for rows in sizes:
        report["ns_a_row"][str(rows)] = measure(rows, repeats)
        save_report(report, given.out, table(report))
    print("\n".join(table(report)))


if __name__ == "__main__":
    main()
