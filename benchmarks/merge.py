"""What the merge of one epoch's scores costs: seconds and bytes, on ranks of this machine that talk over gloo.

    python benchmarks/merge.py --out benchmarks/results/merge.json

Each rank has scored its share of the rows (EL2N and forgetting) on the CPU; then all call ``end_epoch()``, three times
over, and at last a coreset of half the rows is broadcast. Beside it, in turns, stands one ``all_reduce`` of one float32
a row: what merging a single column could cost at the least. Bytes are those that each rank's TCP sockets sent, as the
kernel counts them. The merged scores are compared with what they must be.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import socket
import struct
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from common import circumstances, make_parser, save_report

from prunesampler import Coreset, ScoreTracker
from prunesampler.tracking.ranks import Group

EPOCHS = 3
CHUNK = 1 << 20
BYTES_A_ROW = {"rank 0": 75, "others": 40}  # at the peak
_BYTES_SENT = 200  # offset in the kernel's struct tcp_info; those that were sent again come next


def bytes_sent() -> int:
    """By all TCP sockets of this process, each byte once."""
    total = 0
    for file in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            if not os.readlink(file).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(file.name))) as connection:
                if connection.type == socket.SOCK_STREAM and connection.family in (socket.AF_INET, socket.AF_INET6):
                    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    sent, again = struct.unpack_from("QQ", info, _BYTES_SENT)
                    total += sent - again
    return total


def score_of(rows: torch.Tensor, epoch: int) -> torch.Tensor:
    return (rows % 1000).float() / 1000 + 0.25 * epoch


def present(tracker: ScoreTracker, rank: int, world_size: int, epoch: int) -> None:
    """What an epoch of ``update`` leaves in this rank's share, without its logits."""
    for start in range(0, tracker.num_rows, CHUNK * world_size):
        rows = torch.arange(start + (rank + epoch) % world_size, tracker.num_rows, world_size)[:CHUNK]
        if len(rows):
            correct = (rows + epoch) % 2 == 0
            tracker._buffers.add(rows, {"el2n": score_of(rows, epoch)}, correct, rows % 10, 10)


def measured(what: Callable[[], Any]) -> dict[str, float]:
    """Of one rank, from when all are there."""
    dist.barrier()
    start, before = time.perf_counter(), bytes_sent()
    what()
    return {"seconds": time.perf_counter() - start, "bytes_sent": bytes_sent() - before}


def work(rank: int, world_size: int, rows: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    group = Group.create()
    tracker = ScoreTracker(rows, group=group)
    column = torch.zeros(rows)
    found: dict[str, list[dict[str, float]]] = {"merge": [], "all_reduce of one column": [], "coreset": []}
    for epoch in range(EPOCHS):
        present(tracker, rank, world_size, epoch)
        found["merge"].append(measured(tracker.end_epoch))
        found["all_reduce of one column"].append(measured(lambda: group.max_(column)))
    coreset = Coreset(np.arange(0, rows, 2), num_rows=rows) if rank == 0 else None
    found["coreset"].append(measured(lambda: group.broadcast_object(coreset)))
    if rank == 0:
        expected = score_of(torch.arange(rows), 0) + 0.25 * (EPOCHS - 1) / 2
        assert torch.allclose(tracker.value("el2n"), expected, rtol=0, atol=1e-6)
        assert bool((tracker._totals.presentations == EPOCHS).all())
        assert tracker._totals.forgetting_events is not None
        assert tracker._totals.forgetting_events.sum() == rows // 2 * ((EPOCHS - 1) // 2) + rows // 2 * (EPOCHS // 2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    Path(folder, f"{rank}.json").write_text(json.dumps({**found, "peak_megabytes": peak}))
    dist.barrier()


def compare(rows: int, world_size: int) -> dict[str, Any]:
    """Seconds of the slowest rank, best of the repetitions after the first; bytes of the rank that sent most."""
    context = multiprocessing.get_context("forkserver")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=work, args=(rank, world_size, rows, folder)) for rank in range(world_size)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            raise SystemExit(f"ranks ended with {[process.exitcode for process in ranks]}")
        found = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(world_size)]
    result: dict[str, Any] = {"rows": rows, "ranks": world_size}
    for name in ("merge", "all_reduce of one column", "coreset"):
        times = [max(rank[name][turn]["seconds"] for rank in found) for turn in range(len(found[0][name]))]
        sent = [[rank[name][turn]["bytes_sent"] for rank in found] for turn in range(len(times))]
        result[name] = {
            "seconds": [round(seconds, 4) for seconds in times],
            "bytes_a_row_sent_by_each_rank": [round(count / rows, 3) for count in sent[-1]],
        }
    merge, column = (min(result[name]["seconds"]) for name in ("merge", "all_reduce of one column"))
    result["times_all_reduce_of_one_column"] = round(merge / column, 1)
    result["peak_megabytes_of_each_rank"] = [round(rank["peak_megabytes"]) for rank in found]
    return result


def room(rows: int, world_size: int) -> bool:
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            available = int(line.split()[1]) * 2**10
    return available > rows * (BYTES_A_ROW["rank 0"] + (world_size - 1) * BYTES_A_ROW["others"]) + world_size * 6e8


def main() -> None:
    parser = make_parser(__doc__, smoke="a few rows, to see that it runs")
    parser.add_argument("--rows", type=int, nargs="+", default=[10**6, 10**7, 10**8])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    given = parser.parse_args()
    report: dict[str, Any] = {
        **circumstances("numpy"),
        "epochs": EPOCHS,
        "merges": [],
        "left out for want of memory": [],
    }
    for rows in [1000] if given.smoke else given.rows:
        for world_size in [2] if given.smoke else given.ranks:
            if room(rows, world_size):
                report["merges"].append(compare(rows, world_size))
                print(json.dumps(report["merges"][-1], indent=1), flush=True)
            else:
                report["left out for want of memory"].append({"rows": rows, "ranks": world_size})
    save_report(report, given.out)


if __name__ == "__main__":
    main()
