"""What a step of scoring costs: ScoreTracker beside cross entropy's own forward and beside its peers; and attach.

    python benchmarks/tracker_overhead.py --out benchmarks/results/tracker.json
    python benchmarks/tracker_overhead.py --device cuda --out benchmarks/results/tracker-cuda.json
    python benchmarks/tracker_overhead.py --table benchmarks/results/tracker.json

One thread, a dataset of 1.2 million rows. Arms take turns in rounds, each of the same steps on new rows; the median
round counts, in microseconds of processor time a step. On a GPU it is the time until the device has done them all, with
the kernels a step from a trace beside, of the tracker and of cross entropy alone. ``attach`` is measured in a loop that
does nothing but read batches of 128 and call a model that hands its input on: with the loader alone, with rows that
travel with its batches, with these and a tracker updated by hand, and attached. What the tracker holds in the end is
compared with the definition of EL2N. Peers that are not installed, or fail, are shown as such; InfoBatch is no package,
so its source folder is given with ``--infobatch``.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import circumstances, make_parser, save_report, trace_of
from torch import nn
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.data import DataLoader, TensorDataset
from tracker_peers import Step, peers

import prunesampler
from prunesampler import with_rows
from prunesampler.tracking.tracker import ScoreTracker

ROWS = 1_200_000
SIZES = [(128, 10), (512, 10), (128, 1000), (512, 1000), (128, 50_000), (512, 50_000)]
SLOW = ("DataCull", "dPrune", "aum")  # a twentieth of the steps are enough
TRACED = 64  # steps, a multiple of the batches that the tracker scores at a time
LOGITS_A_ROUND = 50_000_000  # about, and 20 to 400 steps


def update(
    batch: int, classes: int, rounds: int, scale: float, infobatch: Path | None, device: str, *, alone: bool = False
) -> dict[str, Any]:
    cuda = device == "cuda"
    steps = int(min(400, max(20, LOGITS_A_ROUND * scale // (batch * classes))))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, classes, generator=generator)
    targets = torch.randint(0, classes, (batch,), generator=generator)
    order = torch.randperm(ROWS, generator=generator)
    logits, targets = logits.to(device), targets.to(device)
    tracker = ScoreTracker(ROWS, scores=("el2n", "forgetting"))
    unaudited = ScoreTracker(ROWS, scores=("el2n", "forgetting"), audit=False)
    loss_only = ScoreTracker(ROWS, scores=("loss",))
    recorded = ScoreTracker(ROWS, scores=("loss",))
    losses = cross_entropy(logits, targets, reduction="none")
    begun = 0

    def all_steps(step: Step, count: int) -> None:
        for number in range(count):
            start = (begun + number) % (ROWS // batch) * batch
            step(order[start : start + batch])

    arms: dict[str, Step] = {
        "cross_entropy": lambda rows: cross_entropy(logits, targets),
        "ScoreTracker, EL2N and forgetting": lambda rows: tracker.update(rows, logits, targets),
        "the same with audit=False": lambda rows: unaudited.update(rows, logits, targets),
        "ScoreTracker, loss": lambda rows: loss_only.update(rows, logits, targets),
        "ScoreTracker.record of given losses": lambda rows: recorded.record(rows, given=losses),
    }
    with torch.no_grad():
        # Peers read each value on the host.
        others, failed = ({}, {}) if cuda or alone else peers(ROWS, logits, targets, infobatch)
    arms |= others
    fewer = {name: max(1, steps // 20) if name.startswith(SLOW) else steps for name in arms}
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name, step in arms.items():
            start = _now(device)
            with torch.no_grad():
                all_steps(step, fewer[name])
            if number:  # the first warms up
                times[name].append((_now(device) - start) / fewer[name] * 1e6)
        begun += steps
    counts = {}
    for name, step in arms.items() if cuda else ():
        with torch.no_grad():
            events = trace_of(lambda step=step: (all_steps(step, TRACED), torch.cuda.synchronize()))
        counts[name] = {"kernels": sum(event.get("cat") == "kernel" for event in events) / TRACED}
    tracker.end_epoch()
    table = tracker.table()
    assert table.presentations is not None
    assert table.presentations.sum() == ((rounds + 1) * steps + TRACED * cuda) * batch
    wanted = (logits.double().softmax(1) - one_hot(targets, classes)).norm(dim=1).cpu().numpy()
    assert np.allclose(table.scores["el2n"][order[:batch].numpy()], wanted, rtol=1e-5)
    told = _told(times, "cross_entropy")
    return {name: run | counts.get(name, {}) for name, run in told.items()} | failed


def _now(device: str) -> float:
    """Seconds of this process; where a GPU works, until it has done."""
    if device != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def attached(rounds: int, scale: float) -> dict[str, Any]:
    """A loop that does no work, over so many batches of 128 a round."""
    rows = int(128 * max(20, 400 * scale))
    data = TensorDataset(torch.randn(rows, 10), torch.arange(rows) % 10)

    class Batches:
        """Reads a batch at once, so that the loader itself costs little."""

        def __len__(self) -> int:
            return rows

        def __getitem__(self, row: int) -> Any:
            return data[row]

        def __getitems__(self, numbers: list[int]) -> Any:
            return data[torch.tensor(numbers)]

    def loader() -> DataLoader[Any]:
        return DataLoader(Batches(), batch_size=128, shuffle=True, collate_fn=lambda batch: batch)  # type: ignore[arg-type]

    def read_rows(batches: Any) -> None:
        for _, (inputs, _) in with_rows(batches):
            alone(inputs)

    def read_and_update(batches: Any) -> None:
        for numbers, (inputs, targets) in with_rows(batches):
            tracker.update(numbers, alone(inputs), targets)

    model, alone, tracker = nn.Identity(), nn.Identity(), ScoreTracker(rows)
    names = ("loader alone", "with_rows", "with_rows and ScoreTracker.update", "attached")
    times: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = loader()
        followed = prunesampler.attach(
            loader(), model, keep=None, score_epochs=rounds + 1, save_dir=Path(folder) / "run"
        )
        for number in range(rounds + 1):
            for name, loop, each in zip(
                names,
                (_reader(alone), read_rows, read_and_update, _reader(model)),
                (plain, plain, plain, followed),
                strict=True,
            ):
                start = time.process_time()
                loop(each)
                if number:
                    times[name].append((time.process_time() - start) / (rows / 128) * 1e6)
        followed.pruning.finish()
        table = prunesampler.ScoreTable.load(Path(folder) / "run" / "scores.parquet")
    wanted = (data.tensors[0].double().softmax(1) - one_hot(data.tensors[1], 10)).norm(dim=1).numpy()
    assert np.allclose(table.scores["el2n"], wanted, rtol=1e-5)
    return _told(times, "loader alone")


def _reader(model: nn.Module) -> Callable[[Any], None]:
    def read(batches: Any) -> None:
        for inputs, _ in batches:
            model(inputs)

    return read


def _told(times: dict[str, list[float]], beside: str) -> dict[str, Any]:
    base = statistics.median(times[beside])
    return {
        name: {
            "us_a_step": round(statistics.median(each), 1),
            "lowest": round(min(each), 1),
            "highest": round(max(each), 1),
            "ratio": round(statistics.median(each) / base, 2),
            "more_us": round(statistics.median(each) - base, 1),
        }
        for name, each in times.items()
    }


def table(report: dict[str, Any]) -> list[str]:
    counted = any("kernels" in run for arms in report["update"].values() for run in arms.values())
    lines = ["| batch × classes | arm | µs a step | × cross entropy |" + " kernels |" * counted]
    lines.append("| --- | --- | ---: | ---: |" + " ---: |" * counted)
    for size, arms in report["update"].items():
        for name, run in arms.items():
            told = f"{run['us_a_step']:,.0f} | {run['ratio']:.2f}" if "error" not in run else f"fails: {run['error']} |"
            lines.append(f"| {size} | {name} | {told} |" + (f" {run['kernels']:.1f} |" if "kernels" in run else ""))
    if "attach" in report:
        lines += ["", "| loop of 128 × 10 that does no work | µs a step | more |", "| --- | ---: | ---: |"]
        for name, run in report["attach"].items():
            lines.append(f"| {name} | {run['us_a_step']:.0f} | {run['more_us']:.0f} |")
    return lines


def main() -> None:
    parser = make_parser(__doc__, table, smoke="the smallest size, few steps")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--alone", action="store_true", help="neither peers nor attach")
    parser.add_argument("--infobatch", type=Path, help="a folder of InfoBatch's source")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rounds, scale = (1, 0.0) if given.smoke else (given.rounds, 1.0)
    report = {
        **circumstances(),
        "update": {
            f"{batch} × {classes:,}": update(
                batch, classes, rounds, scale, given.infobatch, given.device, alone=given.alone
            )
            for batch, classes in (SIZES[:1] if given.smoke else SIZES)
        },
    }
    if given.device == "cpu" and not given.alone:
        report["attach"] = attached(rounds, scale)
    save_report(report, given.out, table(report))
    print("\n".join(table(report)))


if __name__ == "__main__":
    main()
