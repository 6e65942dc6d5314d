"""Files of scores that are longer than memory: read by row group or by a range of rows, written in parts."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

import prunesampler.tables.parquet as parquet
from prunesampler.errors import ArgumentError, CorruptFileError
from prunesampler.tables.parquet import Header, Parts, content_digest, from_arrow, group_spans, group_starts, read_group
from prunesampler.tables.score_table import ScoreTable

__all__ = ["ScoreFile", "write_parts"]


@dataclass(frozen=True)
class ScoreFile:
    """A file of scores, its values left where they are; ``len()`` is its number of rows.

    Attributes:
        header: what the file says of itself.
    """

    header: Header

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ScoreFile:
        """Read the header; :meth:`verify` looks at the values.

        Raises:
            OSError: the file cannot be read.
            CorruptFileError: damaged, cut short, edited, or not a file of ours.
            MismatchError: of another kind, or a newer format.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ScoreTable({"el2n": [0.5, 0.25]}).save(f"{folder}/scores.parquet")
        ...     file = ScoreFile.open(f"{folder}/scores.parquet")
        >>> len(file), file.column_names
        (2, ['row', 'el2n'])
        """
        return cls(parquet.read_header(path, "scores"))

    def __len__(self) -> int:
        return self.header.length

    @property
    def column_names(self) -> list[str]:
        """The columns that it has."""
        return list(self.header.types)

    @property
    def num_blocks(self) -> int:
        """How many row groups it has."""
        return self.header.groups

    @property
    def digest(self) -> str:
        """Of its content."""
        return self.header.digest

    @property
    def num_rows(self) -> int:
        """Size of the dataset."""
        return int(self.header.metadata["num_rows"])

    @property
    def fingerprint(self) -> str | None:
        """What the dataset is recognised by."""
        fingerprint: str | None = self.header.metadata["fingerprint"]
        return fingerprint

    @property
    def directions(self) -> dict[str, str]:
        """Score → "higher" or "lower", whichever is harder."""
        given = self.header.metadata["directions"]  # its keys are sorted
        return {name: given[name] for name in (*self.column_names, "forgetting") if name in given}

    @property
    def protocols(self) -> dict[str, Any]:
        """Score → how it was measured."""
        return dict(self.header.metadata["protocols"])

    @property
    def provenance(self) -> dict[str, Any]:
        """What else stands in the file."""
        return dict(self.header.metadata["provenance"])

    @property
    def complete(self) -> bool:
        """Whether its rows are 0 to N − 1: they are distinct."""
        return len(self) == self.num_rows

    def verify(self) -> None:
        """Look at every value, a column of a row group at a time, as :meth:`ScoreTable.load` would at all of them.

        Raises:
            CorruptFileError: the content is not what was written, or not a table of scores.
        """
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
            raise CorruptFileError(f"{self.header.path} is not a sound scores file: {error}") from error

    def block(self, number: int, columns: Sequence[str], size: int | None = None) -> Iterator[ScoreTable]:
        """Some columns of a row group, so many rows of it at a time; only the pages' checksums are verified.

        Raises:
            OSError: the file cannot be read.
            CorruptFileError: a page was damaged since it was written.
        """
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

    def range(self, rows: tuple[int, int], columns: Sequence[str]) -> ScoreTable | None:
        """Some columns of the rows from the first number to below the second; None where there are none of them."""
        spans = enumerate(group_spans(self.header, "row"))
        groups = [number for number, (lowest, highest) in spans if lowest < rows[1] and highest >= rows[0]]
        parts = []
        for found in (read_group(self.header, number, ["row", *columns]) for number in groups):
            first, end = np.searchsorted(found["row"], rows).tolist()
            parts.append({name: column[first:end] for name, column in found.items()})
        if not sum(len(part["row"]) for part in parts):
            return None
        return ScoreTable._view(
            self.header.metadata, {name: _joined([part[name] for part in parts]) for name in parts[0]}
        )


def write_parts(
    path: str | os.PathLike[str],
    metadata: dict[str, Any],
    types: dict[str, str],
    length: int,
    read: Callable[[Sequence[str]], Iterable[pa.Table]],
    proof: Iterable[Any] = (),
) -> Header:
    """Write a file of so many rows in parts.

    Args:
        path: of the file, which appears when it is complete.
        metadata: with at least ``kind``.
        types: its columns → Arrow's names of their types.
        length: how many rows.
        read: some of these columns in parts, called once for each column and once for all.
        proof: read to its end before the file appears; what it raises leaves no file.
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
