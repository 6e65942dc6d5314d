"""The rows of a shard index: in memory, or in a Parquet file that is read shard by shard.

A row group holds whole shards. Every shard has a digest of its rows, and the file's metadata one of the list of
shards. So opening a file verifies the list, and reading a shard verifies its rows, besides the page checksums.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prunesampler.errors import CorruptFileError, MismatchError
from prunesampler.shards.tar import BLOCK, is_reserved, padded
from prunesampler.tables.atomic import atomic_write
from prunesampler.tables.parquet import bounded_batches, content_digest, open_parquet, reading, seal, unseal

_MEMBER = pa.struct({"extension": pa.string(), "offset": pa.int64(), "size": pa.int64()})
SCHEMA = pa.schema({"key": pa.large_string(), "members": pa.list_(_MEMBER), "label": pa.int32()})
"""Columns of the rows of one shard."""

_GROUP_ROWS = 16_384  # at least, in one row group
_CACHED_GROUPS = 8
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MOST = 1 << 60  # bytes, and below it rows


class Shard(NamedTuple):
    """What is known of a shard."""

    url: str  # as it was given when it was indexed
    rows: int
    size: int  # of the file, in bytes; -1 where unknown
    modified: int  # nanoseconds since 1970, of a local file; -1 elsewhere
    seekable: bool  # an uncompressed tar that is not the output of a command
    keys: str  # digest of its keys
    digest: str  # of its rows without labels


Rows: TypeAlias = "MemoryRows | FileRows"


def key_digest(table: pa.Table) -> str:
    """Digest of the keys of one shard's rows."""
    return content_digest({}, {"key": table["key"].combine_chunks()})


def row_digest(table: pa.Table) -> str:
    """Digest of the keys and members of one shard's rows."""
    members = table["members"].combine_chunks()
    inside = members.flatten()
    columns = {
        "key": table["key"].combine_chunks(),
        "count": pc.list_value_length(members).to_numpy(zero_copy_only=False),
        "extension": inside.field("extension").cast(pa.large_string()),
        "offset": inside.field("offset").to_numpy(),
        "size": inside.field("size").to_numpy(),
    }
    return content_digest({}, columns)


class MemoryRows:
    """Rows in memory: those of an older index, if any, and those of new shards after them."""

    def __init__(self, shards: Sequence[Shard], tables: Sequence[pa.Table], older: Rows | None = None) -> None:
        self._older, self._tables, old_shards = older, tables, () if older is None else older.shards
        self._old, self._old_rows = len(old_shards), sum(shard.rows for shard in old_shards)
        self.shards: Sequence[Shard] = [*old_shards, *shards]

    def read(self, number: int) -> pa.Table:
        """The rows of one shard, as :data:`SCHEMA`."""
        return self._older.read(number) if self._older and number < self._old else self._tables[number - self._old]

    def labels(self) -> npt.NDArray[np.int32] | None:
        """The labels of all rows, −1 where a row has none; None where no row has one."""
        older = self._older.labels() if self._older else None
        older = np.full(self._old_rows, -1, np.int32) if older is None else older
        labels = np.concatenate([older, *(_labels(table["label"]) for table in self._tables)])
        labels.flags.writeable = False
        return labels if (labels >= 0).any() else None


class FileRows:
    """Rows in a file, read and verified a row group at a time. Pickles as its path."""

    def __init__(self, path: str | os.PathLike[str], checksum: str | None = None) -> None:
        self._path = os.path.abspath(path)
        with reading(path):
            self._file, self._size = open_parquet(path), os.path.getsize(path)
            metadata = unseal(path, self._file.metadata.metadata, "shards")
            groups = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
            columns = (metadata["shards"][name] for name in Shard._fields)
            self.shards: Sequence[Shard] = [_checked(Shard(*shard)) for shard in zip(*columns, strict=True)]
            self._checksum, self._label_digest = metadata["checksum"], metadata["labels"]
            if sum(groups) != sum(shard.rows for shard in self.shards):
                raise ValueError("its rows are not those of its shards")
        if checksum not in (None, self._checksum):
            raise MismatchError(f"{path} was written anew since this index was opened: open it again")
        self._first_rows = np.cumsum([0, *(shard.rows for shard in self.shards)])
        self._group_rows = np.cumsum([0, *groups])
        self._group = functools.lru_cache(_CACHED_GROUPS)(self._read_group)

    def __reduce__(self) -> tuple[Any, ...]:
        return FileRows, (self._path, self._checksum)

    def read(self, number: int) -> pa.Table:
        """The rows of one shard; CorruptFileError if they, or others of their row group, are damaged."""
        if not self.shards[number].rows:
            return SCHEMA.empty_table()
        return self._group(int(np.searchsorted(self._group_rows, self._first_rows[number], "right")) - 1)[number]

    def labels(self) -> npt.NDArray[np.int32] | None:
        """The labels of all rows; CorruptFileError if they are damaged."""
        if self._label_digest is None:
            return None
        with reading(self._path):
            labels = _labels(self._file.read(["label"], use_threads=False)["label"])
            if labels.dtype != np.int32 or (labels < -1).any():
                raise ValueError("labels are not class indices")
        if content_digest({}, {"label": labels}) != self._label_digest:
            raise CorruptFileError(f"{self._path} was damaged or edited: its labels are not what was written")
        labels.flags.writeable = False
        return labels

    def _read_group(self, group: int) -> dict[int, pa.Table]:
        start, end = self._group_rows[group : group + 2].tolist()
        numbers = range(*np.searchsorted(self._first_rows, [start, end]).tolist())
        with reading(self._path):
            parts = bounded_batches(self._path, self._file, self._size, group, SCHEMA.names)
            table = pa.concat_tables(parts).select(SCHEMA.names).cast(SCHEMA).combine_chunks()
            table.validate(full=True)
            found = {n: table.slice(int(self._first_rows[n]) - start, self.shards[n].rows) for n in numbers}
            for n, rows in found.items():
                shard = self.shards[n]
                if len(rows) != shard.rows or (row_digest(rows), key_digest(rows)) != (shard.digest, shard.keys):
                    raise ValueError(f"shard {shard.url} is not what was written, or was edited")
                _check_members(rows, shard)
        return found


def write_index(
    path: str | os.PathLike[str], rows: Rows, fingerprint: str, labels: npt.NDArray[np.int32] | None
) -> None:
    """Write the file that :class:`FileRows` reads, atomically, a few shards in memory at a time."""
    shards = {name: [getattr(shard, name) for shard in rows.shards] for name in Shard._fields}
    label_digest = None if labels is None else content_digest({}, {"label": labels})
    metadata = {"kind": "shards", "fingerprint": fingerprint, "shards": shards, "labels": label_digest}
    schema = pa.schema([("row", pa.int64()), ("shard", pa.large_string()), *SCHEMA], metadata=seal(metadata))
    delta = ("row", "members.list.element.offset", "members.list.element.size", "label")
    with (
        atomic_write(path) as file,
        pq.ParquetWriter(
            file,
            schema,
            compression="zstd",
            use_dictionary=["shard", "members.list.element.extension"],
            column_encoding={"key": "DELTA_BYTE_ARRAY", **dict.fromkeys(delta, "DELTA_BINARY_PACKED")},
            write_page_index=True,
            write_page_checksum=True,
        ) as writer,
    ):
        for table in _groups(rows):
            writer.write_table(table.cast(schema), row_group_size=len(table))


def _checked(shard: Shard) -> Shard:
    """What a file says of a shard, refused where it is not of the kind that was written."""
    texts = isinstance(shard.url, str) and isinstance(shard.seekable, bool)
    texts = texts and all(isinstance(each, str) and _DIGEST.fullmatch(each) for each in (shard.keys, shard.digest))
    numbers = all(type(each) is int and abs(each) < 1 << 63 for each in (shard.rows, shard.size, shard.modified))
    if not texts or not numbers or not 0 <= shard.rows < _MOST or not -1 <= shard.size <= _MOST:
        raise ValueError(f"it says of a shard: {shard!r:.400}")
    return shard


def _check_members(table: pa.Table, shard: Shard) -> None:
    """Refuse files of samples that cannot lie in a tar like this, one after the other."""
    members = table["members"].combine_chunks()
    inside = members.flatten()
    extension, offset, size = (inside.field(name) for name in ("extension", "offset", "size"))
    if table["key"].null_count + members.null_count + extension.null_count + offset.null_count + size.null_count:
        raise ValueError(f"a sample of {shard.url} lacks a key, its files, or where they are")
    first, length = offset.to_numpy(), size.to_numpy()
    most = shard.size if shard.seekable and shard.size >= 0 else _MOST
    if not (pc.list_value_length(members).to_numpy() > 0).all() or any(
        map(is_reserved, extension.unique().to_pylist())
    ):
        raise ValueError(f"a sample of {shard.url} has no files, or one under a name of webdataset's own")
    sound = (first >= BLOCK) & (first <= most) & (length >= 0) & (length <= most - first)
    if not sound.all() or (first[1:] - BLOCK < first[:-1] + padded(length[:-1])).any():
        raise ValueError(f"files of {shard.url} do not lie in it one after the other")


def _groups(rows: Rows) -> Iterator[pa.Table]:
    first, pending, count = 0, [], 0
    for number, shard in enumerate(rows.shards):
        table = rows.read(number)
        table = table.add_column(0, "shard", pa.repeat(pa.scalar(shard.url, pa.large_string()), shard.rows))
        pending.append(table.add_column(0, "row", pa.array(np.arange(first, first + shard.rows))))
        first, count = first + shard.rows, count + shard.rows
        if count >= _GROUP_ROWS or (count and number == len(rows.shards) - 1):
            yield pa.concat_tables(pending).combine_chunks()
            pending, count = [], 0


def _labels(column: pa.ChunkedArray) -> npt.NDArray[np.int32]:
    labels: npt.NDArray[np.int32] = pc.fill_null(column, pa.scalar(-1, pa.int32())).to_numpy()
    return labels
