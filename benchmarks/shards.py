"""Epochs from tar shards at keep 0.5, 0.3 and 0.1, beside webdataset's own and other libraries'; repacking beside cp.

    python benchmarks/shards.py --data DIR --out benchmarks/results/shards.json [--parts epochs peers http repack]
    python benchmarks/shards.py --table benchmarks/results/shards.json > benchmarks/results/shards.md

CIFAR-10's images, enlarged to JPEGs of 224 pixels, in shards of webdataset's ShardWriter. Every arm decodes them with
webdataset's "torchrgb8" and collates 64 with torch's default_collate, in 2 persistent workers. A first epoch of every
arm starts its workers and is not counted; then arms take turns. A ratio is that of an epoch to the full one of the same
turn, and medians count. Processor seconds are of the main process and the workers. Every epoch's keys are compared
with the kept ones. The page cache is warm. Of parts that are not run, the results in the file of ``--out`` stay.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import itertools
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import webdataset as wds
from common import make_parser, save_report
from PIL import Image
from shards_arms import BATCH, DECODE, KEEPS, WORKERS, Arm, delivered, jpeg, of_peers, of_server, of_shards

from prunesampler import Coreset, shards

LATENCY_MS = 50
PARTS = ("epochs", "peers", "http", "repack")
PACKAGES = ("torch", "numpy", "pillow", "webdataset", "wids", "litdata", "mosaicml-streaming")


def pictures(data: Path | None, count: int) -> Iterator[tuple[Any, int]]:
    """CIFAR-10's training images and classes, or, without data, noise."""
    if data is None:
        noise = np.random.default_rng(0).integers(256, size=(count, 32, 32, 3), dtype=np.uint8)
        yield from ((Image.fromarray(each), number % 10) for number, each in enumerate(noise))
        return
    table = pq.read_table(data / "cifar10-train.parquet", columns=["image", "label"]).slice(0, count)
    for row in table.to_pylist():
        yield Image.open(io.BytesIO(row["image"])), row["label"]


def write_shards(
    folder: Path, data: Path | None, images: int, number: int, pixels: int, copies: int = 1
) -> shards.ShardIndex:
    encoded = [(jpeg(picture, pixels), label) for picture, label in pictures(data, images)]
    with wds.ShardWriter(str(folder / "%06d.tar"), maxcount=-(-images * copies // number), verbose=0) as writer:
        for row, (picture, label) in enumerate(encoded * copies):
            writer.write({"__key__": f"{row:08d}", "jpg": picture, "cls": label})
    shards.build_index(str(folder / "*.tar"), progress=False).save(folder / "index.parquet")
    return shards.ShardIndex.load(folder / "index.parquet")


def processor_seconds() -> float:
    """Of this process and the children that live."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def timed(run: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    start, processor = time.perf_counter(), processor_seconds()
    result = run()
    return {
        "seconds": time.perf_counter() - start,
        "processor_seconds": processor_seconds() - processor,
    }, result


def epoch(arm: Arm) -> dict[str, float]:
    """One epoch, and whether it delivered what it should."""
    seconds, (_, keys) = timed(lambda: delivered(arm.loader))
    if isinstance(arm.rows, int):
        assert len(set(keys)) == len(keys) == arm.rows, arm.name
    else:
        assert sorted(keys) == [arm.key(row) for row in arm.rows.tolist()], arm.name
    return seconds


def start(arm: Arm) -> None:
    """Make its loader and its workers; an arm that fails is not run again."""
    try:
        arm.loader = arm.make()
        epoch(arm)
    except Exception as error:
        last = str(error).strip().splitlines()[-1:]
        arm.error = f"{type(error).__name__}: {''.join(last)}"[:200]
        print(arm.name, arm.error, file=sys.stderr)


def compare(arms: list[Arm], repetitions: int) -> list[dict[str, Any]]:
    """The arms in turns, each time beginning with another one."""
    for arm in arms:
        start(arm)
    running = [arm for arm in arms if arm.error is None]
    runs: dict[tuple[str, float], list[dict[str, float]]] = {(arm.name, arm.keep): [] for arm in running}
    for turn in range(repetitions):
        for arm in running[turn % len(running) :] + running[: turn % len(running)]:
            runs[arm.name, arm.keep].append(epoch(arm))
        print(f"turn {turn + 1} of {repetitions}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    for arm in arms:
        arm.loader = None
    return [_figures(arm, runs) for arm in arms]


def _figures(arm: Arm, runs: dict[tuple[str, float], list[dict[str, float]]]) -> dict[str, Any]:
    count = arm.rows if isinstance(arm.rows, int) else len(arm.rows)
    found: dict[str, Any] = {"arm": arm.name, "keep": arm.keep, "reach": arm.reach, "samples": count}
    if arm.error:
        return {**found, "error": arm.error}
    mine, full = runs[arm.name, arm.keep], runs[arm.full, 1]
    for measure, ratio in (("seconds", "ratio"), ("processor_seconds", "processor_ratio")):
        found[measure] = round(statistics.median(run[measure] for run in mine), 4)
        ratios = [run[measure] / base[measure] for run, base in zip(mine, full, strict=True)]
        found[ratio] = round(statistics.median(ratios), 4)
        found[f"{ratio}_range"] = [round(min(ratios), 4), round(max(ratios), 4)]
    found["samples_a_second"] = round(count / found["seconds"])
    return {**found, "runs": [{key: round(value, 4) for key, value in run.items()} for run in mine]}


def compare_repack(
    data: Path | None, images: int, pixels: int, copies: int, keep: float, repetitions: int
) -> dict[str, Any]:
    """Repacking, and ``cp`` of the result; each image comes several times, so that there are enough bytes."""
    with tempfile.TemporaryDirectory() as name:
        return _compare_repack(
            Path(name), write_shards(Path(name), data, images, 16, pixels, copies), pixels, keep, repetitions
        )


def _compare_repack(
    folder: Path, index: shards.ShardIndex, pixels: int, keep: float, repetitions: int
) -> dict[str, Any]:
    kept = np.sort(np.random.default_rng(1).permutation(len(index))[: int(keep * len(index))])
    coreset = Coreset(kept, num_rows=len(index))
    runs: dict[str, list[dict[str, float]]] = {"repack": [], "cp": [], "cp, then sync": []}
    size = 0
    for _ in range(repetitions):
        out, copied = folder / "packed", folder / "copied"
        pattern = str(out / "{shard:06d}.tar")
        os.sync()
        seconds, packed = timed(
            lambda p=pattern: shards.repack(folder / "index.parquet", coreset, p, maxsize=10**8, progress=False)
        )
        runs["repack"].append(seconds)
        assert len(packed) == len(kept)
        size = sum(path.stat().st_size for path in out.glob("*.tar"))
        os.sync()
        before = os.times()
        seconds, _done = timed(lambda o=out, c=copied: subprocess.run(["cp", "-r", str(o), str(c)], check=True))
        synced, _done = timed(lambda c=copied: subprocess.run(["sync", *map(str, c.iterdir())], check=True))
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        runs["cp"].append({**seconds, "processor_seconds": spent})
        runs["cp, then sync"].append({"seconds": seconds["seconds"] + synced["seconds"], "processor_seconds": spent})
        shutil.rmtree(out)
        shutil.rmtree(copied)
    ratios = {
        other: round(
            statistics.median(a["seconds"] / b["seconds"] for a, b in zip(runs[other], runs["repack"], strict=True)), 3
        )
        for other in ("cp", "cp, then sync")
    }
    return {
        "pixels": pixels,
        "kilobytes_a_sample": round(size / 1e3 / len(kept), 1),
        "megabytes": round(size / 1e6, 1),
        "samples": len(kept),
        "keep": keep,
        "megabytes_a_second": {
            name: round(size / 1e6 / statistics.median(run["seconds"] for run in each), 1)
            for name, each in runs.items()
        },
        "processor_seconds": {
            name: round(statistics.median(run["processor_seconds"] for run in each), 3) for name, each in runs.items()
        },
        "bytes_a_second_over": ratios,
        "reach": 0.5,
        "runs": {
            name: [{key: round(value, 4) for key, value in run.items()} for run in each] for name, each in runs.items()
        },
    }


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    command = [sys.executable, str(Path(__file__).with_name("shards_server.py")), str(folder), str(LATENCY_MS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.terminate()


def table(report: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        f"{report['images']} images of {report['pixels']} pixels in {report['shards']} shards, {WORKERS} workers, "
        f"medians of {report['repetitions']} turns (HTTP: {report['http_repetitions']}); ratios to the full epoch of "
        f"the same turn, over HTTP to the full one over HTTP. {report['machine']}.",
        "",
        "| arm | keep | epoch, ratio | reach | processor time, ratio | seconds | samples/s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for arm in itertools.chain.from_iterable(report[part] for part in PARTS[:-1] if part in report):
        if "error" in arm:
            lines.append(f"| {arm['arm']} | {arm['keep']} | fails: {arm['error'][:90]} | | | | |")
            continue
        reach = "" if arm["reach"] is None else f"≤ {arm['reach']:.3g}"
        low, high = arm["ratio_range"]
        lines.append(
            f"| {arm['arm']} | {arm['keep']} | {arm['ratio']:.3f} ({low:.2f} to {high:.2f}) | {reach} "
            f"| {arm['processor_ratio']:.3f} | {arm['seconds']:.2f} | {arm['samples_a_second']} |"
        )
    lines += [
        "",
        "| repacking | MB/s | `cp` of the same bytes, MB/s | `cp`, then `sync`, MB/s | ratio to `cp` | reach "
        "| ratio to `cp` and `sync` |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for packing in report.get("repack", []):
        speeds, over = packing["megabytes_a_second"], packing["bytes_a_second_over"]
        lines.append(
            f"| {packing['samples']} of {packing['kilobytes_a_sample']} KB, {packing['megabytes']:.0f} MB "
            f"| {speeds['repack']:.0f} | {speeds['cp']:.0f} | {speeds['cp, then sync']:.0f} | {over['cp']:.2f} "
            f"| ≥ {packing['reach']} | {over['cp, then sync']:.2f} |"
        )
    lines += ["", "Repacked shards are on the disk before they are named; what `cp` wrote is not."]
    return "\n".join(lines)


def compare_epochs(given: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        index = write_shards(folder, given.data, given.images, given.shards, given.pixels)
        order = np.random.default_rng(0).permutation(given.images)
        coresets = {keep: Coreset(np.sort(order[: round(keep * given.images)]), num_rows=len(index)) for keep in KEEPS}
        for keep, coreset in coresets.items():
            pattern = str(folder / f"repacked-{keep}" / "{shard:06d}.tar")
            size = sum(path.stat().st_size for path in folder.glob("*.tar"))
            shards.repack(index, coreset, pattern, maxsize=int(keep * size / 24), shuffle=True, progress=False)
        if "epochs" in given.parts:
            found["epochs"] = compare(of_shards(folder, index, coresets), given.repetitions)
        if "peers" in given.parts:
            found["peers"] = compare(of_peers(folder, index, coresets[0.5], given.smoke), given.repetitions)
        if "http" in given.parts:
            with served(folder) as address:
                found["http"] = compare(of_server(address, folder, index, coresets[0.5]), given.http_repetitions)
    return found


def main() -> None:
    smoke = "tiny and once; noise without --data; no peers"
    parser = make_parser(__doc__, lambda report: [table(report)], smoke)
    parser.add_argument("--data", type=Path, help="a folder with CIFAR-10 as Parquet; needed but for --smoke")
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--shards", type=int, default=32)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--http-repetitions", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=2000, help="of the shards that are repacked")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    given = parser.parse_args()
    if given.smoke:
        given.images, given.shards, given.pixels, given.megabytes = 150, 4, 48, 1
        given.repetitions = given.http_repetitions = 1
    elif given.data is None:
        parser.error("--data must be given")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=ResourceWarning)  # webdataset leaves its files to the garbage collector
    machine = f"{os.cpu_count()} processors, {platform.machine()}, load {os.getloadavg()[0]:.1f} at the start"
    again = given.out is not None and given.out.exists() and set(given.parts) != set(PARTS)
    older = json.loads(given.out.read_text()) if again else {}
    found: dict[str, Any] = {part: older[part] for part in PARTS if part in older}
    command = " ".join(["python", *sys.argv]).replace(str(given.data), "DIR")
    if set(given.parts) != {"repack"}:
        found |= compare_epochs(given)
    if "repack" in given.parts:
        found["repack"] = []
        for images, pixels in ((given.images, given.pixels), (max(given.images // 16, 1), 6 * given.pixels)):
            size = sum(len(jpeg(picture, pixels)) for picture, _ in itertools.islice(pictures(given.data, 20), 20)) / 20
            copies = max(1, round(given.megabytes * 1e6 / images / size))
            found["repack"].append(compare_repack(given.data, images, pixels, copies, 0.5, given.repetitions))
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    report = {
        "commands": [*older.get("commands", []), command],
        "machine": machine,
        "versions": versions,
        "images": given.images,
        "pixels": given.pixels,
        "shards": given.shards,
        "batch": BATCH,
        "decode": DECODE,
        "repetitions": given.repetitions,
        "http_repetitions": given.http_repetitions,
        "latency_ms": LATENCY_MS,
        **{part: found[part] for part in PARTS if part in found},
    }
    save_report(report, given.out)
    print(table(report))


if __name__ == "__main__":
    main()
