"""Where every sample of a set of tar shards lies, and which row it is."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prunesampler._format import Shown
from prunesampler.errors import ArgumentError, check_bool, check_int
from prunesampler.shards.index_file import FileRows, MemoryRows, Rows, Shard, write_index
from prunesampler.shards.urls import ShardUrls, check_stored_urls
from prunesampler.tables.columns import Int64s, row_numbers

_CACHED_KEYS = 262_144


class Member(NamedTuple):
    """One file of a sample.

    Attributes:
        extension: as the tar has it; webdataset uses it in lower case.
        offset: of its first byte in the uncompressed tar.
        size: in bytes.
    """

    extension: str
    offset: int
    size: int


class ShardIndex(Shown):
    """The samples of tar shards: ``len(index)`` rows, those of one shard contiguous. Immutable.

    Made by :func:`prunesampler.shards.build_index` or :meth:`load`. A loaded index reads and verifies only the rows
    that are asked for, a few thousand at a time, and pickles as the path of its file.

    Attributes:
        shards: (S,) URLs, as they were given when they were indexed; the position in the list is the shard's number.
        first_rows: (S + 1,) int64, read-only; shard ``s`` has the rows from ``first_rows[s]`` to below the next.
        fingerprint: of the keys in their order; moving, renaming or compressing shards does not change it.

    Every ``shard`` argument is a number or a URL, as :meth:`shard_number` takes it.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.shards: list[str] = [shard.url for shard in rows.shards]
        self.first_rows: Int64s = np.cumsum([0, *(shard.rows for shard in rows.shards)])
        self.first_rows.flags.writeable = False
        self._lookups: dict[int, dict[str, int]] = {}  # the one used last at the end

    def __len__(self) -> int:
        return int(self.first_rows[-1])

    def _facts(self) -> dict[str, Any]:
        return {"rows": len(self), "shards": len(self.shards)}

    def __getstate__(self) -> Rows:
        return self._rows

    def __setstate__(self, rows: Rows) -> None:
        self.__init__(rows)  # type: ignore[misc]

    @property
    def records(self) -> Sequence[Shard]:
        """(S,) what is known of each shard: url, rows, size in bytes, modification time, seekable, digests."""
        return self._rows.shards

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
        return self._rows.labels()

    @functools.cached_property
    def _urls(self) -> ShardUrls:
        return ShardUrls(self.shards, [shard.size for shard in self.records])

    def shard_number(self, url: str | int) -> int:
        """The number of a shard.

        Args:
            url: a number in [0, S), or what webdataset puts into ``__url__``: the URL as indexed; another spelling of
                the same local path (relative, absolute, ``file:``); or a shard of the same file name in another
                place, if that name is unique here and a local file has the size that was indexed. Of a ``pipe:``
                command, the word that names a shard.

        Raises:
            ArgumentError: no shard of this index, or more than one.
        """
        if isinstance(url, str):
            return self._urls.number(url)
        return check_int("shard", url, 0, len(self.shards) - 1)

    def rows_of(self, shard: str | int) -> range:
        """The rows of one shard, ascending; empty for a shard without samples."""
        number = self.shard_number(shard)
        return range(int(self.first_rows[number]), int(self.first_rows[number + 1]))

    def shard_of(self, row: int) -> int:
        """The number of the shard that a row in [0, N) lies in; ArgumentError otherwise."""
        return int(np.searchsorted(self.first_rows, check_int("row", row, 0, len(self) - 1), "right")) - 1

    def seekable(self, shard: str | int) -> bool:
        """Whether files can be read at their offsets: an uncompressed tar that is not the output of a command."""
        return self.records[self.shard_number(shard)].seekable

    def table(self, shard: str | int) -> pa.Table:
        """The rows of one shard, verified: ``key`` string, ``members`` list of (extension, offset, size), ``label``.

        Raises:
            CorruptFileError: these rows of the index's file are damaged.
        """
        return self._rows.read(self.shard_number(shard))

    def keys_of(self, shard: str | int) -> pa.LargeStringArray:
        """The keys of one shard in row order."""
        return self.table(shard)["key"].combine_chunks()

    def lookup(self, shard: str | int) -> dict[str, int]:
        """Key → row of one shard. Do not change it: those used last are cached, about 10⁵ keys in all."""
        number = self.shard_number(shard)
        rows = self._lookups.pop(number, None)
        if rows is None:
            rows = dict(zip(self.keys_of(number).to_pylist(), self.rows_of(number), strict=True))
        self._lookups[number] = rows
        while len(self._lookups) > 1 and sum(map(len, self._lookups.values())) > _CACHED_KEYS:
            del self._lookups[next(iter(self._lookups))]
        return rows

    def row(self, shard: str | int, key: str) -> int:
        """The row of a sample; ArgumentError for a shard or key that is not here."""
        try:
            return self.lookup(shard)[key]
        except KeyError:
            raise ArgumentError("key", f"must be one of shard {self.shards[self.shard_number(shard)]}", key) from None

    def key(self, row: int) -> str:
        """The key of a row."""
        return str(self._entry(row, "key"))

    def members(self, row: int) -> list[Member]:
        """The files of a row in the order of the tar. For many rows, :meth:`take` is far cheaper."""
        return [Member(**member) for member in self._entry(row, "members")]

    def _entry(self, row: int, column: str) -> Any:
        shard = self.shard_of(row)
        return self.table(shard)[column][row - int(self.first_rows[shard])].as_py()

    def take(self, rows: npt.ArrayLike) -> pa.Table:
        """The given rows and no others in memory, each part of the file read once.

        Args:
            rows: (K,) ascending int64 in [0, N), at least one.

        Returns:
            K rows: ``row`` int64, ``shard`` int32 (its number), ``key``, ``members``, and ``label`` (null where a
            sample has none).
        """
        wanted = row_numbers("rows", rows, len(self))
        if (np.diff(wanted) <= 0).any():
            raise ArgumentError("rows", "must be ascending, each once", wanted)
        numbers = np.searchsorted(self.first_rows, wanted, "right") - 1
        parts = []
        for part in np.split(np.arange(len(wanted)), np.flatnonzero(np.diff(numbers)) + 1):
            number = int(numbers[part[0]])
            parts.append(self.table(number).take(pa.array(wanted[part] - self.first_rows[number])))
        table = pa.concat_tables(parts).combine_chunks().add_column(0, "shard", pa.array(numbers, pa.int32()))
        return table.add_column(0, "row", pa.array(wanted))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index: all of it or nothing.

        A Parquet file with one row a sample: ``row`` int64 ascending, ``shard``, ``key``, ``members`` (a list of
        structs: ``extension``, ``offset``, ``size``), ``label`` int32 (null where there is none).

        Raises:
            OSError: the file cannot be written; an older one is then still intact.
        """
        write_index(path, self._rows, self.fingerprint, self.labels)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, allow_commands: bool = False) -> ShardIndex:
        """Open what :meth:`save` wrote. The list of shards is read and verified now, rows when they are asked for.

        Args:
            path: the file.
            allow_commands: accept ``pipe:`` URLs in it. They are commands, which run on this machine whenever such a
                shard is read; so only for a file whose maker you trust.

        Raises:
            FileNotFoundError: no such file.
            CorruptFileError: damaged, cut short, edited, or not a file of ours.
            MismatchError: of another kind, or a newer format.
            UnsupportedError: it names commands, which were not allowed, or chained file systems.
        """
        rows = FileRows(path)
        check_stored_urls(path, (shard.url for shard in rows.shards), check_bool("allow_commands", allow_commands))
        return cls(rows)

    @classmethod
    def from_tables(
        cls, shards: Sequence[Shard], tables: Sequence[pa.Table], older: ShardIndex | None = None
    ) -> ShardIndex:
        """An index in memory, of tables as :meth:`table` gives them, after the rows of an older index."""
        return cls(MemoryRows(shards, tables, None if older is None else older._rows))
