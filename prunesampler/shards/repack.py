"""Kept samples, copied into new shards."""

from __future__ import annotations

import functools
import json
import os
import shutil
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from prunesampler._version import __version__
from prunesampler.errors import ArgumentError, CorruptFileError, StateError, check_choice, check_int
from prunesampler.selection.engine import RayEngine
from prunesampler.shards.build import scan_shard
from prunesampler.shards.dataset import load_coreset
from prunesampler.shards.index import ShardIndex
from prunesampler.shards.index_file import Shard
from prunesampler.shards.output_folder import OutputFolder
from prunesampler.shards.range_reader import RangeReader
from prunesampler.shards.repack_plan import END, RepackPlan, Samples, is_shard_name, split_pattern
from prunesampler.shards.sources import Source, open_source
from prunesampler.shards.tar import BLOCK, check_header
from prunesampler.shards.urls import local_path
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.parquet import write_columns

_PLAN, _ROWS, _INDEX = "repack.json", "rows.parquet", "index.parquet"
_PLAN_BYTES = 1 << 20  # a larger one is not ours
_BATCH_BYTES, _BATCH_SAMPLES = 8 << 20, 1024
_OPEN_FILES = 32


def repack(
    index: ShardIndex | str | os.PathLike[str],
    coreset: Coreset | str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    maxsize: int = 1_000_000_000,
    shuffle: bool = False,
    seed: int = 0,
    rename: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
    allow_commands: bool = False,
    progress: bool = True,
    engine: Literal["local", "ray"] = "local",
) -> ShardIndex:
    """Copy kept samples into new shards: their headers and files byte for byte.

    A shard has a hidden name until it is complete and on disk. ``index.parquet`` is written last. To go on with a run
    that was interrupted, repeat it: shards that are complete stay, once their headers were read, and the result is the
    same to the byte. Beside the shards lie ``index.parquet``, their index, with the old labels; ``rows.parquet``, which
    has for each new ``row`` its ``source_row`` and, where the coreset has weights, its ``weight``; and ``repack.json``,
    which says what is being written. Keys stay as they were, so scores can be carried over by them.

    Args:
        index: of the samples, or its path.
        coreset: which of them, or the path of its file; None: all.
        out: a local path or a URL that fsspec can write to, like ``"out/{shard:06d}.tar"``. Nothing outside its
            folder is written.
        maxsize: bytes of a new shard, at most; a larger sample has a shard of its own.
        shuffle: mix the samples of all shards, once, in an order that depends only on ``seed``.
        seed: any int.
        rename: make the old row numbers the keys, in headers that are written anew; wanted where shards repeat keys.
        workers: shards written at once; by default one more than there are processors, and 8 at most.
        overwrite: replace what another repack, or anything else, left under such names in that folder.
        allow_commands: accept an index, given as a path, that names commands (``pipe:``), and run them.
        progress: show a bar.
        engine: ``"ray"`` writes each shard in a task of Ray, on any node; every node must find the shards and
            ``out`` under these names, and ``workers`` and ``progress`` have no effect.

    Returns:
        The index of the new shards.

    Raises:
        ArgumentError: an argument breaks its rule; the folder is one that is read from; or with ``"ray"`` shards are
            named by relative paths.
        StateError: the folder holds other shards, or an index, and ``overwrite`` is false; or another process is
            writing to it.
        MismatchError: the coreset belongs to other shards, or a shard has changed since it was indexed.
        CorruptFileError: a shard is cut short, or one that an earlier run left does not hold what it should.
        UnsupportedError: keys repeat; a compressed shard was to be shuffled; the index's file names commands that
            were not allowed; or Ray is not installed.
        OSError: something cannot be read or written.

    >>> import io, tempfile
    >>> from prunesampler.shards.build import build_index
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with tarfile.open(f"{folder}/0.tar", "w") as tar:
    ...         for key in "abc":
    ...             file = tarfile.TarInfo(f"{key}.txt")
    ...             file.size = 5
    ...             tar.addfile(file, io.BytesIO(f"I'm {key}".encode()))
    ...     index = build_index(f"{folder}/0.tar", progress=False)
    ...     fresh = repack(index, Coreset([0, 2], num_rows=3), f"{folder}/out/{{shard:06d}}.tar", progress=False)
    ...     fresh, fresh.key(1), sorted(os.listdir(f"{folder}/out"))
    (ShardIndex(rows=2, shards=1), 'c', ['000000.tar', 'index.parquet', 'repack.json', 'rows.parquet'])
    """
    check_choice("engine", engine, ("local", "ray"))
    workers = check_int("workers", min(8, (os.cpu_count() or 1) + 1) if workers is None else workers, 1)
    check_int("maxsize", maxsize, 1)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ArgumentError("seed", "must be an int", seed)
    folder_url, name = split_pattern(os.fspath(out))
    index_path = None if isinstance(index, ShardIndex) else os.fspath(index)
    index = index if isinstance(index, ShardIndex) else ShardIndex.load(index, allow_commands=allow_commands)
    coreset_path = os.fspath(coreset) if isinstance(coreset, str | os.PathLike) else None
    coreset = None if coreset is None else load_coreset(coreset, index)
    read = [*index.shards, *([] if index_path is None else [index_path])]
    for url in index.shards if engine == "ray" else ():
        if not os.path.isabs(local_path(url) or "/"):  # other processes would look for it elsewhere
            raise ArgumentError("index", 'must name shards by absolute paths or URLs with engine="ray"', url)
    plan = RepackPlan(index, coreset, name, maxsize=maxsize, shuffle=shuffle, seed=seed, rename=rename)
    folder = OutputFolder(folder_url)
    _check_apart(folder, read, [] if coreset_path is None else [coreset_path], out)
    with folder.locked():
        done = _begin(folder, plan, overwrite)
        missing = [number for number in range(len(plan)) if number not in done]
        if engine == "ray":
            _write_on_ray(folder, plan, missing)
        else:
            _write_here(folder, plan, missing, workers, progress)
        return _finish(folder, plan, done, workers)


def _check_apart(folder: OutputFolder, read: list[str], beside: list[str], out: str | os.PathLike[str]) -> None:
    """Refuse to write to a folder that is read from, under whatever name, or that has a link to what is read.

    The files ``beside`` may lie in it, if no file that is written would replace them.
    """
    for url in read:
        if folder.holds(url):
            raise ArgumentError("out", f"must be another folder than that of {url}, which is read", os.fspath(out))
    for file in folder.links_to([*read, *beside]):
        if file in (_PLAN, _ROWS, _INDEX) or file.endswith(".tar"):
            raise ArgumentError("out", f"must be a folder without {file}, which is read", os.fspath(out))


def _begin(folder: OutputFolder, plan: RepackPlan, overwrite: bool) -> set[int]:
    """Make the folder ready. Returns the numbers of the shards that an earlier run has completed."""

    def is_ours(file: str) -> bool:
        return file in (_PLAN, _ROWS, _INDEX) or is_shard_name(file, plan.name)

    sizes = folder.sizes()
    ours = set(filter(is_ours, sizes))
    for file in sizes:
        if file.startswith(".") and file.endswith(".part") and is_ours(file[1:-5]):
            folder.remove(file)
    if sizes.get(_PLAN, _PLAN_BYTES) < _PLAN_BYTES and _digest_in(folder) == plan.digest:
        written = {number: sizes.get(plan.name.format(shard=number)) for number in range(len(plan))}
        wrong = [number for number, size in written.items() if size not in (None, plan.sizes[number])]
        if not wrong:
            return {number for number, size in written.items() if size is not None}
        reason = f"{plan.name.format(shard=wrong[0])} has {written[wrong[0]]} bytes, not {plan.sizes[wrong[0]]}"
    else:
        reason = f"{min(ours)} is there already" if ours else ""
    if reason and not overwrite:
        raise StateError(f"{folder.url}: {reason}: write to another folder, or overwrite (overwrite=True, --overwrite)")
    for file in sorted(ours, key=lambda file: file != _INDEX):  # the index first: it vouches for the others
        folder.remove(file)
    content = {"library": __version__, "plan": plan.digest, "samples": len(plan.rows), "shards": len(plan)}
    with folder.writing(_PLAN) as target:
        target.write(json.dumps(content).encode())
    return set()


def _digest_in(folder: OutputFolder) -> object:
    try:
        return json.loads(folder.read(_PLAN))["plan"]
    except (ValueError, LookupError, TypeError):
        return None


def _write_here(folder: OutputFolder, plan: RepackPlan, numbers: list[int], workers: int, progress: bool) -> None:
    from tqdm import tqdm

    if not numbers:
        return
    total, stopped = int(plan.sizes[numbers].sum()), threading.Event()
    pool = ThreadPoolExecutor(min(workers, len(numbers)), "prunesampler-repack")
    with tqdm(total=total, desc="repacking", unit="B", unit_scale=True, disable=not progress) as bar:

        def written(count: int) -> None:
            bar.update(count)
            if stopped.is_set():
                raise InterruptedError("another shard failed")

        try:
            jobs = [pool.submit(_write_shard, folder, plan, number, written) for number in numbers]
            for job in as_completed(jobs):
                job.result()
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


def _write_on_ray(folder: OutputFolder, plan: RepackPlan, numbers: list[int]) -> None:
    url = folder.url if folder.path is None else os.path.abspath(folder.path)
    if numbers:
        for _ in RayEngine().map(functools.partial(_write_in_task, url, plan), numbers):
            pass


def _write_in_task(folder: str, plan: RepackPlan, number: int) -> None:
    _write_shard(OutputFolder(folder), plan, number, lambda count: None)


def _write_shard(folder: OutputFolder, plan: RepackPlan, number: int, written: Callable[[int], None]) -> None:
    with folder.writing(plan.name.format(shard=number)) as file, closing(_SampleReader(plan.index)) as reader:
        for samples in plan.batches(number, _BATCH_BYTES, _BATCH_SAMPLES):
            parts = reader.read(samples)
            if plan.rename:
                parts = [b"".join(_renamed(samples, parts))]
            for part in parts:
                file.write(part)
            folder.start_writeback(file)
            written(sum(map(len, parts)))
        file.write(END)
        if file.tell() != plan.sizes[number]:
            raise CorruptFileError(f"expected {plan.sizes[number]} bytes in new shard {number}; got {file.tell()}")


def _renamed(samples: Samples, parts: Sequence[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The files of samples under their new keys, each with a new header before it."""
    for part, key, first, files in zip(parts, samples.new_keys, samples.firsts, samples.files(), strict=True):
        for extension, offset, size in files:
            info = tarfile.TarInfo(f"{key}.{extension}")
            info.size, info.mode = size, 0o444
            yield info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")
            yield part[offset - first : offset - first + size + -size % BLOCK]


class _SampleReader:
    """The bytes of samples: read at their offsets, or streamed where that is impossible. Not thread-safe."""

    def __init__(self, index: ShardIndex) -> None:
        self._index, self._ranges = index, RangeReader(index, _OPEN_FILES)
        self._open = ExitStack()
        self._streamed: tuple[int, Source] | None = None

    def close(self) -> None:
        """Close all files."""
        self._ranges.close()
        self._open.close()

    def read(self, samples: Samples) -> list[memoryview | bytes]:
        """Each sample's headers and files as they are; those of a shard that is streamed ascend from call to call."""
        numbers, inverse = np.unique(samples.shards, return_inverse=True)
        seekable = np.array([self._index.seekable(number) for number in numbers.tolist()])[inverse]
        ranged = iter(self._ranges.read(*(column[seekable] for column in samples[:3])))
        columns = (column.tolist() for column in (seekable, *samples[:3]))
        parts: list[memoryview | bytes] = []
        for seek, shard, first, end, key, files in zip(*columns, samples.keys, samples.files(), strict=True):
            part = next(ranged) if seek else self._stream(shard, first, end)
            url = self._index.shards[shard]
            for extension, offset, size in files:
                check_header(url, part[offset - first - BLOCK : offset - first], f"{key}.{extension}", size)
            parts.append(part)
        return parts

    def _stream(self, shard: int, first: int, end: int) -> bytes:
        if self._streamed is None or self._streamed[0] != shard:
            self._open.close()
            self._streamed = shard, self._open.enter_context(open_source(self._index.shards[shard]))
        data = self._streamed[1].take(first, end - first)
        if len(data) < end - first:
            raise CorruptFileError(f"{self._index.shards[shard]} is cut short")
        return data


def _finish(folder: OutputFolder, plan: RepackPlan, done: set[int], workers: int) -> ShardIndex:
    """Check the shards that an earlier run left, and write the index."""
    before = "" if folder.url == "." else folder.url.rstrip("/") + "/"

    def shard(number: int) -> tuple[Shard, pa.Table]:
        file = plan.name.format(shard=number)
        planned, table = plan.record(number, before + file, folder.modified(file))
        if number in done and scan_shard(planned.url, None)[0].digest != planned.digest:
            raise CorruptFileError(f"{planned.url} does not hold the files that were written to it: remove it")
        return planned, table

    with ThreadPoolExecutor(workers, "prunesampler-repack") as pool:
        found = list(pool.map(shard, range(len(plan))))
    fresh = ShardIndex.from_tables([shard for shard, _ in found], [table for _, table in found])
    rows: dict[str, Any] = {"row": np.arange(len(fresh)), "source_row": plan.rows}
    if plan.coreset is not None and plan.coreset.weights is not None:
        rows["weight"] = plan.coreset.weights[np.searchsorted(plan.coreset.rows, plan.rows)]
    with tempfile.TemporaryDirectory() as scratch:
        write_columns(f"{scratch}/{_ROWS}", {"kind": "repacked", "source": plan.index.fingerprint}, rows)
        fresh.save(f"{scratch}/{_INDEX}")
        for file in (_ROWS, _INDEX):
            with open(f"{scratch}/{file}", "rb") as source, folder.writing(file) as target:
                shutil.copyfileobj(source, target)
    return fresh if folder.path is None else ShardIndex.load(os.path.join(folder.path, _INDEX))
