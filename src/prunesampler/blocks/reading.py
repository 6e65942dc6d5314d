"""Files of scores, a range of rows at a time."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prunesampler.blocks.engine import Engine
from prunesampler.errors import ArgumentError, CorruptFileError, MismatchError
from prunesampler.files import Parts, content_digest, from_arrow, unseal
from prunesampler.tables import ScoreTable

__all__ = ["Header", "Range", "header_of", "headers", "ranges", "table_of"]

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
    """

    path: str
    digest: str
    length: int
    types: dict[str, str]
    metadata: dict[str, Any]

    def __len__(self) -> int:
        return self.length

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
    >>> from prunesampler.blocks.engine import Serial
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ScoreTable({"el2n": [0.5, 0.25]}).save(f"{folder}/scores.parquet")
    ...     (found,) = headers(Serial(), [f"{folder}/scores.parquet"])
    >>> len(found), found.types
    (2, {'row': 'int64', 'el2n': 'float'})
    """
    found = engine.map(_header_table, [os.path.abspath(path) for path in paths])
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


def header_of(path: str) -> Header:
    """The header of one file, every value of which is checked, a row group at a time; raises as :func:`headers`."""
    with open(path, "rb"):
        pass  # a missing or unreadable file is the system's error, not a damaged one
    try:
        with pq.ParquetFile(pa.memory_map(path), page_checksum_verification=True) as file:
            sealed = unseal(path, file.metadata.metadata, "scores")
            added = {name: sealed.pop(name, None) for name in ("format", "library", "digest", "checksum")}
            types = {field.name: str(field.type) for field in file.schema_arrow}
            length = file.metadata.num_rows
            columns = {name: Parts(length, functools.partial(_column_parts, file, name)) for name in types}
            if added["digest"] != content_digest(sealed, columns):
                raise CorruptFileError(f"{path} was damaged or edited: its content is not what was written")
            last = -1
            for group in range(file.num_row_groups):
                rows = ScoreTable._build(sealed, _columns(file.read_row_group(group))).rows
                if rows[0] <= last:
                    raise ArgumentError("row", "must ascend", int(rows[0]))
                last = rows[-1]
    except (CorruptFileError, MismatchError):
        raise
    except Exception as error:  # as files.read_columns
        raise CorruptFileError(f"{path} is damaged or cut short: {error}") from error
    return Header(path, added["digest"], length, types, sealed)


def _header_table(path: str) -> pa.Table:
    return pa.table({"header": [json.dumps(vars(header_of(path)))]})


def _column_parts(file: pq.ParquetFile, name: str) -> Iterator[Any]:
    for group in range(file.num_row_groups):
        yield from_arrow(file.read_row_group(group, columns=[name])[name])


def _columns(table: pa.Table) -> dict[str, Any]:
    return {name: from_arrow(table[name]) for name in table.column_names}
