"""Parquet files that prove their content.

A file holds one table of plain columns, readable by anything that reads Parquet. Its schema metadata has one entry of
ours, ``prunesampler``: JSON with the format version, the kind of table, its provenance, and a digest of all this and
of every value. The encodings are those that were smallest on real scores.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from prunesampler._format import Shown
from prunesampler._version import __version__
from prunesampler.errors import (
    ArgumentError,
    CorruptFileError,
    FileError,
    MismatchError,
    UnsupportedError,
    did_you_mean,
)
from prunesampler.tables.atomic import atomic_write, check_regular_file
from prunesampler.tables.columns import Int64s
from prunesampler.tables.fingerprint import check_same_dataset

FORMAT = 1
"""Version of the file format; files of a newer one are refused."""

ROW_GROUP = 1_000_000
"""Rows of a row group."""

Column = Any
"""A contiguous numpy array (int64, int32, float32, bool) or a ``pyarrow.LargeStringArray``."""

_KEY = b"prunesampler"
_NOT_INTACT = "was damaged or edited: its content is not what was written"
_ENCODINGS = {
    pa.int64(): "DELTA_BINARY_PACKED",
    pa.int32(): "DELTA_BINARY_PACKED",
    pa.float32(): "BYTE_STREAM_SPLIT",
    pa.large_string(): "DELTA_BYTE_ARRAY",
    pa.bool_(): "PLAIN",
}
_OF_CONTENT = (None, errno.EINVAL, errno.EOVERFLOW, errno.EFBIG)  # numbers of errors that come of reading nonsense
_TEXT = 64 << 20  # bytes of text that any file may have
_BATCH_BYTES, _BATCH_ROWS, _BATCHES = 16 << 20, 65_536, 4096  # that are decoded at once, and of a row group


class Parts(NamedTuple):
    """A column that does not fit in memory: its length, and a function that reads it part by part from the start."""

    length: int
    read: Callable[[], Iterator[Column]]


@dataclass(frozen=True)
class Header:
    """What a file says about itself; its values stay on disk."""

    path: str
    digest: str  # of its content
    length: int  # in rows
    groups: int  # how many row groups
    types: dict[str, str]  # column → Arrow's name of its type
    metadata: dict[str, Any]  # what its writer gave, ``kind`` included


# -- the proof ----------------------------------------------------------------------------------------------------


def content_digest(metadata: Mapping[str, Any], columns: Mapping[str, Column | Parts]) -> str:
    """``"sha256:…"`` of the metadata and of every value, independent of how a file would encode them.

    The order of the columns matters, that of the metadata's keys does not.
    """
    state = hashlib.sha256(_canonical(metadata))
    for name, column in columns.items():
        length, read = column if isinstance(column, Parts) else Parts(len(column), functools.partial(iter, [column]))
        for number, part in enumerate(read()):
            text = isinstance(part, pa.LargeStringArray)
            if not number:
                kind = "string" if text else part.dtype.name
                state.update(_canonical({"name": name, "type": kind, "length": length}))
            state.update((np.diff(_offsets(part)) if text else np.ascontiguousarray(part)).data)
        for part in read() if text else ():
            if data := part.buffers()[2]:
                offsets = _offsets(part)
                state.update(memoryview(data)[int(offsets[0]) : int(offsets[-1])])
    return "sha256:" + state.hexdigest()


def seal(metadata: Mapping[str, Any]) -> dict[bytes, bytes]:
    """The schema metadata of a file: ``metadata`` with ``format``, ``library`` and a ``checksum`` of all this."""
    sealed = {**metadata, "format": FORMAT, "library": __version__}
    return {_KEY: _canonical({**sealed, "checksum": content_digest(sealed, {})})}


def unseal(path: str | os.PathLike[str], metadata: Mapping[bytes, bytes] | None, kind: str) -> dict[str, Any]:
    """What :func:`seal` was given and what it added; refused if damaged, not of ours, newer, or of another kind."""
    sealed = _sealed(path, metadata)
    if type(sealed.get("format")) is int and sealed["format"] > FORMAT:
        raise MismatchError(
            f"{path} has format {sealed['format']}, this version reads up to {FORMAT}: update prunesampler"
        )
    if sealed.get("checksum") != content_digest({k: v for k, v in sealed.items() if k != "checksum"}, {}):
        raise CorruptFileError(f"{path} {_NOT_INTACT}")
    if sealed.get("kind") != kind:
        raise MismatchError(f"{path} holds {sealed.get('kind')!r}, not {kind!r}")
    return sealed


def _sealed(path: str | os.PathLike[str], metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    try:
        sealed = json.loads((metadata or {}).get(_KEY, b"null"))
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} {_NOT_INTACT}") from error
    if not isinstance(sealed, dict):
        raise CorruptFileError(f"{path} was not written by prunesampler")
    return sealed


def verify(header: Header, check: Callable[[str, Column], None] | None = None) -> None:
    """Prove the content of a file with one column of one row group in memory at a time.

    ``check`` is called with the name and the values of each such part; what it raises makes the file corrupt.
    """
    with _opened(header.path) as file:
        _verify(header, file, check)


def _verify(header: Header, file: pq.ParquetFile, check: Callable[[str, Column], None] | None = None) -> None:
    def parts(name: str) -> Iterator[Column]:
        for number in range(header.groups):
            for part in _parts_of(header, file, number, name):
                if check is not None:
                    check(name, part)
                yield part

    columns = {name: Parts(header.length, functools.partial(parts, name)) for name in header.types}
    _compare_digest(header, columns)


def _compare_digest(header: Header, columns: Mapping[str, Column | Parts]) -> None:
    if header.digest != content_digest(header.metadata, columns):
        raise CorruptFileError(f"{header.path} {_NOT_INTACT}")


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _offsets(column: pa.LargeStringArray) -> npt.NDArray[np.int64]:
    return np.frombuffer(column.buffers()[1], "<i8")[column.offset : column.offset + len(column) + 1]


# -- writing ------------------------------------------------------------------------------------------------------


def write_columns(path: str | os.PathLike[str], metadata: Mapping[str, Any], columns: Mapping[str, Column]) -> None:
    """Write columns and metadata as one Parquet file, atomically; a NaN in a float32 and a −1 in an int32 are null.

    ``metadata`` is JSON with at least ``kind``; a digest and what :func:`seal` adds come to it.
    """
    table = pa.table({name: to_arrow(column) for name, column in columns.items()})
    parts = (table.slice(start, ROW_GROUP) for start in range(0, len(table), ROW_GROUP))
    write_parts(path, metadata, content_digest(metadata, columns), parts)


def write_parts(
    path: str | os.PathLike[str], metadata: Mapping[str, Any], digest: str, parts: Iterator[pa.Table]
) -> Header:
    """Write at least one table of :data:`ROW_GROUP` rows, the last of the rest, as :func:`write_columns` the whole."""
    length, schema = 0, None
    with atomic_write(path) as file, ExitStack() as stack:
        for part in parts:
            part = part.combine_chunks().replace_schema_metadata(seal({**metadata, "digest": digest}))
            if schema is None:
                schema = part.schema
                writer = stack.enter_context(_writer(file, schema))
            writer.write_table(part, row_group_size=ROW_GROUP)
            length += len(part)
    types = {field.name: str(field.type) for field in schema or ()}
    return Header(os.fspath(path), digest, length, -(-length // ROW_GROUP), types, dict(metadata))


def _writer(file: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    encodings = {field.name: _ENCODINGS[field.type] for field in schema}
    return pq.ParquetWriter(
        file,
        schema,
        compression="zstd",
        # a shard's name stands beside each of its thousands of rows
        use_dictionary=["shard"] if "shard" in encodings else False,
        column_encoding={name: encoding for name, encoding in encodings.items() if name != "shard"},
        write_page_index=True,
        write_page_checksum=True,
    )


def to_arrow(column: Column) -> pa.Array:
    """A column as files hold it: NaN and −1 are null."""
    if isinstance(column, pa.Array):
        return column
    if column.dtype == np.int32:
        missing = column == -1
        return pa.array(column, mask=missing if missing.any() else None)
    return pa.array(column, from_pandas=column.dtype == np.float32)


# -- reading ------------------------------------------------------------------------------------------------------


def read_columns(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, Column]]:
    """Metadata and columns as :func:`write_columns` was given them; refused unless every value is as it was."""
    path = file_in(path, kind)
    with _opened(path) as file:
        header = _header(path, file, kind)
        numbers = header.length * sum(map(_width, header.types.values()))
        if numbers > max(_TEXT, 50 * os.path.getsize(path)):
            _verify(header, file)  # a part at a time, before so little is trusted to be so much
        columns = _read(header, file, range(header.groups), list(header.types))
        _compare_digest(header, columns)
    return header.metadata, columns


def read_header(path: str | os.PathLike[str], kind: str) -> Header:
    """Read what a file of this kind says about itself, but not its values; OSError if it cannot be opened."""
    path = file_in(path, kind)
    with _opened(path) as file:
        return _header(path, file, kind)


def kind_of(path: str | os.PathLike[str]) -> Any:
    """What kind of table a file says that it holds; nothing else is verified."""
    path = file_in(path, "scores")
    with _opened(path) as file:
        return _sealed(path, file.metadata.metadata).get("kind")


def file_in(path: str | os.PathLike[str], kind: str) -> str:
    """The file of this kind in a folder that a run has written; of another path that path itself."""
    name = f"{kind}.parquet"
    is_run = os.path.isdir(path) and os.path.basename(path) != name  # else it is in the place of the file
    return os.path.join(path, name) if is_run else os.fspath(path)


def read_group(header: Header, number: int, names: Sequence[str]) -> dict[str, Column]:
    """Read some columns of one row group. Page checksums are verified, the digest is not: see :func:`verify`."""
    with _opened(header.path, _footer(header)) as file:
        return _read(header, file, [number], names)


def group_starts(header: Header) -> list[int]:
    """Where each row group begins, counted in rows of the file, and where the last one ends."""
    footer = _footer(header)
    lengths = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
    return [0, *itertools.accumulate(lengths)]


def group_spans(header: Header, name: str) -> list[tuple[int, int]]:
    """The lowest and the highest value of an integer column in each row group."""
    at, footer = list(header.types).index(name), _footer(header)
    found = (footer.row_group(number).column(at).statistics for number in range(footer.num_row_groups))
    return [(each.min, each.max) for each in found]


def from_arrow(column: pa.ChunkedArray) -> Column:
    """A column as :func:`read_columns` gives it."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        if column.null_count:
            raise ValueError("null among strings")
        column.validate(full=True)  # that it is UTF-8
        return pa.concat_arrays(column.cast(pa.large_string()).chunks or [pa.array([], pa.large_string())])
    if column.type not in _ENCODINGS:
        raise ValueError(f"unexpected type {column.type}")
    if column.null_count:
        missing = {pa.float32(): float("nan"), pa.int32(): -1}[column.type]
        column = column.fill_null(pa.scalar(missing, column.type))
    return column.to_numpy()


def _read(header: Header, file: pq.ParquetFile, groups: Sequence[int], names: Sequence[str]) -> dict[str, Column]:
    plain = [name for name in names if not _is_text(header, name)]
    try:
        numbers = file.read_row_groups(groups, columns=plain)
    except pa.ArrowException:  # also where no thread can be started; what is damaged fails again
        numbers = file.read_row_groups(groups, columns=plain, use_threads=False)
    columns: dict[str, Column] = {}
    for name in names:
        if _is_text(header, name):
            parts = [part for number in groups for part in _parts_of(header, file, number, name)]
            columns[name] = pa.concat_arrays(parts or [pa.array([], pa.large_string())])
        else:
            columns[name] = from_arrow(numbers[name])
    return columns


def _parts_of(header: Header, file: pq.ParquetFile, group: int, name: str) -> Iterator[Column]:
    """A column of a row group, text in parts."""
    if _is_text(header, name):
        for part in bounded_batches(header.path, file, os.path.getsize(header.path), group, [name]):
            yield from_arrow(part[name])
    else:
        yield from_arrow(file.read_row_group(group, columns=[name], use_threads=False)[name])


def bounded_batches(
    path: str | os.PathLike[str], file: pq.ParquetFile, size: int, group: int, names: Sequence[str]
) -> Iterator[pa.Table]:
    """Columns of a row group, so many rows at a time that long text that is stored once cannot fill the memory.

    Refused is what takes more than 64 MiB, and a KiB a row, and a thousand times the ``size`` of the file.
    """
    about = file.metadata.row_group(group)  # a look at its columns would crash where the footer is damaged
    longest = max(1, about.total_byte_size)  # of a text
    rows = min(max(_BATCH_BYTES // longest, about.num_rows // _BATCHES, 1), _BATCH_ROWS)
    pending: list[pa.RecordBatch] = []
    found, given, most = 0, 0, max(_TEXT, 1024 * about.num_rows, 1000 * size)
    for batch in file.iter_batches(rows, row_groups=[group], columns=list(names), use_threads=False):
        found += batch.nbytes
        if found > most:
            raise CorruptFileError(f"{path} is damaged: its text would take more than {most:,} bytes")
        pending.append(batch)
        if found > given + _BATCH_BYTES:
            yield pa.Table.from_batches(pending).combine_chunks()
            pending, given = [], found
    if pending:
        yield pa.Table.from_batches(pending).combine_chunks()


def _is_text(header: Header, name: str) -> bool:
    return header.types[name] in ("string", "large_string")


def _width(kind: str) -> int:
    return {"int64": 8, "bool": 1}.get(kind, 4)


def _header(path: str | os.PathLike[str], file: pq.ParquetFile, kind: str) -> Header:
    metadata = unseal(path, file.metadata.metadata, kind)
    added = {name: metadata.pop(name, None) for name in ("format", "library", "digest", "checksum")}
    types = {field.name: str(field.type) for field in file.schema_arrow}
    length, known = file.metadata.num_rows, {"string", *map(str, _ENCODINGS)}
    for name, found in types.items():
        if found not in known:
            raise CorruptFileError(f"{path} is damaged: {name!r:.100} is of type {found:.100}")
    rows, epochs = metadata.get("num_rows", length), metadata.get("num_epochs", 1)
    if type(rows) is not int or type(epochs) is not int or rows * epochs < length:  # each row once an epoch
        raise CorruptFileError(f"{path} is damaged: it has {length} rows, of a dataset of {rows!r:.40}")
    groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    if sum(groups) != length or not all(0 <= rows <= ROW_GROUP for rows in groups):
        raise CorruptFileError(f"{path} is damaged: its row groups have other rows than it says")
    return Header(os.fspath(path), str(added["digest"]), length, len(groups), types, metadata)


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Tell a damaged file, a CorruptFileError, from a want of memory or of handles, which says nothing of the file.

    A flipped bit may surface as any of Arrow's errors.
    """
    try:
        yield
    except (FileError, UnsupportedError):
        raise
    except MemoryError as error:
        raise MemoryError(f"{path} cannot be read, as memory is short: {error}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in _OF_CONTENT:
            raise
        raise CorruptFileError(f"{path} is damaged or cut short: {error}") from error


@contextmanager
def _opened(path: str | os.PathLike[str], footer: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    with reading(path), open_parquet(path, footer) as file:
        yield file


def open_parquet(path: str | os.PathLike[str], footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Open a file, whose checksums are then verified; one that is missing or unreadable is the system's error.

    It is read, never mapped: a process that maps a file is killed when another cuts that file short.
    """
    try:
        check_regular_file(path)
        with open(path, "rb"):
            pass
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, f"{error.strerror}{_like(path)}", os.fspath(path)) from None
    return pq.ParquetFile(os.fspath(path), metadata=footer, memory_map=False, page_checksum_verification=True)


def _like(path: str | os.PathLike[str]) -> str:
    folder, name = os.path.split(os.path.abspath(path))
    with suppress(OSError):
        return did_you_mean(name, os.listdir(folder))
    return ""


def _footer(header: Header) -> pq.FileMetaData:
    """The footer of a file that is read in parts; MismatchError once it is no longer the one that was opened."""
    stat = os.stat(header.path)
    digest, footer = _read_footer(header.path, stat.st_size, stat.st_mtime_ns)
    if digest != header.digest:
        raise MismatchError(f"{header.path} was written anew while it was read: start again")
    return footer


@functools.lru_cache(maxsize=4)
def _read_footer(path: str, size: int, modified: int) -> tuple[str, pq.FileMetaData]:
    with _opened(path) as file:
        return json.loads(file.metadata.metadata.get(_KEY, b"{}")).get("digest"), file.metadata


# -- what ScoreTable and Coreset share ----------------------------------------------------------------------------

_Loaded = TypeVar("_Loaded", bound="Stored")


class Stored(Shown):
    """Columns by row and their provenance, with a digest and a Parquet file: the base of ScoreTable and Coreset."""

    _kind: ClassVar[str]
    _provenance: ClassVar[tuple[str, ...]]
    """The attributes that are written as metadata and given to the constructor by name."""

    rows: Int64s
    key_column: Any
    shard_column: Any

    def __len__(self) -> int:
        return len(self.rows)

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, type(self)) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    @property
    def keys(self) -> list[str] | list[int] | None:
        """The keys in the order of ``rows``, a new list at each call (``key_column`` holds them compactly)."""
        return None if self.key_column is None else self.key_column.tolist()

    @functools.cached_property
    def digest(self) -> str:
        """``"sha256:…"`` of every value and all provenance; the same before saving and after loading."""
        return content_digest(self._metadata(), self._columns())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a Parquet file, all of it or nothing.

        Raises:
            WriteError: an ``OSError``: the file cannot be written; an older one is then still intact.
        """
        write_columns(path, self._metadata(), self._columns())

    @classmethod
    def load(
        cls: type[_Loaded],
        path: str | os.PathLike[str],
        fingerprint: str | None = None,
        num_rows: int | None = None,
    ) -> _Loaded:
        """Read what :meth:`save` wrote.

        Args:
            path: the file, or the folder of a run that holds it.
            fingerprint: of the dataset at hand; compared where the file holds one too.
            num_rows: its size, compared if it is given.

        Raises:
            FileNotFoundError: no such file.
            CorruptFileError: damaged, cut short, edited, or not a file of ours.
            MismatchError: of another dataset, another kind, or a newer format.
        """
        metadata, columns = read_columns(path, cls._kind)
        stored = metadata.get("num_rows"), metadata.get("fingerprint")
        check_same_dataset(f"{file_in(path, cls._kind)}", stored, (num_rows, fingerprint))
        try:
            return cls._build(metadata, columns)
        except (ArgumentError, KeyError) as error:
            raise CorruptFileError(f"{path} is not a sound {cls._kind} file: {error}") from error

    def _metadata(self) -> dict[str, Any]:
        return {"kind": self._kind, **{name: getattr(self, name) for name in self._provenance}}

    def _columns(self) -> dict[str, Column]:
        return {name: column for name, column in self._all_columns().items() if column is not None}

    def _all_columns(self) -> dict[str, Column | None]:
        """The columns of the file, None where there is none."""
        raise NotImplementedError

    @classmethod
    def _build(cls: type[_Loaded], metadata: dict[str, Any], columns: dict[str, Column]) -> _Loaded:
        """The object that has this metadata and these columns."""
        raise NotImplementedError

    @classmethod
    def _shared_arguments(cls, metadata: dict[str, Any], columns: dict[str, Column]) -> dict[str, Any]:
        provenance = {name: metadata[name] for name in cls._provenance}
        return {"rows": columns["row"], "keys": columns.get("key"), "shards": columns.get("shard"), **provenance}
