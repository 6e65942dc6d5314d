"""Kept samples, copied into shards of their own."""

from __future__ import annotations

import functools
import importlib
import json
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from prunesampler._version import __version__
from prunesampler.errors import ArgumentError, CorruptFileError, StateError
from prunesampler.shards.dataset import load_coreset
from prunesampler.shards.index import ShardIndex
from prunesampler.shards.output_folder import Folder
from prunesampler.shards.pieces import pieces
from prunesampler.shards.repack_plan import Layout, shard_number, split_pattern
from prunesampler.shards.store import Shard
from prunesampler.shards.urls import local_path
from prunesampler.shards.verify import planned, verified
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.parquet import write_columns

__all__ = ["repack"]

_READ = 8 << 20
_PLAN, _ROWS, _INDEX = "repack.json", "rows.parquet", "index.parquet"


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
    progress: bool = True,
    engine: Literal["local", "ray"] = "local",
) -> ShardIndex:
    """Copy kept samples into new shards: the files byte for byte, their headers without times and owners.

    A shard is written under a hidden name, and named when it is complete, on disk, and reads back as it was written;
    ``index.parquet`` comes last. A run that was interrupted is taken up by repeating it, and ends in the same bytes;
    only complete shards are kept, once their headers were read. Beside the shards lie ``index.parquet``, their index,
    with the old labels; ``rows.parquet``, which has for each new ``row`` its ``source_row`` and, where the coreset has
    weights, its ``weight``; and ``repack.json``, what is being written. Keys stay as they were, so scores are carried
    over by them.

    Args:
        index: of the samples, or the path of one.
        coreset: which of them, or the path of it; None: all.
        out: a local path or a URL that fsspec can write to, like ``"out/{shard:06d}.tar"``. Nothing outside its
            folder is written.
        maxsize: bytes of a new shard, at most; a larger sample has a shard of its own.
        shuffle: mix the samples of all shards, once, in an order that ``seed`` gives.
        seed: any int.
        rename: make the numbers of their old rows the keys; wanted where shards repeat keys.
        workers: shards written at once; by default one more than there are processors, and 8 at most.
        overwrite: replace what another repack, or anything else, left under such names in that folder.
        progress: show a bar.
        engine: ``"ray"`` writes each shard in a task of Ray Data, on whichever node; the shards and ``out`` must then
            be found there, and ``workers`` and ``progress`` are not read.

    Returns:
        The index of the new shards.

    Raises:
        ArgumentError: an argument breaks its rule; the folder is one that is read from; or with ``"ray"`` shards are
            named by relative paths.
        StateError: the folder holds other shards, or an index, and ``overwrite`` is false; or another process is
            writing to it.
        MismatchError: the coreset belongs to other shards, or a shard has changed since it was indexed.
        CorruptFileError: a shard is cut short, or a new one does not hold what was written.
        UnsupportedError: keys repeat; or a compressed shard was to be shuffled; or Ray is not installed.
        OSError: something cannot be read or written.

    >>> import io, tarfile, tempfile
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
    if engine not in ("local", "ray"):
        raise ArgumentError("engine", 'must be "local" or "ray"', engine)
    workers = _whole("workers", min(8, (os.cpu_count() or 1) + 1) if workers is None else workers, 1)
    folder_url, name = split_pattern(os.fspath(out))
    maxsize, seed = _whole("maxsize", maxsize, 1), _whole("seed", seed)
    read = index if isinstance(index, str | os.PathLike) else None
    index = index if isinstance(index, ShardIndex) else ShardIndex.load(index)
    if coreset is not None:
        coreset = load_coreset(coreset, index)
    _check_apart(folder_url, [*index.shards, *([] if read is None else [os.fspath(read)])], out)
    if engine == "ray":
        _check_reach(index)
    layout = Layout(index, coreset, maxsize, shuffle, seed, rename)
    folder = Folder(folder_url)
    with folder.locked():
        done = _begin(folder, layout, name, overwrite)
        missing = [number for number in range(len(layout)) if number not in done]
        if engine == "ray":
            _write_on_ray(folder, layout, name, missing)
        else:
            _write_shards(folder, layout, name, missing, workers, progress)
        return _finish(folder, layout, name, done, workers)


def _whole(argument: str, value: Any, least: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        raise ArgumentError(argument, "must be an int" + ("" if least is None else f" >= {least}"), value)
    return value


def _check_apart(folder: str, read: list[str], out: str | os.PathLike[str]) -> None:
    """Refuse to write where something is read."""
    path = local_path(folder)
    mine = folder.rstrip("/") if path is None else os.path.realpath(path)
    for url in read:
        other = local_path(url)
        theirs = url.rpartition("/")[0] if other is None else os.path.dirname(os.path.realpath(other))
        if mine == theirs:
            raise ArgumentError("out", f"must be another folder than that of {url}, which is read", os.fspath(out))


def _check_reach(index: ShardIndex) -> None:
    """Refuse paths that other processes would look for elsewhere."""
    for url in index.shards:
        path = local_path(url)
        if path is not None and not os.path.isabs(path):
            raise ArgumentError("index", 'must name shards by absolute paths or URLs with engine="ray"', url)


def _begin(folder: Folder, layout: Layout, name: str, overwrite: bool) -> set[int]:
    """Make the folder ready. Returns the numbers of the shards that an earlier run has completed."""
    plan = layout.digest(name)
    sizes = folder.sizes()
    for left in [each for each in sizes if each.startswith(".") and each.endswith(".part")]:
        if _is_ours(left[1:-5], name):
            folder.remove(left)
            del sizes[left]
    ours = [each for each in sizes if _is_ours(each, name)]
    if _plan_in(folder, sizes) == plan:
        written = {number: sizes.get(name.format(shard=number)) for number in range(len(layout))}
        expected = layout.sizes.tolist()
        wrong = [number for number, size in written.items() if size not in (None, expected[number])]
        if not wrong:
            return {number for number, size in written.items() if size is not None}
        reason = f"{name.format(shard=wrong[0])} there is not what was written"
    else:
        reason = f"{min(ours)} is there already" if ours else ""
    if reason and not overwrite:
        raise StateError(f"{folder.url}: {reason}: write to another folder, or overwrite (overwrite=True, --overwrite)")
    for each in sorted(ours, key=lambda each: each != _INDEX):  # the index first: it vouches for the others
        folder.remove(each)
    content = {"library": __version__, "plan": plan, "samples": len(layout.locations), "shards": len(layout)}
    with folder.writing(_PLAN) as file:
        file.write(json.dumps(content).encode())
    return set()


def _plan_in(folder: Folder, sizes: dict[str, int]) -> object:
    try:
        return json.loads(folder.read(_PLAN))["plan"] if _PLAN in sizes else None
    except (ValueError, LookupError, TypeError):
        return None


def _is_ours(file: str, name: str) -> bool:
    """Whether a run with this pattern could write a file of this name."""
    return file in (_PLAN, _ROWS, _INDEX) or shard_number(name, file) is not None


def _write_shards(folder: Folder, layout: Layout, name: str, numbers: list[int], workers: int, progress: bool) -> None:
    from tqdm import tqdm

    if not numbers:
        return
    total, stopped = int(layout.sizes[numbers].sum()), threading.Event()
    pool = ThreadPoolExecutor(min(workers, len(numbers)), "prunesampler-repack")
    with tqdm(total=total, desc="repacking", unit="B", unit_scale=True, disable=not progress) as bar:
        try:
            jobs = [pool.submit(_write_shard, folder, layout, name, number, bar, stopped) for number in numbers]
            for job in as_completed(jobs):
                job.result()
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


def _write_on_ray(folder: Folder, layout: Layout, name: str, numbers: list[int]) -> None:
    engine = importlib.import_module("prunesampler.integrations.ray").RayEngine()  # a level above; an extra
    url = folder.url if folder.path is None else os.path.abspath(folder.path)
    if numbers:
        engine.map(functools.partial(_write_alone, url, layout, name), numbers)


def _write_alone(folder: str, layout: Layout, name: str, number: int) -> pa.Table:
    from tqdm import tqdm

    with tqdm(disable=True) as bar:
        _write_shard(Folder(folder), layout, name, number, bar, threading.Event())
    return pa.table({"number": [number]})


def _write_shard(folder: Folder, layout: Layout, name: str, number: int, bar: Any, stopped: threading.Event) -> None:
    with folder.writing(name.format(shard=number)) as file:
        for piece in pieces(layout, number):
            if stopped.is_set():
                raise InterruptedError("another shard failed")
            file.write(piece)
            bar.update(len(piece))
        if file.size != layout.sizes[number]:
            raise CorruptFileError(f"{name.format(shard=number)} has {file.size} bytes, not {layout.sizes[number]}")


def _finish(folder: Folder, layout: Layout, name: str, done: set[int], workers: int) -> ShardIndex:
    """Read the shards that an earlier run left, compare them with what was planned, and write the index."""
    before = "" if folder.url == "." else folder.url.rstrip("/") + "/"
    urls = [before + name.format(shard=number) for number in range(len(layout))]

    def shard(number: int) -> tuple[Shard, pa.Table]:
        if number in done:
            return verified(layout, number, urls[number])
        return planned(layout, number, urls[number], folder.modified(name.format(shard=number)))

    with ThreadPoolExecutor(workers, "prunesampler-repack") as pool:
        found = list(pool.map(shard, range(len(layout))))
    fresh = ShardIndex.from_tables([shard for shard, _ in found], [table for _, table in found])
    rows: dict[str, Any] = {"row": np.arange(len(fresh)), "source_row": layout.locations.rows[layout.order]}
    if layout.coreset is not None and layout.coreset.weights is not None:
        rows["weight"] = layout.coreset.weights[layout.order]
    with tempfile.TemporaryDirectory() as scratch:
        write_columns(f"{scratch}/{_ROWS}", {"kind": "repacked", "source": layout.index.fingerprint}, rows)
        fresh.save(f"{scratch}/{_INDEX}")
        for file in (_ROWS, _INDEX):
            with open(f"{scratch}/{file}", "rb") as source, folder.writing(file) as target:
                while block := source.read(_READ):
                    target.write(block)
    return fresh if folder.path is None else ShardIndex.load(os.path.join(folder.path, _INDEX))
