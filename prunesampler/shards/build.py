"""Shards in, index out: headers are scanned in several processes, because parsing them is bound by Python."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prunesampler.errors import (
    ArgumentError,
    MismatchError,
    PruneSamplerWarning,
    StateError,
    UnsupportedError,
    check_bool,
    check_int,
)
from prunesampler.shards.index import ShardIndex
from prunesampler.shards.index_file import SCHEMA, Shard, key_digest, row_digest
from prunesampler.shards.sources import Source, open_source
from prunesampler.shards.tar import Members, is_reserved, split_name, split_names, tar_members
from prunesampler.shards.urls import absolute_path, check_commands, expand_urls, local_path

_WORTH_FORKING = 0.2  # seconds of work left
_HELD_BYTES, _COPIED_BYTES = 16 << 20, 1 << 20  # of a sample in memory, before it goes to disk, and at once

LabelFunction = Callable[[str, Mapping[str, bytes]], int | None]
Label = str | LabelFunction | None
"""Where labels come from: the extension of a file that holds an int, a function of key and files, or nowhere."""


def build_index(
    urls: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    label: Label = "cls",
    index: ShardIndex | None = None,
    repeated_keys: bool = False,
    allow_commands: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> ShardIndex:
    """Give every sample of tar shards a row, from the tars' headers.

    Samples are grouped as webdataset groups them: neighbours with the same key. In plain local tars only the headers
    are read; compressed shards, commands and remote shards are streamed once.

    Args:
        urls: shards in the order of their rows: local paths and globs, ``http:``, ``pipe:``, whatever fsspec knows;
            braces and ``::`` as in webdataset.
        label: the extension, in lower case, of a file that holds the class index as text; or a function of a key and
            a mapping from extension in lower case to bytes (read on access) that returns the class index, or None;
            or None for no labels. A sample without such a file, or with −1, has no label.
        index: an older index to add shards to: its rows keep their numbers, those of new shards follow, and only new
            shards are read. A known shard with a newer modification time is read again and must be unchanged, its
            labels too unless ``label`` is None.
        repeated_keys: allow a key in several shards; samples are then identified by shard and key.
        allow_commands: accept ``pipe:`` URLs among ``urls``, and run them.
        workers: shards read at once, each in a process; by default 2 per processor, at most 32.
        progress: show a bar.

    Raises:
        ArgumentError: no shards, one given twice, a glob without matches, or a wrong option.
        OSError: a shard cannot be read.
        CorruptFileError: a shard is not a tar, damaged, or cut short.
        MismatchError: a shard changed since ``index`` was made.
        UnsupportedError: a key is in several shards, the files of a sample are not neighbours or share an extension,
            a sparse file, a label that is not an int, or no sample at all. The message names shard and key.
        StateError: a process that read shards was killed.

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
    workers = check_int("workers", min(32, 2 * (os.cpu_count() or 1)) if workers is None else workers, 1)
    given = expand_urls(urls)
    check_commands("urls", given, check_bool("allow_commands", allow_commands))
    known = {} if index is None else {absolute_path(shard.url): shard for shard in index.records}
    new = [url for url in given if absolute_path(url) not in known]
    newer = [url for url in given if absolute_path(url) in known and _is_newer(url, known[absolute_path(url)])]
    scanned = scan_shards([*newer, *new], label, workers, progress)
    for url, (shard, table) in zip(newer, scanned, strict=False):
        if shard.digest != known[absolute_path(url)].digest:
            raise _changed(url)
        if index is not None and label is not None and not table["label"].equals(index.table(url)["label"]):
            raise MismatchError(
                f"{url} has other labels than when it was indexed: start a new index (index=None, --rebuild), or leave "
                "its labels as they are (label=None, --label '')"
            )
    fresh = scanned[len(newer) :]
    built = ShardIndex.from_tables([shard for shard, _ in fresh], [table for _, table in fresh], index)
    if not len(built):
        raise UnsupportedError(f"no sample in any of {len(built.shards)} shards, the first of which is {given[0]}")
    if fresh and not repeated_keys:
        _check_keys(built)
    empty = [shard.url for shard, _ in fresh if not shard.rows]
    if empty:
        shown = ", ".join(empty[:3]) + (", …" if len(empty) > 3 else "")
        warnings.warn(f"{len(empty)} of {len(new)} shards hold no sample: {shown}", PruneSamplerWarning, stacklevel=2)
    return built


def _is_newer(url: str, shard: Shard) -> bool:
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


def _check_keys(index: ShardIndex) -> None:
    """Refuse a key that is in two shards. Holds 8 bytes a key, never the keys."""
    # Python's own hash differs from run to run; here it only has to tell keys apart within this call
    keys = (index.keys_of(number).to_pylist() for number in range(len(index.shards)))
    hashes = np.concatenate([np.fromiter(map(hash, some), np.int64, len(some)) for some in keys])
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


def scan_shards(
    urls: Sequence[str], label: Label, workers: int, progress: bool = False
) -> list[tuple[Shard, pa.Table]]:
    """Read shards, ``workers`` of them at once. Processes are forked once the rest would take long enough."""
    from tqdm import tqdm

    begun, found = time.perf_counter(), {}
    with tqdm(desc="indexing", total=len(urls), unit=" shards", disable=not (progress and urls)) as bar:
        for place, url in enumerate(urls):
            found[place] = scan_shard(url, label)
            bar.update()
            left = range(place + 1, len(urls))
            seconds_left = (time.perf_counter() - begun) / left.start * len(left)
            if workers > 1 and len(left) > 1 and seconds_left > _WORTH_FORKING:
                with closing(_scan_in_processes(urls, left, label, min(workers, len(left)))) as scanned:
                    for later, shard, table in scanned:
                        found[later] = shard, table
                        bar.update()
                break
    return [found[place] for place in range(len(urls))]


def _scan_in_processes(
    urls: Sequence[str], places: range, label: Label, workers: int
) -> Generator[tuple[int, Shard, pa.Table], None, None]:
    context = multiprocessing.get_context("fork")
    processes, open_ends = [], []
    try:
        for worker in range(workers):
            receiver, sender = context.Pipe(duplex=False)
            options = sender, urls, places[worker::workers], label
            process = context.Process(target=_scan_in_child, args=options, daemon=True)
            process.start()
            sender.close()
            processes.append(process)
            open_ends.append(receiver)
        missing = len(places)
        while missing:
            if not open_ends:
                raise StateError(f"a process that read shards was killed; {missing} of {len(urls)} are not read")
            for ready in wait(open_ends):
                assert isinstance(ready, Connection)
                try:
                    result = ready.recv()
                except EOFError:
                    open_ends.remove(ready)
                    continue
                if isinstance(result, Exception):
                    raise result
                missing -= 1
                yield result
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _scan_in_child(sender: Connection, urls: Sequence[str], places: Sequence[int], label: Label) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, and ends its processes
    gc.disable()  # what the parent has left to be collected may wait for a lock of a thread that is not here (Ray)
    try:
        for place in places:
            sender.send((place, *scan_shard(urls[place], label)))
    except BrokenPipeError:
        return  # the parent is gone
    except Exception as error:
        sender.send(error)


def scan_shard(url: str, label: Label = "cls") -> tuple[Shard, pa.Table]:
    """The samples of one shard in the order of the tar. Of the files themselves only what labels need is read."""
    runs: list[Members] = []
    with open_source(url) as source:
        if callable(label):
            called = _call_for_labels(label, source, runs)
        else:
            runs.extend(tar_members(source))
    names = [name for run in runs for name in run.names]
    places, keys, extensions = split_names(pa.array(names, pa.large_string()))
    changes = pc.not_equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)
    samples = np.cumsum(np.append([0], changes))[: len(keys)]  # of each file
    starts = np.flatnonzero(np.append([True], changes)) if len(keys) else np.zeros(0, np.int64)
    sample_keys = keys.take(pa.array(starts))
    _check_samples(url, sample_keys, samples, extensions)
    labels = np.full(len(starts), -1, np.int32)
    if callable(label):
        labels = _class_indices(url, sample_keys, called)
    elif label is not None:
        small = [content for run in runs for content in run.small]
        kinds = [kind for kind, name in enumerate(extensions.dictionary.to_pylist()) if name.lower() == label]
        labelled = np.flatnonzero(np.isin(extensions.indices.to_numpy(), kinds))
        texts, owners = [small[place] for place in places[labelled].tolist()], samples[labelled]
        labels[owners] = _class_indices(url, sample_keys.take(pa.array(owners)), texts)
    inside = [extensions.dictionary.cast(pa.string()).take(extensions.indices)]
    for column in ("offsets", "sizes"):
        whole = np.concatenate([np.zeros(0, np.int64), *(getattr(run, column) for run in runs)])
        inside.append(pa.array(whole[places]))
    struct = pa.StructArray.from_arrays(inside, ["extension", "offset", "size"])
    listed = pa.ListArray.from_arrays(pa.array(np.append(starts, len(keys)), pa.int32()), struct)
    columns = [sample_keys, listed, pa.array(labels, mask=labels < 0)]
    table = pa.Table.from_arrays(columns, names=SCHEMA.names).cast(SCHEMA)
    shard = Shard(url, len(table), source.size, source.modified, source.seekable, key_digest(table), row_digest(table))
    return shard, table


def _check_samples(
    url: str, sample_keys: pa.LargeStringArray, samples: npt.NDArray[np.int64], extensions: pa.DictionaryArray
) -> None:
    if pc.count_distinct(sample_keys).as_py() < len(sample_keys):
        key, _ = Counter(sample_keys.to_pylist()).most_common(1)[0]
        raise UnsupportedError(
            f"{url}: the files of sample {key!r} are not neighbours, so webdataset would take them for several samples"
        )
    for name in extensions.dictionary.to_pylist():
        if is_reserved(name):
            raise UnsupportedError(f"{url}: a file has the extension {name!r}, which webdataset uses itself: rename it")
    lower, kinds = np.unique([name.lower() for name in extensions.dictionary.to_pylist()], return_inverse=True)
    files = samples * len(lower) + kinds[extensions.indices.to_numpy()]
    found, counts = np.unique(files, return_counts=True)
    if len(found) < len(files):
        sample, kind = divmod(int(found[counts.argmax()]), len(lower))
        raise UnsupportedError(
            f"{url}: sample {sample_keys[sample].as_py()!r} has two files with the extension {str(lower[kind])!r}"
        )


def _class_indices(url: str, keys: pa.LargeStringArray, values: Sequence[object]) -> npt.NDArray[np.int32]:
    labels = np.full(len(values), -1, np.int32)
    for place, value in enumerate(values):
        number = -1 if value is None else -2
        if not isinstance(value, float | None):
            with suppress(TypeError, ValueError):
                number = int(value)  # type: ignore[call-overload]
        if not -1 <= number < 2**31:
            raise UnsupportedError(
                f"{url}: the label of sample {keys[place].as_py()!r} must be an int in [0, 2**31), got {value!r:.60}: "
                "name the extension of another file, or give a function, or None"
            )
        labels[place] = number
    return labels


def _call_for_labels(function: LabelFunction, source: Source, runs: list[Members]) -> list[int | None]:
    """What the function says of each sample, while the shard is read, into ``runs``."""

    called: list[int | None] = []
    for key, group in itertools.groupby(_named_files(source, runs), lambda file: file[0]):
        with tempfile.SpooledTemporaryFile(_HELD_BYTES) as passed:  # a stream does not give its bytes again
            readers: dict[str, Callable[[], bytes]] = {}
            for _, extension, offset, size in group:
                readers[extension] = partial(source.take, offset, size)
                if source.streamed:
                    readers[extension] = partial(_read_back, passed, passed.seek(0, os.SEEK_END), size)
                    for first in range(0, size, _COPIED_BYTES):
                        passed.write(source.take(offset + first, min(_COPIED_BYTES, size - first)))
            called.append(function(key, _Files(readers)))
    return called


def _named_files(source: Source, runs: list[Members]) -> Iterator[tuple[str, str, int, int]]:
    """Key, extension in lower case, offset and size of each file, none of which was read yet."""
    for run in tar_members(source):
        runs.append(run)
        for name, offset, size in zip(run.names, run.offsets.tolist(), run.sizes.tolist(), strict=True):
            if parts := split_name(name):
                yield parts[0], parts[1].lower(), offset, size


def _read_back(file: IO[bytes], offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


class _Files(Mapping[str, bytes]):
    """The files of a sample by extension, each read on access."""

    def __init__(self, readers: Mapping[str, Callable[[], bytes]]) -> None:
        self._readers = readers

    def __getitem__(self, extension: str) -> bytes:
        return self._readers[extension]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)
