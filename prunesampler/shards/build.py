"""Shards in, index out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import closing

import numpy as np
import pyarrow as pa

from prunesampler.errors import ArgumentError, MismatchError, PruneSamplerWarning, UnsupportedError
from prunesampler.shards.index import ShardIndex
from prunesampler.shards.labels import Label
from prunesampler.shards.store import MemoryRows, Shard
from prunesampler.shards.urls import absolute_path, expand_urls, local_path
from prunesampler.shards.workers import scan_shards

__all__ = ["build_index"]


def build_index(
    urls: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    label: Label = "cls",
    index: ShardIndex | None = None,
    repeated_keys: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> ShardIndex:
    """Give every sample of tar shards a row, from the tars' headers.

    Samples are grouped as webdataset groups them: neighbours with the same key. Plain tars are read by seeking over
    the bodies; gzip, zstd, bz2 and xz ones, commands and remote ones by streaming each once.

    Args:
        urls: shards in the order of their rows: local paths and globs, ``http:``, ``pipe:``, whatever fsspec knows;
            braces and ``::`` as in webdataset.
        label: the extension, in lower case, of a file that holds the class index as text; or a function of a key and
            a mapping from extension in lower case to bytes (read when looked at) that returns the class index, or
            None; or None for no labels. A sample without such a file, or with −1, has no label.
        index: an older one, to which shards are added: its rows keep their numbers, those of new shards come after
            them, and only new shards are read. A shard that is newer than the index is read again, and may stay if its
            samples are where they were.
        repeated_keys: allow a key in several shards; samples are then told by shard and key.
        workers: shards read at once, each in a process; by default 2 for each processor, 32 at most.
        progress: show a bar.

    Raises:
        ArgumentError: no shards, one given twice, a glob without matches, or a wrong option.
        OSError: a shard cannot be read.
        CorruptFileError: a shard is no tar, damaged, or cut short.
        MismatchError: a shard changed since ``index`` was made.
        UnsupportedError: a key is in several shards, the files of a sample are not neighbours or share an extension,
            a sparse file, a label that is no int, or no sample at all. The message names shard and key.

    Shards without samples are kept, with no rows, and warned about.

    >>> import io, tarfile, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with tarfile.open(f"{folder}/0.tar", "w") as tar:
    ...         for name, content in (("a.jpg", b"..."), ("a.cls", b"3"), ("b.jpg", b"..")):
    ...             file = tarfile.TarInfo(name)
    ...             file.size = len(content)
    ...             tar.addfile(file, io.BytesIO(content))
    ...     index = build_index(f"{folder}/{{0..0}}.tar", progress=False)
    >>> index, index.labels, index.members(1)
    (ShardIndex(rows=2, shards=1), array([ 3, -1], dtype=int32), [Member(extension='jpg', offset=2560, size=2)])
    """
    if not (label is None or callable(label) or (isinstance(label, str) and label and label == label.lower())):
        raise ArgumentError("label", "must be an extension in lower case, a function, or None", label)
    if workers is None:
        workers = min(32, 2 * (os.cpu_count() or 1))
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
        raise ArgumentError("workers", "must be an int >= 1", workers)
    given = expand_urls(urls)
    known = {} if index is None else {absolute_path(shard.url): shard for shard in index.records}
    new = [url for url in given if absolute_path(url) not in known]
    touched = [url for url in given if absolute_path(url) in known and _touched(url, known[absolute_path(url)])]
    scanned = _scan([*touched, *new], label, workers, progress)
    for url, (shard, _) in zip(touched, scanned, strict=False):
        if shard.digest != known[absolute_path(url)].digest:
            raise _changed(url)
    fresh = scanned[len(touched) :]
    empty = [shard.url for shard, _ in fresh if not shard.rows]
    older = None if index is None else index.store
    rows = MemoryRows([shard for shard, _ in fresh], [table for _, table in fresh], older)
    built = ShardIndex(rows)
    if not len(built):
        raise UnsupportedError(f"no sample in any of {len(built.shards)} shards, the first of which is {given[0]}")
    if fresh and not repeated_keys:
        _check_keys(built)
    if empty:
        shown = ", ".join(empty[:3]) + (", …" if len(empty) > 3 else "")
        warnings.warn(f"{len(empty)} of {len(new)} shards hold no sample: {shown}", PruneSamplerWarning, stacklevel=2)
    return built


def _touched(url: str, shard: Shard) -> bool:
    """Whether a local shard must be read again to know that it is as it was."""
    path = local_path(url)
    if path is None or shard.modified < 0:
        return False
    status = os.stat(path)
    if status.st_size != shard.size:
        raise _changed(url)
    return status.st_mtime_ns != shard.modified


def _changed(url: str) -> MismatchError:
    return MismatchError(
        f"{url} has changed since it was indexed: rows of the old index would be other samples, so start a new one"
    )


def _scan(urls: Sequence[str], label: Label, workers: int, progress: bool) -> list[tuple[Shard, pa.Table]]:
    from tqdm import tqdm

    found: dict[int, tuple[Shard, pa.Table]] = {}
    with (
        closing(scan_shards(urls, label, workers)) as scanned,
        tqdm(scanned, "indexing", len(urls), unit=" shards", disable=not (progress and urls)) as bar,
    ):
        for place, shard, table in bar:
            found[place] = shard, table
    return [found[place] for place in range(len(urls))]


def _check_keys(index: ShardIndex) -> None:
    """Refuse a key that is in two shards. Holds a number of 8 bytes for each key, never the keys."""
    hashes = np.empty(len(index), np.int64)
    for number in range(len(index.shards)):
        rows = index.rows_of(number)
        # Python's own hash differs from run to run; here it only has to tell keys apart within this call
        hashes[rows.start : rows.stop] = np.fromiter(map(hash, index.keys_of(number).to_pylist()), np.int64, len(rows))
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    candidates = np.flatnonzero(ordered[1:] == ordered[:-1])
    for place in candidates[np.argsort(order[candidates])].tolist():
        first, second = int(order[place]), int(order[place + 1])
        if index.key(first) == index.key(second):
            raise UnsupportedError(
                f"key {index.key(first)!r} is in both {index.shards[index.shard_of(first)]} and "
                f"{index.shards[index.shard_of(second)]}: rename samples, or allow repeated keys"
            )
