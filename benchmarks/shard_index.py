"""How fast tar shards are indexed, beside tarfile's own scan of their headers; and what opening a large index costs.

    python benchmarks/shard_index.py --out benchmarks/results/shard-index.json

Shards are made in a temporary folder: as webdataset writes them (a PAX header with a time before every file), as plain
ustar, and of tiny files. The page cache is warm, so this measures the work and not the disk. Arms take turns; the best
of the repetitions counts, in seconds of the clock and of the processors. What the arms find is compared.
"""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from common import circumstances, make_parser, save_report

from prunesampler.shards import ShardIndex, build_index
from prunesampler.shards.index_file import SCHEMA, Shard, key_digest, row_digest, write_index
from prunesampler.shards.sources import open_source
from prunesampler.shards.tar import tar_members

KINDS = {
    "webdataset, 20 kB": (20_000, 1.25, tarfile.PAX_FORMAT),
    "ustar, 20 kB": (20_000, 1.0, tarfile.USTAR_FORMAT),
    "ustar, 300 B": (300, 1.0, tarfile.USTAR_FORMAT),
}
SHARDS = 8
SHARD_ROWS = 10_000


def make_shards(folder: Path, rows: int, size: int, mtime: float, form: int) -> list[str]:
    """Shards of a picture and a class each; sizes vary by a third around ``size``."""
    sizes = np.random.default_rng(0).integers(size * 2 // 3, size * 4 // 3, rows)
    paths = []
    for shard in range(SHARDS):
        paths.append(str(folder / f"{shard:06d}.tar"))
        with tarfile.open(paths[-1], "w|", format=form) as tar:
            for row in range(shard, rows, SHARDS):
                for name, content in (("cls", b"7"), ("jpg", bytes(int(sizes[row])))):
                    file = tarfile.TarInfo(f"{row:09d}.{name}")
                    file.size, file.mtime, file.uname, file.mode = len(content), mtime, "bigdata", 0o444
                    if form == tarfile.USTAR_FORMAT:
                        file.mtime = int(mtime)
                    tar.addfile(file, io.BytesIO(content))
    return paths


def by_tarfile(paths: Sequence[str]) -> list[tuple[str, int, int]]:
    found = []
    for path in paths:
        with tarfile.open(path, "r:") as tar:
            found += [(member.name, member.offset_data, member.size) for member in tar.getmembers()]
    return found


def by_headers(paths: Sequence[str]) -> list[tuple[str, int, int]]:
    found: list[tuple[str, int, int]] = []
    for path in paths:
        with open_source(path) as source:
            for run in tar_members(source):
                found += zip(run.names, run.offsets.tolist(), run.sizes.tolist(), strict=True)
    return found


def of_index(index: ShardIndex) -> list[tuple[str, int, int]]:
    return [
        (f"{row['key']}.{member['extension']}", member["offset"], member["size"])
        for row in index.take(np.arange(len(index))).to_pylist()
        for member in row["members"]
    ]


def processor_seconds() -> float:
    usages = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def compare(rows: int, repetitions: int, workers: int) -> dict[str, Any]:
    """One dict a kind of shard: the arms' best seconds, and their ratios to tarfile's."""
    arms: dict[str, Callable[[Sequence[str]], Any]] = {
        "tarfile": by_tarfile,
        "headers": by_headers,
        "index, 1 process": lambda paths: build_index(paths, workers=1, progress=False),
        f"index, {workers} processes": lambda paths: build_index(paths, workers=workers, progress=False),
    }
    results: dict[str, Any] = {}
    for kind, options in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            paths = make_shards(Path(folder), rows, *options)
            seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
            found = {}
            for _ in range(repetitions):
                for name, arm in arms.items():
                    start, processor = time.perf_counter(), processor_seconds()
                    found[name] = arm(paths)
                    seconds[name].append((time.perf_counter() - start, processor_seconds() - processor))
            expected = found["tarfile"]
            for name, value in found.items():
                assert (of_index(value) if isinstance(value, ShardIndex) else value) == expected, name
        best = {name: tuple(map(min, zip(*times, strict=True))) for name, times in seconds.items()}
        results[kind] = {
            name: {
                "seconds": round(clock, 4),
                "processor_seconds": round(processor, 4),
                "us_a_file": round(clock / len(expected) * 1e6, 2),
                "times_tarfile": round(best["tarfile"][0] / clock, 1),
                "times_tarfile_processor": round(best["tarfile"][1] / processor, 1),
            }
            for name, (clock, processor) in best.items()
        }
    return results


class Synthetic:
    """Rows of an index as large as wanted, made when they are read."""

    def __init__(self, rows: int) -> None:
        self.shards: list[Shard] = []
        for number in range(rows // SHARD_ROWS):
            table = self.read(number)
            digests = key_digest(table), row_digest(table)
            self.shards.append(Shard(f"/data/{number:06d}.tar", SHARD_ROWS, 10**8, 10**18, True, *digests))

    def read(self, number: int) -> pa.Table:
        rows = np.arange(number * SHARD_ROWS, (number + 1) * SHARD_ROWS)
        sizes = np.zeros(2 * SHARD_ROWS, np.int64)
        sizes[::2], sizes[1::2] = 1, rows * 2_654_435_761 % 20_000 + 10_000
        offsets = np.cumsum(512 + (sizes + 511 & -512)) - (sizes + 511 & -512)
        extensions = pa.array(["cls", "jpg"]).take(pa.array(np.arange(2 * SHARD_ROWS) % 2))
        files = pa.StructArray.from_arrays(
            [extensions, pa.array(offsets), pa.array(sizes)], ["extension", "offset", "size"]
        )
        listed = pa.ListArray.from_arrays(pa.array(np.arange(SHARD_ROWS + 1) * 2, pa.int32()), files)
        keys = pc.utf8_lpad(pa.array(rows).cast(pa.large_string()), 9, "0")
        return pa.Table.from_arrays([keys, listed, pa.array((rows % 1000).astype(np.int32))], schema=SCHEMA)

    def labels(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        return (np.arange(len(self.shards) * SHARD_ROWS) % 1000).astype(np.int32)


OPEN = """
import json, resource, sys, time
import numpy as np
from prunesampler.shards import ShardIndex
def megabytes():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6
before = megabytes()
start = time.perf_counter()
index = ShardIndex.load(sys.argv[1])
opened, opened_megabytes = time.perf_counter() - start, megabytes() - before
start = time.perf_counter()
shards = np.linspace(0, len(index.shards) - 1, 20).astype(int)
for shard in shards:
    index.lookup(int(shard))
lookups = time.perf_counter() - start
start = time.perf_counter()
rows = np.concatenate([np.array(index.rows_of(int(shard)))[::2] for shard in shards])
taken = index.take(rows)
print(json.dumps({
    "rows": len(index), "shards": len(index.shards), "open_seconds": round(opened, 3),
    "open_megabytes": round(opened_megabytes, 1), "seconds_a_lookup_of_a_shard": round(lookups / 20, 4),
    "seconds_to_take_half_of_20_shards": round(time.perf_counter() - start, 3),
    "megabytes_with_them": round(megabytes() - before, 1),
}))
"""


def open_large(rows: int) -> dict[str, Any]:
    """Write an index of so many rows, and open it in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.parquet"
        synthetic = Synthetic(rows)
        start = time.perf_counter()
        write_index(path, synthetic, "sha256:synthetic", synthetic.labels())
        written = time.perf_counter() - start
        output = subprocess.run([sys.executable, "-c", OPEN, str(path)], check=True, capture_output=True, text=True)
        figures: dict[str, Any] = json.loads(output.stdout)
        figures.update(file_megabytes=round(path.stat().st_size / 1e6, 1), write_seconds=round(written, 1))
    return figures


def main() -> None:
    parser = make_parser(__doc__, smoke=None)
    parser.add_argument("--rows", type=int, default=100_000, help="samples of each kind of shard")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--large", type=int, default=100_000_000, help="rows of the synthetic index; 0 for none")
    given = parser.parse_args()
    report = {
        **circumstances("numpy", "pyarrow"),
        "rows": given.rows,
        "repetitions": given.repetitions,
        "index": compare(given.rows, given.repetitions, given.workers),
    }
    if given.large:
        report["large"] = open_large(given.large)
    print(json.dumps(report, indent=1))
    save_report(report, given.out)


if __name__ == "__main__":
    main()
