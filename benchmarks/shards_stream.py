"""Tar shards behind HTTP with 50 ms a request and a limited rate: StreamedShards beside webdataset and others.

    python benchmarks/shards_stream.py --data DIR --out benchmarks/results/shards-stream.json
    python benchmarks/shards_stream.py --table benchmarks/results/shards-stream.json

Images, decoding and collating are those of ``shards.py``. Every epoch begins with an empty cache and new workers, as
the first one of a run does; a ratio is to the full epoch of the same arm. Also here: how evenly rows are shuffled,
and the memory of a worker over 10⁸ rows. Every epoch's keys are compared with the kept ones.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from common import circumstances, make_parser, save_report
from shard_index import SHARD_ROWS, Synthetic
from shards import LATENCY_MS, write_shards
from shards_arms import BATCH, DECODE, WORKERS, _indexed, _loader, _OfDict, _seeking, _tuple, _web
from torch.utils.data import DataLoader

from prunesampler import Coreset, PrunedSampler, shards
from prunesampler.sampling.block_shuffle import BlockShuffle
from prunesampler.shards.index_file import Shard
from prunesampler.shards.tar import BLOCK

MEGABYTES_A_SECOND = 100
SHARD_BYTES = SHARD_ROWS * 32_000  # of the synthetic index, whose rows have less
BLOCK_SHARDS = 4
WHOLE, RANGES = 0.0, 1.0  # as ``ranges_below``

Rows = np.ndarray[Any, np.dtype[np.int64]]


class Server:
    """The server process, and what it counts."""

    def __init__(self, folder: Path) -> None:
        script = Path(__file__).with_name("shards_server.py")
        command = [sys.executable, str(script), str(folder), str(LATENCY_MS), str(MEGABYTES_A_SECOND)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def sent(self) -> tuple[int, int]:
        """Requests and bytes since it was asked last."""
        with urllib.request.urlopen(f"{self.url}/sent") as answer:
            requests, size = answer.read().split()
        return int(requests), int(size)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def measured(make: Callable[[], Any], expected: Sequence[str], server: Server | None, first_batch: int = 0) -> Any:
    """One epoch of a new loader: seconds to the first batch and to the end, requests and bytes."""
    if server is not None:
        server.sent()
    start = time.perf_counter()
    keys, first = [], 0.0
    for batch in make():
        first = first or time.perf_counter() - start
        keys += batch[2]
    seconds = time.perf_counter() - start
    assert sorted(keys) == sorted(expected), "not the samples that were kept"
    requests, size = (0, 0) if server is None else server.sent()
    return {
        "samples": len(keys),
        "seconds": round(seconds, 3),
        "first_batch_seconds": round(first, 3),
        "samples_a_second": round(len(keys) / seconds),
        "requests": requests,
        "megabytes": round(size / 1e6, 2),
    }


def streamed(index: Any, coreset: Coreset | None, folder: Path, below: float, position: int = 0) -> Any:
    """A loader over an empty cache, in the middle of an epoch if ``position`` is given."""
    shutil.rmtree(folder, ignore_errors=True)
    dataset = shards.StreamedShards(
        index, coreset, DECODE, transform=_tuple, cache_dir=folder, ranges_below=below, shuffle_block=BLOCK_SHARDS
    )
    sampler = dataset.sampler(seed=1)
    sampler.load_state_dict({**sampler.state_dict(), "position": position})
    return DataLoader(dataset, BATCH, sampler=sampler, num_workers=WORKERS)


def over_network(folder: Path, local: Any, server: Server) -> list[dict[str, Any]]:
    urls = [f"{server.url}/{Path(url).name}" for url in local.shards]
    shards.build_index(urls, progress=False, workers=1).save(folder / "remote.parquet")
    index = shards.ShardIndex.load(folder / "remote.parquet")
    order, count, cache = np.random.default_rng(1).permutation(len(index)), len(index), folder / "cache"
    key = "{:08d}".format
    results = []

    def add(arm: str, keep: float, make: Callable[[Coreset | None], Any], rows: Rows | None = None) -> dict[str, Any]:
        kept = np.sort(order[: round(keep * count)]) if rows is None else rows
        coreset = None if keep == 1 else Coreset(kept, num_rows=count)
        figures = measured(lambda: make(coreset), [key(row) for row in kept.tolist()], server)
        lengths = [sum(member["size"] for member in each) for each in index.take(kept)["members"].to_pylist()]
        figures["bytes_over_kept"] = round(figures["megabytes"] * 1e6 / sum(lengths), 2)
        results.append({"arm": arm, "keep": keep, **figures})
        print(results[-1], file=sys.stderr, flush=True)
        return results[-1]

    options = {"batch_size": BATCH, "num_workers": WORKERS}
    web = lambda: wds.WebLoader(_web(urls).decode(DECODE).to_tuple("jpg", "cls", "__key__"), **options)  # noqa: E731
    add("webdataset", 1, lambda _: web())
    add("StreamedShards", 1, lambda coreset: streamed(index, coreset, cache, 0.1))
    half = count // BATCH // 2 * BATCH
    rest = list(itertools.islice(PrunedSampler(count, seed=1, shuffle=_blocks(index)), half, None))
    add("StreamedShards, resumed in the middle", 1, lambda _: streamed(index, None, cache, 0.1, half), np.sort(rest))
    for keep in (0.5, 0.2, 0.1, 0.05, 0.02):
        for below, name in ((WHOLE, "whole shards"), (RANGES, "kept ranges")):
            add(f"StreamedShards, {name}", keep, lambda c, below=below: streamed(index, c, cache, below))
    for keep in (0.5, 0.1):
        add("keep (stage)", keep, lambda coreset: _seeking(coreset, index, urls))
    add("IndexedShards", 0.05, lambda coreset: _indexed(coreset, index))
    return results


def _blocks(index: Any) -> BlockShuffle:
    return BlockShuffle(index.first_rows, BLOCK_SHARDS)


def on_disk(folder: Path, index: Any) -> list[dict[str, Any]]:
    """Everything from a local disk; other libraries from shards of their own formats."""
    expected = [f"{row:08d}" for row in range(len(index))]
    arms: dict[str, Callable[[], Any]] = {
        "webdataset": lambda: _loader(_web(index.shards)),
        "IndexedShards": lambda: DataLoader(
            shards.IndexedShards(index, None, DECODE, transform=_tuple),
            BATCH,
            sampler=PrunedSampler(len(index)),
            num_workers=WORKERS,
        ),
        "StreamedShards": lambda: streamed(index, None, folder / "cache", 0.1),
        "LitData": lambda: _litdata(folder, index),
        "MosaicML Streaming": lambda: _mosaic(folder, index),
    }
    found = []
    for name, make in arms.items():
        try:
            make()  # writes its format, if it is not there
            found.append({"arm": name, **measured(make, expected, None)})
        except Exception as error:  # a peer that is not installed, or fails
            found.append({"arm": name, "error": f"{type(error).__name__}: {error}"[:200]})
        print(found[-1], file=sys.stderr, flush=True)
    return found


def _files(index: Any) -> Iterator[dict[str, Any]]:
    for sample in wds.WebDataset(list(index.shards), shardshuffle=False):
        yield {"key": sample["__key__"], "jpg": sample["jpg"], "cls": sample["cls"]}


def _litdata(folder: Path, index: Any) -> Any:
    import litdata
    from litdata.streaming.writer import BinaryWriter

    if not (folder / "litdata").exists():
        writer = BinaryWriter(str(folder / "litdata"), chunk_bytes="8MB")
        for number, sample in enumerate(_files(index)):
            writer.add_item(number, sample)
        writer.done()
        writer.merge()
    dataset = litdata.StreamingDataset(str(folder / "litdata"), shuffle=True, transform=_OfDict())
    return litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=WORKERS)


def _mosaic(folder: Path, index: Any) -> Any:
    import streaming

    class Decoded(streaming.StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            return _OfDict()(super().__getitem__(at))

    if not (folder / "mds").exists():
        columns = {"key": "str", "jpg": "bytes", "cls": "bytes"}
        with streaming.MDSWriter(out=str(folder / "mds"), columns=columns, size_limit=8 << 20) as writer:
            for sample in _files(index):
                writer.write(sample)
    return DataLoader(
        Decoded(local=str(folder / "mds"), batch_size=BATCH, shuffle=True), batch_size=BATCH, num_workers=WORKERS
    )


def shuffling(count: int = 100_000, groups: int = 100) -> list[dict[str, Any]]:
    """How far apart neighbours of the dataset come, and how alike batches are, beside a full permutation (1.0)."""
    first_rows = np.linspace(0, count, groups + 1).astype(np.int64)

    def webdataset(buffer: int) -> Rows:
        rng = np.random.default_rng(0)
        rows = itertools.chain.from_iterable(
            range(first_rows[group], first_rows[group + 1]) for group in rng.permutation(groups)
        )
        import random

        stream = wds.filters._shuffle(rows, buffer, min(100, buffer), rng=random.Random(0), handler=None)
        return np.fromiter(stream, np.int64, count)

    orders = {"a full permutation": np.array(list(PrunedSampler(count)))}
    for block in (1, 2, 4, 8, 16):
        orders[f"blocks of {block} shards"] = np.array(
            list(PrunedSampler(count, shuffle=BlockShuffle(first_rows, block)))
        )
    for buffer in (1000, 5000):
        orders[f"webdataset, shards shuffled, buffer of {buffer}"] = webdataset(buffer)
    found = []
    for name, order in orders.items():
        assert np.array_equal(np.sort(order), np.arange(count))
        place = np.empty(count, np.int64)
        place[order] = np.arange(count)
        value = (np.arange(count) - (count - 1) / 2) / np.sqrt((count**2 - 1) / 12)  # a label that follows the rows
        batches = order[: count // 256 * 256].reshape(-1, 256)
        shards_in = [len(np.unique(batch // (count // groups))) for batch in batches]
        found.append(
            {
                "order": name,
                "distance": round(float(np.abs(np.diff(place)).mean() / (count / 3)), 3),
                "spread_of_batches": round(float(value[batches].mean(1).std() * 16), 2),
                "shards_in_a_batch": round(float(np.mean(shards_in)), 1),
            }
        )
    return found


def memory_of(sample: Any) -> tuple[float, float]:
    """Megabytes of this process that are its own, and that it shares in proportion."""
    kilobytes = dict.fromkeys(("Pss", "Private_Clean", "Private_Dirty"), 0)
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        if name in kilobytes:
            kilobytes[name] = int(value.split()[0])
    return (kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]) / 1e3, kilobytes["Pss"] / 1e3


class SyntheticRows(Synthetic):
    """Without digests, which only a file's rows are compared with."""

    def __init__(self, rows: int, folder: Path) -> None:
        self.shards = [
            Shard(str(folder / f"{number:06d}.tar"), SHARD_ROWS, SHARD_BYTES, -1, True, "", "")
            for number in range(rows // SHARD_ROWS)
        ]


def write_headers(index: Any, shard: int) -> None:
    """A tar of holes, with the headers that the index says."""
    with open(index.shards[shard], "wb") as file:
        file.truncate(index.records[shard].size)
        for row in index.table(shard).to_pylist():
            for member in row["members"]:
                name = f"{row['key']}.{member['extension']}".encode()
                header = name.ljust(124, b"\0") + b"%011o\0" % member["size"]
                file.seek(member["offset"] - BLOCK)
                file.write(header)


def memory(rows: int, folder: Path) -> dict[str, Any]:
    """A worker's memory, and the time to its first batch, in the middle of an epoch of so many rows."""
    index = shards.ShardIndex(SyntheticRows(rows, folder))  # type: ignore[arg-type]
    coreset = Coreset(np.arange(0, rows, 2), num_rows=rows)
    found: dict[str, Any] = {"rows": rows, "shards": len(index.shards)}
    for name, kept in (("all", None), ("half", coreset)):
        count = rows if kept is None else len(kept)
        start = time.perf_counter()
        dataset = shards.StreamedShards(index, kept, memory_of)
        made = time.perf_counter()
        sampler = dataset.sampler(seed=1)
        sampler.load_state_dict({**sampler.state_dict(), "epoch": 3, "position": count // 2 + 5})
        first = list(itertools.islice(sampler, 20 * BATCH))
        resumed = time.perf_counter() - made
        for shard in {row // SHARD_ROWS for row in first}:
            write_headers(index, shard)
        sampler.load_state_dict({**sampler.state_dict(), "epoch": 3, "position": count // 2 + 5})
        loader = DataLoader(dataset, BATCH, sampler=sampler, num_workers=WORKERS)
        own, shared = zip(*(max(zip(*batch, strict=True)) for batch in itertools.islice(loader, 20)), strict=True)
        found[name] = {
            "seconds_to_make": round(made - start, 2),
            "seconds_to_resume": round(resumed, 3),
            "own_megabytes": round(float(max(own)), 1),
            "proportional_megabytes": round(float(max(shared)), 1),
        }
    plain = DataLoader(_Nothing(), BATCH, num_workers=WORKERS)
    found["worker_of_nothing_megabytes"] = round(float(max(map(max, (batch[0] for batch in plain)))), 1)
    return found


class _Nothing(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 20 * BATCH

    def __getitem__(self, row: int) -> Any:
        return memory_of(row)


def table(report: dict[str, Any]) -> list[str]:
    lines = [
        f"{report['images']} images in {report['shards']} shards, {WORKERS} workers, empty cache, one run each; "
        f"{LATENCY_MS} ms a request, {MEGABYTES_A_SECOND} MB/s. {report['machine']}.",
        "",
        "| over HTTP | keep | seconds | ratio to its full epoch | first batch, s | samples/s | requests | MB | bytes "
        "fetched / kept |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    full = {each["arm"]: each["seconds"] for each in report["network"] if each["keep"] == 1}
    for each in report["network"]:
        base = full["webdataset" if not each["arm"].startswith("StreamedShards") else "StreamedShards"]
        lines.append(
            f"| {each['arm']} | {each['keep']} | {each['seconds']:.2f} | {each['seconds'] / base:.2f} "
            f"| {each['first_batch_seconds']:.2f} | {each['samples_a_second']} | {each['requests']} "
            f"| {each['megabytes']:.1f} | {each['bytes_over_kept']:.2f} |"
        )
    lines += ["", "| local disk, everything kept | samples/s | first batch, s |", "| --- | ---: | ---: |"]
    for each in report["local"]:
        figures = each.get("error") or f"{each['samples_a_second']} | {each['first_batch_seconds']:.2f}"
        lines.append(f"| {each['arm']} | {figures} |")
    lines += [
        "",
        "| order of 100,000 rows in 100 shards | distance of neighbours, full permutation = 1 | spread of means of "
        "batches of 256, full permutation = 1 | shards in a batch |",
        "| --- | ---: | ---: | ---: |",
    ]
    for each in report["shuffling"]:
        measures = f"{each['distance']:.3f} | {each['spread_of_batches']:.2f} | {each['shards_in_a_batch']}"
        lines.append(f"| {each['order']} | {measures} |")
    found = report["memory"]
    lines += [
        "",
        f"| {found['rows']:,} rows in {found['shards']:,} shards | own memory of a worker, MB | in proportion, MB | "
        "to the row in the middle of an epoch, s |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name in ("all", "half"):
        each = found[name]
        measures = f"{each['own_megabytes']} | {each['proportional_megabytes']} | {each['seconds_to_resume']}"
        lines.append(f"| {name} kept | {measures} |")
    lines.append(f"| a worker of a dataset of nothing | {found['worker_of_nothing_megabytes']} | | |")
    return lines


def main() -> None:
    parser = make_parser(__doc__, table)
    parser.add_argument("--data", type=Path, help="a folder with cifar10-train.parquet; without it, noise")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--rows", type=int, default=10**8, help="of the synthetic index")
    given = parser.parse_args()
    if given.smoke:
        given.images, given.shards, given.pixels, given.rows = 256, 4, 48, 10**5
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=ResourceWarning)  # webdataset leaves its files to the garbage collector
    report = circumstances("numpy", "webdataset") | {"images": given.images, "shards": given.shards}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        (folder / "served").mkdir()
        index = write_shards(folder / "served", given.data, given.images, given.shards, given.pixels)
        server = Server(folder / "served")
        stack.callback(server.close)
        report["network"] = over_network(folder, index, server)
        report["local"] = on_disk(folder, index)
        report["shuffling"] = shuffling()
        (folder / "synthetic").mkdir()
        report["memory"] = memory(given.rows, folder / "synthetic")
    lines = table(report)
    save_report(report, given.out, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
