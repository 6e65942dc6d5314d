"""Files of scores that are longer than memory: read by row group or by a range of rows, written in parts."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

import prunesampler.tables.parquet as parquet
from prunesampler.errors import ArgumentError, CorruptFileError
from prunesampler.tables.columns import json_object
from prunesampler.tables.parquet import Header, Parts, content_digest, from_arrow, group_spans, group_starts, read_group
from prunesampler.tables.score_table import ScoreTable


class ScoreFile:
    """A file of scores, its values left where they are; ``len()`` is its number of rows.

    It says of itself what a ScoreTable does: ``digest``, ``num_rows``, ``fingerprint``, ``directions`` and more.
    """

    def __init__(self, header: Header) -> None:
        self.header, self.digest, self.num_blocks = header, header.digest, header.groups
        self.column_names = list(header.types)
        said = header.metadata
        try:
            self.num_rows, self.fingerprint = int(said["num_rows"]), said["fingerprint"]
            names = [name for name in (*self.column_names, "forgetting") if name in said["directions"]]
            self.directions: dict[str, str] = {name: said["directions"][name] for name in names}  # in the file's order
            self.protocols = json_object("protocols", said["protocols"])
            self.provenance = json_object("provenance", said["provenance"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._unsound(error) from error
        self.complete = header.length == self.num_rows  # its rows are 0 to N − 1: they are distinct

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ScoreFile:
        """Read the header; :meth:`verify` looks at the values."""
        return cls(parquet.read_header(path, "scores"))

    def __len__(self) -> int:
        return self.header.length

    def _unsound(self, error: Exception) -> CorruptFileError:
        return CorruptFileError(f"{self.header.path} is not a sound scores file: {error}")

    def verify(self) -> None:
        """Look at every value, a column of a row group at a time, as :meth:`ScoreTable.load` would at all of them."""
        last = -1

        def check(name: str, column: Any) -> None:
            nonlocal last
            if isinstance(column, pa.Array):
                return
            if name == "row":
                if column[0] <= last or column[-1] >= self.num_rows or not (column[1:] > column[:-1]).all():
                    raise ArgumentError("row", f"must ascend in [0, {self.num_rows})", int(column[0]))
                last = column[-1]
            elif column.dtype == np.float32 and np.isinf(column).any():
                raise ArgumentError(name, "must be finite", "an infinite value")
            elif column.dtype == np.int32 and column.min() < (0 if name == "presentations" else -1):
                raise ArgumentError(name, "must be at least 0, or -1 for none", int(column.min()))

        parquet.verify(self.header, check)
        try:
            ScoreTable._build(self.header.metadata, read_group(self.header, 0, self.column_names))
        except (ArgumentError, KeyError) as error:
            raise self._unsound(error) from error

    def block(self, number: int, columns: Sequence[str], size: int | None = None) -> Iterator[ScoreTable]:
        """Some columns of a row group, so many rows of it at a time; only the pages' checksums are verified."""
        start, end = group_starts(self.header)[number : number + 2]
        names = [*([] if self.complete else ["row"]), *columns]
        found = read_group(self.header, number, names) if names else {}
        size = size or end - start
        for first in range(0, end - start, size):
            part = {name: column[first : first + size] for name, column in found.items()}
            if self.complete:
                part["row"] = np.arange(start + first, min(start + first + size, end))
            yield ScoreTable._view(self.header.metadata, part)

    def first_row(self, number: int) -> int:
        """How many rows stand before a row group: the first of its rows if the file is complete."""
        return group_starts(self.header)[number]

    def range(self, rows: tuple[int, int], columns: Sequence[str]) -> ScoreTable:
        """Some columns of the rows from the first number to below the second; there may be none of them."""
        types = {name: pa.type_for_alias(self.header.types[name]) for name in ("row", *columns)}
        parts = [{name: from_arrow(pa.chunked_array([], kind)) for name, kind in types.items()}]
        for number, (lowest, highest) in enumerate(group_spans(self.header, "row")):
            if lowest < rows[1] and highest >= rows[0]:
                found = read_group(self.header, number, list(types))
                first, end = np.searchsorted(found["row"], rows).tolist()
                parts.append({name: column[first:end] for name, column in found.items()})
        whole = {name: _joined([part[name] for part in parts]) for name in types}
        return ScoreTable._view(self.header.metadata, whole)


def write_parts(
    path: str | os.PathLike[str],
    metadata: dict[str, Any],
    types: dict[str, str],
    length: int,
    read: Callable[[Sequence[str]], Iterable[pa.Table]],
    proof: Iterable[Any] = (),
) -> Header:
    """Write a file of so many rows in parts, as :func:`parquet.write_columns` would write the whole.

    ``read`` gives some of the columns of ``types`` in parts; it is called once for each column and once for all.
    ``proof`` is read to its end before the file appears; what it raises leaves no file.
    """

    def values(name: str) -> Iterator[Any]:
        return (from_arrow(part[name]) for part in read([name]) if len(part))

    def parts() -> Iterator[pa.Table]:
        yield from _row_groups(read(list(types)))
        for _ in proof:
            pass

    digest = content_digest(metadata, {name: Parts(length, functools.partial(values, name)) for name in types})
    return parquet.write_parts(path, metadata, digest, parts())


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    count, rows = 0, parquet.ROW_GROUP
    for table in tables:
        waiting.append(table)
        count += len(table)
        if count >= rows:
            whole = pa.concat_tables(waiting)
            yield from (whole.slice(start, rows) for start in range(0, count - count % rows, rows))
            count %= rows
            waiting = [whole.slice(len(whole) - count)]
    if count:
        yield pa.concat_tables(waiting)


def _joined(parts: list[Any]) -> Any:
    return pa.concat_arrays(parts) if isinstance(parts[0], pa.Array) else np.concatenate(parts)
