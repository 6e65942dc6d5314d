"""Where every sample of a set of tar shards lies, and which row it is."""

from __future__ import annotations

import functools
import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prunesampler.errors import ArgumentError
from prunesampler.shards.store import FileRows, MemoryRows, Rows, Shard, write_index
from prunesampler.shards.urls import absolute_path, file_name, find_shard
from prunesampler.tables.columns import Int64s, row_numbers

__all__ = ["Member", "ShardIndex"]

_CACHED_KEYS = 262_144


class Member(NamedTuple):
    """One file of a sample.

    Attributes:
        extension: as the tar has it; webdataset's name for it is the same in lower case.
        offset: of its first byte in the uncompressed tar.
        size: in bytes.
    """

    extension: str
    offset: int
    size: int


class ShardIndex:
    """The samples of tar shards: ``len(index)`` rows, those of one shard contiguous. Immutable.

    Made by :func:`prunesampler.shards.build_index` or :meth:`load`. A loaded index reads and verifies only what is
    asked for, a few thousand rows at a time, and pickles as the path of its file.

    Attributes:
        store: what the rows are read from.
        shards: (S,) URLs, as they were given when they were indexed; position in the list is the shard's number.
        first_rows: (S + 1,) int64, read-only; shard ``s`` has the rows from ``first_rows[s]`` to below the next.
        fingerprint: of the keys in their order; moving, renaming or compressing shards does not change it.

    Wherever a ``shard`` is asked for, its number does, or its URL as :meth:`shard_number` understands it.
    """

    def __init__(self, store: Rows) -> None:
        self.store = store
        self.shards: list[str] = [shard.url for shard in store.shards]
        self.first_rows: Int64s = np.zeros(len(self.shards) + 1, np.int64)
        np.cumsum([shard.rows for shard in store.shards], out=self.first_rows[1:])
        self.first_rows.flags.writeable = False
        self._numbers: dict[str, int] = {}
        self._lookups: OrderedDict[int, dict[str, int]] = OrderedDict()

    def __len__(self) -> int:
        return int(self.first_rows[-1])

    def __repr__(self) -> str:
        return f"ShardIndex(rows={len(self)}, shards={len(self.shards)})"

    def __getstate__(self) -> Rows:
        return self.store

    def __setstate__(self, store: Rows) -> None:
        self.__init__(store)  # type: ignore[misc]

    @property
    def records(self) -> Sequence[Shard]:
        """(S,) what is known of each shard: url, rows, size in bytes, modification time, seekable, digest."""
        return self.store.shards

    @functools.cached_property
    def fingerprint(self) -> str:
        """``"sha256:…"`` of the keys of every shard."""
        state = hashlib.sha256(b"shards")
        for shard in self.records:
            state.update(shard.keys.encode())
        return "sha256:" + state.hexdigest()

    @functools.cached_property
    def labels(self) -> npt.NDArray[np.int32] | None:
        """(N,) int32 class indices, read-only, −1 where a sample has none; None where no sample has one."""
        return self.store.labels()

    def shard_number(self, url: str | int) -> int:
        """The number of a shard.

        Args:
            url: a number in [0, S), or what webdataset puts into ``__url__``: the URL as indexed; another spelling of
                the same local path (relative, absolute, ``file:``); or a shard of the same file name in another
                place, if that name is unique here and a local file has the size that was indexed. Of a ``pipe:``
                command, the word that names a shard.

        Raises:
            ArgumentError: no shard of this index, or it cannot be told which.
        """
        if not isinstance(url, str):
            if not 0 <= url < len(self.shards):
                raise ArgumentError("shard", f"must be in [0, {len(self.shards)})", url)
            return int(url)
        number = self._numbers.get(url)
        if number is None:
            number = self._numbers[url] = find_shard(url, self._by_url, self._by_name, self.records)
        return number

    def rows_of(self, shard: str | int) -> range:
        """The rows of one shard, ascending; empty for a shard without samples."""
        number = self.shard_number(shard)
        return range(int(self.first_rows[number]), int(self.first_rows[number + 1]))

    def shard_of(self, row: int) -> int:
        """The number of the shard that a row lies in.

        Raises:
            ArgumentError: not in [0, N).
        """
        if not 0 <= row < len(self):
            raise ArgumentError("row", f"must be in [0, {len(self)})", row)
        return int(np.searchsorted(self.first_rows, row, "right")) - 1

    def seekable(self, shard: str | int) -> bool:
        """Whether members can be read at their offsets: an uncompressed tar that is not the output of a command."""
        return self.records[self.shard_number(shard)].seekable

    def table(self, shard: str | int) -> pa.Table:
        """The rows of one shard, verified: ``key`` string, ``members`` list of (extension, offset, size), ``label``.

        Raises:
            CorruptFileError: these rows of the index's file are damaged.
        """
        return self.store.read(self.shard_number(shard))

    def keys_of(self, shard: str | int) -> pa.LargeStringArray:
        """The keys of one shard in row order."""
        return pa.concat_arrays([*self.table(shard)["key"].chunks, pa.array([], pa.large_string())])

    def lookup(self, shard: str | int) -> dict[str, int]:
        """Key → row, of one shard. Do not change it: those of the shards used last are kept, some 10⁵ keys in all."""
        number = self.shard_number(shard)
        rows = self._lookups.get(number)
        if rows is None:
            rows = dict(zip(self.keys_of(number).to_pylist(), self.rows_of(number), strict=True))
            self._lookups[number] = rows
            while len(self._lookups) > 1 and sum(map(len, self._lookups.values())) > _CACHED_KEYS:
                self._lookups.popitem(last=False)
        else:
            self._lookups.move_to_end(number)
        return rows

    def row(self, shard: str | int, key: str) -> int:
        """The row of a sample.

        Raises:
            ArgumentError: no such shard, or no such key in it.
        """
        try:
            return self.lookup(shard)[key]
        except KeyError:
            raise ArgumentError("key", f"must be one of shard {self.shards[self.shard_number(shard)]}", key) from None

    def key(self, row: int) -> str:
        """The key of a row."""
        shard = self.shard_of(row)
        text: str = self.table(shard)["key"][row - int(self.first_rows[shard])].as_py()
        return text

    def members(self, row: int) -> list[Member]:
        """The files of a row in the order of the tar. For many rows, :meth:`take` is far cheaper."""
        shard = self.shard_of(row)
        listed = self.table(shard)["members"][row - int(self.first_rows[shard])].as_py()
        return [Member(**member) for member in listed]

    def take(self, rows: npt.ArrayLike) -> pa.Table:
        """The given rows and no others in memory, each part of the file read once.

        Args:
            rows: (K,) ascending int64 in [0, N).

        Returns:
            K rows: ``row`` int64, ``shard`` int32 (its number), ``key``, ``members``, and ``label`` (null where a
            sample has none).

        Raises:
            ArgumentError: none, out of range, or not ascending.
        """
        wanted = row_numbers("rows", rows, len(self))
        if (np.diff(wanted) <= 0).any():
            raise ArgumentError("rows", "must be ascending, each once", wanted)
        numbers = np.searchsorted(self.first_rows, wanted, "right") - 1
        parts = []
        for part in np.split(np.arange(len(wanted)), np.flatnonzero(np.diff(numbers)) + 1):
            number = int(numbers[part[0]])
            parts.append(self.table(number).take(pa.array(wanted[part] - self.first_rows[number])))
        table = pa.concat_tables(parts).combine_chunks()
        table = table.add_column(0, "shard", pa.array(numbers, pa.int32()))
        return table.add_column(0, "row", pa.array(wanted))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index: all of it or nothing.

        A Parquet file with one row a sample: ``row`` int64 ascending, ``shard``, ``key``, ``members`` (a list of
        structs: ``extension``, ``offset``, ``size``), ``label`` int32 (null where there is none).

        Raises:
            OSError: the file cannot be written; an older one is then still intact.
        """
        write_index(path, self.store, self.fingerprint, self.labels)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ShardIndex:
        """Open what :meth:`save` wrote. The list of shards is read and verified now, rows when they are asked for.

        Raises:
            FileNotFoundError: no such file.
            CorruptFileError: damaged, cut short, edited, or not a file of ours.
            MismatchError: of another kind, or a newer format.
        """
        return cls(FileRows(path))

    @classmethod
    def from_tables(cls, shards: Sequence[Shard], tables: Sequence[pa.Table]) -> ShardIndex:
        """An index in memory, of tables in the form that :meth:`table` gives."""
        return cls(MemoryRows(shards, tables))

    @functools.cached_property
    def _by_url(self) -> dict[str, int]:
        numbers = {absolute_path(url): number for number, url in enumerate(self.shards)}
        return numbers | {url: number for number, url in enumerate(self.shards)}

    @functools.cached_property
    def _by_name(self) -> dict[str, int]:
        numbers: dict[str, int] = {}
        for number, url in enumerate(self.shards):
            name = file_name(url)
            numbers[name] = -1 if name in numbers else number
        return numbers
