"""Files of scores, a range of rows at a time."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prunesampler.errors import ArgumentError, CorruptFileError, MismatchError
from prunesampler.selection.out_of_core.engine import Engine
from prunesampler.tables.parquet import Parts, content_digest, from_arrow, unseal
from prunesampler.tables.score_table import ScoreTable

__all__ = ["Header", "Range", "checked", "first_of", "group_of", "header_of", "headers", "opened", "ranges", "table_of"]

BLOCK = 1_000_000
"""Rows that are worked on at once."""

Range = tuple[int, int]
"""Rows, from the first to below the second."""


@dataclass(frozen=True)
class Header:
    """What a file of scores says of itself, its values left where they are.

    Attributes:
        path: of the file.
        digest: of its content.
        length: how many rows it has.
        types: column → Arrow's name of its type.
        metadata: as the ScoreTable would have it.
        groups: how many row groups it has.
    """

    path: str
    digest: str
    length: int
    types: dict[str, str]
    metadata: dict[str, Any]
    groups: int

    def __len__(self) -> int:
        return self.length

    @property
    def complete(self) -> bool:
        """Whether its rows are 0 to N − 1: they are distinct."""
        return self.length == self.num_rows  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        if name in ("learned", "presentations", "labels"):
            return True if name.removesuffix("s") in self.types or name in self.types else None
        if name in ("num_rows", "fingerprint", "directions", "protocols", "provenance"):
            return self.metadata[name]
        raise AttributeError(name)


def headers(engine: Engine, paths: Sequence[str | os.PathLike[str]]) -> list[Header]:
    """The headers of files of scores, every value of which was checked.

    Raises:
        OSError: one cannot be read.
        CorruptFileError: damaged, cut short, edited, or not a file of ours.
        MismatchError: of another kind, or a newer format.

    >>> import tempfile
    >>> from prunesampler.selection.out_of_core.engine import Threads
    >>> with tempfile.TemporaryDirectory() as folder, Threads() as threads:
    ...     ScoreTable({"el2n": [0.5, 0.25]}).save(f"{folder}/scores.parquet")
    ...     (found,) = headers(threads, [f"{folder}/scores.parquet"])
    >>> len(found), found.types
    (2, {'row': 'int64', 'el2n': 'float'})
    """
    found = opened(engine, paths)
    for _ in engine.map(checked, found).parts():
        pass
    return found


def opened(engine: Engine, paths: Sequence[str | os.PathLike[str]]) -> list[Header]:
    """The headers of files of scores, whose values were not looked at; raises as :func:`headers`."""
    found = engine.map(_header_table, [os.fspath(path) for path in paths])
    return [Header(**json.loads(text)) for part in found.parts() for text in part["header"].to_pylist()]


def ranges(num_rows: int) -> list[Range]:
    """Blocks of a dataset's rows.

    >>> ranges(2_500_000)
    [(0, 1000000), (1000000, 2000000), (2000000, 2500000)]
    """
    return [(start, min(start + BLOCK, num_rows)) for start in range(0, num_rows, BLOCK)]


def table_of(header: Header, rows: Range) -> ScoreTable | None:
    """A part of a file's table; None where it has none of these rows.

    Raises:
        OSError: the file cannot be read.
        CorruptFileError: it was damaged since its header was read.
    """
    try:
        with pq.ParquetFile(pa.memory_map(header.path), page_checksum_verification=True) as file:
            at = file.schema_arrow.names.index("row")
            spans = [file.metadata.row_group(group).column(at).statistics for group in range(file.num_row_groups)]
            groups = [number for number, span in enumerate(spans) if span.min < rows[1] and span.max >= rows[0]]
            if not groups:
                return None
            table = file.read_row_groups(groups)
    except (pa.ArrowException, ValueError, AttributeError) as error:
        raise CorruptFileError(f"{header.path} is damaged or cut short: {error}") from error
    first, end = np.searchsorted(table["row"].to_numpy(), rows).tolist()
    return ScoreTable._build(header.metadata, _columns(table.slice(first, end - first))) if end > first else None


def group_of(header: Header, number: int, columns: Sequence[str], rows: int | None = None) -> Iterator[ScoreTable]:
    """One row group of a file, or so many rows of it at a time: some of its columns, unchecked.

    Raises:
        OSError: the file cannot be read.
        CorruptFileError: a page was damaged since it was written.
    """
    try:
        footer, starts = _footer(header)
        start, end = starts[number : number + 2]
        with pq.ParquetFile(header.path, metadata=footer, page_checksum_verification=True) as file:
            names = [*([] if header.complete else ["row"]), *columns]
            table = file.read_row_group(number, columns=names, use_threads=False)
            found = _columns(table) if names else {}
    except (pa.ArrowException, ValueError, KeyError) as error:
        raise CorruptFileError(f"{header.path} is damaged or cut short: {error}") from error
    size = rows or end - start
    for first in range(0, end - start, size):
        part = {name: column[first : first + size] for name, column in found.items()}
        if header.complete:
            part["row"] = np.arange(start + first, min(start + first + size, end))
        yield ScoreTable._view(header.metadata, part)


def first_of(header: Header, number: int) -> int:
    """How many rows of a file stand before a row group: the first of its rows if the file is complete."""
    return _footer(header)[1][number]


def _footer(header: Header) -> tuple[pq.FileMetaData, list[int]]:
    """What stands at the end of a file, and the places where its row groups begin, and end."""
    stat = os.stat(header.path)
    return _read_footer(header.path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _read_footer(path: str, size: int, modified: int) -> tuple[pq.FileMetaData, list[int]]:
    footer = pq.read_metadata(path)
    lengths = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
    return footer, [0, *np.cumsum(lengths).tolist()]


def header_of(path: str) -> Header:
    """The header of one file; raises as :func:`headers`."""
    with open(path, "rb"):
        pass  # a missing or unreadable file is the system's error, not a damaged one
    with _sound(path), pq.ParquetFile(path) as file:
        sealed = unseal(path, file.metadata.metadata, "scores")
        added = {name: sealed.pop(name, None) for name in ("format", "library", "digest", "checksum")}
        types = {field.name: str(field.type) for field in file.schema_arrow}
        return Header(path, added["digest"], file.metadata.num_rows, types, sealed, file.num_row_groups)


def checked(header: Header) -> pa.Table:
    """Nothing, or what is raised by :func:`headers`: every value is looked at, a column of a row group at a time."""
    with _sound(header.path), pq.ParquetFile(header.path, page_checksum_verification=True) as file:
        columns = {
            name: Parts(header.length, functools.partial(_column_parts, file, name, header.num_rows))
            for name in header.types
        }
        if header.digest != content_digest(header.metadata, columns):
            raise CorruptFileError(f"{header.path} was damaged or edited: its content is not what was written")
        ScoreTable._build(header.metadata, _columns(file.read_row_group(0)))
    return pa.table({})


@contextmanager
def _sound(path: str) -> Iterator[None]:
    try:
        yield
    except (CorruptFileError, MismatchError):
        raise
    except Exception as error:  # as files.read_columns
        raise CorruptFileError(f"{path} is damaged or cut short: {error}") from error


def _header_table(path: str) -> pa.Table:
    return pa.table({"header": [json.dumps(vars(header_of(path)))]})


def _column_parts(file: pq.ParquetFile, name: str, num_rows: int) -> Iterator[Any]:
    """A column's values, a row group at a time, of which :meth:`ScoreTable.load` would take each."""
    last = -1
    for group in range(file.num_row_groups):
        column = from_arrow(file.read_row_group(group, columns=[name], use_threads=False)[name])
        if isinstance(column, pa.Array):
            pass
        elif name == "row":
            if column[0] <= last or column[-1] >= num_rows or not (column[1:] > column[:-1]).all():
                raise ArgumentError("row", f"must ascend in [0, {num_rows})", int(column[0]))
            last = column[-1]
        elif column.dtype == np.float32 and np.isinf(column).any():
            raise ArgumentError(name, "must be finite", "an infinite value")
        elif column.dtype == np.int32 and column.min() < (0 if name == "presentations" else -1):
            raise ArgumentError(name, "must be at least 0, or -1 for none", int(column.min()))
        yield column


def _columns(table: pa.Table) -> dict[str, Any]:
    return {name: from_arrow(table[name]) for name in table.column_names}
