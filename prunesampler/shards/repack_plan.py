"""Which samples go into which new shard, and where: known before anything is written."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prunesampler._random import hash64, mix
from prunesampler.errors import ArgumentError, UnsupportedError
from prunesampler.shards.index import ShardIndex
from prunesampler.shards.locations import Locations
from prunesampler.shards.packing import END, header_sizes, padded
from prunesampler.tables.columns import Int64s
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.parquet import content_digest

__all__ = ["Layout", "shard_number", "split_pattern"]

_FORMAT = 1
_PATTERN = re.compile(r"([^{}/\0\n]*)\{shard(?::\d{0,2}d?)?\}([^{}/\0\n]*\.tar)")


def split_pattern(out: str) -> tuple[str, str]:
    """The folder of new shards, and the pattern of their names in it.

    Raises:
        ArgumentError: there is not one decimal field ``{shard}``, in the name of the file; or that does not end in
            ``.tar``, or is hidden.

    >>> split_pattern("out/{shard:06d}.tar")
    ('out', '{shard:06d}.tar')
    """
    folder, slash, name = out.rpartition("/")
    if "{" in folder or not _PATTERN.fullmatch(name) or name.format(shard=0).startswith("."):
        raise ArgumentError("out", "must be like 'folder/{shard:06d}.tar', with {shard} only in the file's name", out)
    if folder.endswith(":/") or not folder:
        folder += slash
    return folder or ".", name


def shard_number(name: str, file: str) -> int | None:
    """The number of the shard whose name, by this pattern, is that of a file; None where there is none.

    >>> shard_number("{shard:06d}.tar", "000012.tar"), shard_number("{shard:06d}.tar", "12.tar")
    (12, None)
    """
    found = _PATTERN.fullmatch(name)
    assert found
    digits = file[len(found[1]) : len(file) - len(found[2])].strip(" ")
    number = int(digits) if digits.isascii() and digits.isdigit() else -1
    return number if number >= 0 and name.format(shard=number) == file else None


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """New shards of kept samples, filled up to ``maxsize`` one after the other.

    Args:
        index: of the samples.
        coreset: which of them; None: all.
        maxsize: bytes of a new shard, at most; a larger sample has a shard of its own.
        shuffle: mix the samples of all shards, in an order that depends on ``seed`` alone.
        seed: any int.
        rename: make the numbers of their rows the keys.

    Raises:
        UnsupportedError: a key is in several shards, and ``rename`` is false; or ``shuffle`` is true and a shard can
            only be read from front to back.

    Attributes:
        locations: of the K kept samples.
        order: (K,) positions in ``locations``, as they are written.
        first: (S + 1,) int64; new shard ``s`` has ``order[first[s]]`` to below ``order[first[s + 1]]``.
        sizes: (S,) int64, bytes of the new shards.
        keys: (K,) strings, in the order written.
        content_sizes: (K,) int64, bytes of each sample's files, in the order written.
    """

    index: ShardIndex
    coreset: Coreset | None
    maxsize: int
    shuffle: bool
    seed: int
    rename: bool

    def __post_init__(self) -> None:
        if not self.rename:
            self._check_keys()
        if self.shuffle:
            for number in np.unique(self.locations.shards).tolist():
                if not self.index.seekable(number):
                    raise UnsupportedError(
                        f"{self.index.shards[number]} is compressed or streamed, so it cannot be shuffled: repack "
                        "without shuffling first, then shuffle what that gave"
                    )

    def __len__(self) -> int:
        return len(self.first) - 1

    @functools.cached_property
    def locations(self) -> Locations:
        """See the class."""
        return Locations(self.index, None if self.coreset is None else self.coreset.rows)

    @functools.cached_property
    def order(self) -> Int64s:
        """See the class."""
        rows = self.locations.rows
        return np.argsort(hash64(mix(self.seed), rows), kind="stable") if self.shuffle else np.arange(len(rows))

    @functools.cached_property
    def keys(self) -> pa.LargeStringArray:
        """See the class."""
        if not self.rename:
            return self.locations.keys.take(pa.array(self.order))
        digits = pa.array(self.locations.rows[self.order]).cast(pa.large_string())
        return pc.utf8_lpad(digits, width=len(str(len(self.index) - 1)), padding="0")

    @functools.cached_property
    def first(self) -> Int64s:
        """See the class."""
        ends = np.cumsum(self._sample_sizes)
        first, room = [0], self.maxsize - len(END)
        while first[-1] < len(ends):
            before = int(ends[first[-1] - 1]) if first[-1] else 0
            first.append(max(int(np.searchsorted(ends, before + room, "right")), first[-1] + 1))
        return np.array(first, np.int64)

    @functools.cached_property
    def content_sizes(self) -> Int64s:
        """See the class."""
        sizes: Int64s = np.add.reduceat(self.locations.sizes, self.locations.starts[:-1])[self.order]
        return sizes

    @functools.cached_property
    def sizes(self) -> Int64s:
        """See the class."""
        sums: Int64s = np.add.reduceat(self._sample_sizes, self.first[:-1]) + len(END)
        return sums

    def digest(self, name: str) -> str:
        """What a repeated run is recognised by: all that the bytes of the new shards, so named, depend on."""
        state = hashlib.sha256()
        for shard in self.index.records:
            state.update(shard.digest.encode())
        kept = None if self.coreset is None else content_digest({}, {"row": self.coreset.rows})
        options: dict[str, object] = {
            "maxsize": self.maxsize,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "rename": self.rename,
        }
        options |= {"format": _FORMAT, "index": state.hexdigest(), "kept": kept, "name": name}
        return content_digest(options, {})

    @functools.cached_property
    def _sample_sizes(self) -> Int64s:
        """(K,) bytes of each sample in the new tars, in the order written."""
        held = self.locations
        extensions = np.array([len(extension.encode()) for extension in held.extensions], np.int64)
        lengths = np.empty(len(held), np.int64)
        lengths[self.order] = pc.binary_length(self.keys).to_numpy()
        names = np.repeat(lengths, np.diff(held.starts)) + 1 + extensions[held.codes]
        sizes: Int64s = np.add.reduceat(header_sizes(names) + padded(held.sizes), held.starts[:-1])[self.order]
        return sizes

    def _check_keys(self) -> None:
        keys = self.locations.keys
        if pc.count_distinct(keys).as_py() == len(keys):
            return
        counts = pc.value_counts(keys)
        key = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
        places = np.flatnonzero(pc.equal(keys, key).to_numpy(zero_copy_only=False))
        first, second = (self.index.shards[self.locations.shards[place]] for place in itertools.islice(places, 2))
        raise UnsupportedError(
            f"key {key!r} is in both {first} and {second}, which could meet in one shard: rename the samples by their "
            "rows (rename=True, --rename)"
        )
