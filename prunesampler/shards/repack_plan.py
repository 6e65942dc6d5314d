"""Which samples go into which new shard, and where: known before anything is written."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prunesampler._random import hash64, mix
from prunesampler.errors import ArgumentError, UnsupportedError
from prunesampler.shards.index import ShardIndex
from prunesampler.shards.index_file import SCHEMA, Shard, key_digest, row_digest
from prunesampler.shards.range_reader import Locations
from prunesampler.shards.tar import BLOCK, padded
from prunesampler.tables.columns import Int64s
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.parquet import content_digest

END = bytes(2 * BLOCK)
"""What an archive ends with."""

_FORMAT = 2
_PATTERN = re.compile(r"([^{}/\0\n]*)\{shard(?::\d{0,2}d?)?\}([^{}/\0\n]*\.tar)")


def split_pattern(out: str) -> tuple[str, str]:
    """The folder of new shards, and the pattern of their names in it."""
    folder, slash, name = out.rpartition("/")
    if "{" in folder or not _PATTERN.fullmatch(name) or name.format(shard=0).startswith("."):
        raise ArgumentError("out", "must be like 'folder/{shard:06d}.tar', with {shard} only in the file's name", out)
    if folder.endswith(":/") or not folder:
        folder += slash
    return folder or ".", name


def is_shard_name(file: str, name: str) -> bool:
    """Whether a file is called as this pattern would call a shard."""
    pattern = _PATTERN.fullmatch(name)
    assert pattern
    found = re.fullmatch(re.escape(pattern[1]) + " *([0-9]+)" + re.escape(pattern[2]), file)
    return found is not None and name.format(shard=int(found[1])) == file


def header_sizes(name_lengths: Int64s) -> Int64s:
    """Bytes of the headers that ``tarfile`` writes in GNU's format, for names of so many bytes."""
    return np.where(name_lengths > 100, 2 * BLOCK + padded(name_lengths + 1), BLOCK)


class Samples(NamedTuple):
    """P samples that follow one another in a new shard, with M files."""

    shards: Int64s  # numbers of the old shards
    firsts: Int64s  # where each sample begins and ends in its old shard
    ends: Int64s
    keys: list[str]
    new_keys: list[str]
    counts: list[int]  # of each sample's files
    extensions: list[str]  # of each file, with its offset and size in the old shard
    offsets: list[int]
    sizes: list[int]

    def files(self) -> Iterator[Iterator[tuple[str, int, int]]]:
        """Extension, offset and size of each sample's files; take a sample's before the next."""
        files = zip(self.extensions, self.offsets, self.sizes, strict=True)
        return (itertools.islice(files, count) for count in self.counts)


class RepackPlan:
    """New shards of kept samples, filled up to ``maxsize`` one after the other.

    A sample's bytes reach from the end of the sample before it in its old shard to its own end, in whole blocks. So
    all headers of its files belong to it; and so do folders and links that stand before it.

    Arguments and refusals are those of :func:`prunesampler.shards.repack`; ``name`` is the pattern of the new names.

    Attributes:
        rows: (K,) int64, in the order that they are written in.
        first: (S + 1,) int64; new shard ``s`` has ``rows[first[s]]`` to below ``rows[first[s + 1]]``.
        sizes: (S,) int64, bytes of the new shards.
        digest: of all that the bytes of the new shards depend on.
    """

    def __init__(
        self,
        index: ShardIndex,
        coreset: Coreset | None,
        name: str,
        *,
        maxsize: int = 10**9,
        shuffle: bool = False,
        seed: int = 0,
        rename: bool = False,
    ) -> None:
        self.index, self.coreset, self.name, self.rename = index, coreset, name, rename
        self.digest = self._digest({"maxsize": maxsize, "shuffle": shuffle, "seed": seed, "rename": rename})
        self._digits = len(str(len(index) - 1))
        rows = np.arange(len(index)) if coreset is None else coreset.rows
        held = np.union1d(rows, rows[~np.isin(rows, index.first_rows)] - 1)  # the samples before them too
        self._files = Locations(index, held)
        places = np.searchsorted(held, rows)
        self._places = places[np.argsort(hash64(mix(seed), rows), kind="stable")] if shuffle else places
        self.rows: Int64s = held[self._places]
        if shuffle:
            self._check_seekable()
        if not rename:
            self._check_keys()
        files = self._files
        self._ends = (files.offsets + padded(files.sizes))[files.starts[1:] - 1]
        self._firsts = np.where(np.isin(held, index.first_rows), 0, np.roll(self._ends, 1))
        self._lengths: Int64s = (self._ends - self._firsts)[self._places]
        if rename:
            extensions = np.array([len(extension.encode()) for extension in files.extensions], np.int64)
            self._blocks = header_sizes(self._digits + 1 + extensions[files.codes]) + padded(files.sizes)
            self._lengths = np.add.reduceat(self._blocks, files.starts[:-1])[self._places]
        stops, room, first = np.cumsum(self._lengths), maxsize - len(END), [0]
        while first[-1] < len(stops):
            before = int(stops[first[-1] - 1]) if first[-1] else 0
            first.append(max(int(np.searchsorted(stops, before + room, "right")), first[-1] + 1))
        self.first = np.array(first, np.int64)
        self.sizes: Int64s = np.add.reduceat(self._lengths, self.first[:-1]) + len(END)

    def __len__(self) -> int:
        return len(self.sizes)

    def batches(self, number: int, most_bytes: int, most_samples: int) -> Iterator[Samples]:
        """The samples of a new shard, about so many bytes and at most so many samples at a time."""
        here, end = self.first[number : number + 2].tolist()
        stops = np.cumsum(self._lengths[here:end])
        first = here
        while here < end:
            before = int(stops[here - first - 1]) if here > first else 0
            there = first + int(np.searchsorted(stops, before + most_bytes, "right"))
            there = min(max(there, here + 1), here + most_samples, end)
            yield self._samples(here, there)
            here = there

    def record(self, number: int, url: str, modified: int) -> tuple[Shard, pa.Table]:
        """What an index says of a new shard: as if its headers were read, but with the labels of the old index."""
        first, end = self.first[number : number + 2].tolist()
        held, places = self._files, self._places[first:end]
        starts, files = held.files_of(places)
        if self.rename:
            offsets = np.cumsum(self._blocks[files]) - padded(held.sizes[files])
        else:
            lengths = self._lengths[first:end]
            moved = np.cumsum(lengths) - lengths - self._firsts[places]
            offsets = held.offsets[files] + np.repeat(moved, np.diff(starts))
        extensions = pa.array(held.extensions, pa.string()).take(pa.array(held.codes[files]))
        members = pa.StructArray.from_arrays(
            [extensions, pa.array(offsets), pa.array(held.sizes[files])], ["extension", "offset", "size"]
        )
        listed = pa.ListArray.from_arrays(pa.array(starts, pa.int32()), members)
        old = self.index.labels
        labels = np.full(end - first, -1) if old is None else old[self.rows[first:end]]
        columns = [self._keys(first, end), listed, pa.array(labels, pa.int32(), mask=labels < 0)]
        table = pa.Table.from_arrays(columns, names=SCHEMA.names).cast(SCHEMA)
        size = int(self.sizes[number])
        return Shard(url, len(table), size, modified, True, key_digest(table), row_digest(table)), table

    def _samples(self, first: int, end: int) -> Samples:
        held, places = self._files, self._places[first:end]
        starts, files = held.files_of(places)
        return Samples(
            held.shards[places].astype(np.int64),
            self._firsts[places],
            self._ends[places],
            held.keys.take(pa.array(places)).to_pylist(),
            self._keys(first, end).to_pylist(),
            np.diff(starts).tolist(),
            [held.extensions[code] for code in held.codes[files].tolist()],
            held.offsets[files].tolist(),
            held.sizes[files].tolist(),
        )

    def _keys(self, first: int, end: int) -> pa.LargeStringArray:
        if not self.rename:
            return self._files.keys.take(pa.array(self._places[first:end]))
        digits = pa.array(self.rows[first:end]).cast(pa.large_string())
        return pc.utf8_lpad(digits, width=self._digits, padding="0")

    def _digest(self, options: dict[str, object]) -> str:
        state = hashlib.sha256()
        for shard in self.index.records:
            state.update(shard.digest.encode())
        kept = None if self.coreset is None else content_digest({}, {"row": self.coreset.rows})
        options |= {"format": _FORMAT, "index": state.hexdigest(), "kept": kept, "name": self.name}
        return content_digest(options, {})

    def _check_seekable(self) -> None:
        for number in np.unique(self._files.shards).tolist():
            if not self.index.seekable(number):
                raise UnsupportedError(
                    f"{self.index.shards[number]} is compressed or the output of a command, so its samples cannot be "
                    "shuffled: repack without shuffling first, then shuffle the new shards"
                )

    def _check_keys(self) -> None:
        keys = self._files.keys.take(pa.array(np.sort(self._places)))
        if pc.count_distinct(keys).as_py() == len(keys):
            return
        counts = pc.value_counts(keys)
        key = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
        twice = np.sort(self.rows)[np.flatnonzero(pc.equal(keys, key).to_numpy(zero_copy_only=False))[:2]]
        first, second = (self.index.shards[self.index.shard_of(row)] for row in twice.tolist())
        raise UnsupportedError(
            f"key {key!r} is in both {first} and {second}, and the samples could come into one shard: name samples by "
            "their rows (rename=True, --rename)"
        )
