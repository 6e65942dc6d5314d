"""What the work on blocks is done by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import pyarrow as pa

__all__ = ["Blocks", "Engine", "Serial"]

Function = Callable[[Any], pa.Table]


class Blocks(Protocol):
    """A long table in parts, which can be read more than once. Parts without a row may be missing."""

    def parts(self, columns: Sequence[str] | None = None, rows: int | None = None) -> Iterator[pa.Table]:
        """Its rows in order: some columns or all, so many rows at a time (the last part may be shorter) or any."""
        ...

    def map(self, function: Function) -> Blocks:
        """The function of each part; of parts that ``sorted`` made, each is one."""
        ...

    def sorted(self, column: str) -> Blocks:
        """The same rows, ascending by a column of numbers."""
        ...


class Engine(Protocol):
    """Where functions are run: they and their arguments are pickled, their results are tables."""

    def map(self, function: Function, items: Sequence[Any]) -> Blocks:
        """The function of each item, in their order."""
        ...


class Serial:
    """One block after the other, in this process.

    >>> squares = Serial().map(lambda n: pa.table({"n": [n], "square": [n * n]}), [3, 1, 2])
    >>> [part.to_pydict() for part in squares.sorted("n").parts(["square"], rows=2)]
    [{'square': [1, 4]}, {'square': [9]}]
    """

    def map(self, function: Function, items: Sequence[Any]) -> Blocks:
        """See :class:`Engine`."""
        return _Held([function(item) for item in items])


class _Held:
    def __init__(self, tables: list[pa.Table]) -> None:
        self._tables = [table for table in tables if len(table)]

    def parts(self, columns: Sequence[str] | None = None, rows: int | None = None) -> Iterator[pa.Table]:
        tables = [table if columns is None else table.select(columns) for table in self._tables]
        if rows is not None and tables:
            whole = pa.concat_tables(tables)
            tables = [whole.slice(start, rows) for start in range(0, len(whole), rows)]
        return iter(tables)

    def map(self, function: Function) -> Blocks:
        return _Held([function(table) for table in self._tables])

    def sorted(self, column: str) -> Blocks:
        if not self._tables:
            return self
        whole = pa.concat_tables(self._tables).sort_by(column)
        size = -(-len(whole) // len(self._tables))
        return _Held([whole.slice(start, size) for start in range(0, len(whole), size)])
