"""What the work on blocks is done by."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import pyarrow as pa

__all__ = ["Blocks", "Engine", "Threads"]

Function = Callable[[Any], pa.Table]

_MOST_THREADS = 4  # more would wait: files are proved and written by one at a time


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

    def held(self) -> Blocks:
        """The same parts, made now and once, where they would else be made anew whenever they are read."""
        ...


class Engine(Protocol):
    """Where functions are run: they and their arguments are pickled, their results are tables."""

    def map(self, function: Function, items: Sequence[Any]) -> Blocks:
        """The function of each item, in their order."""
        ...


class Threads:
    """A few threads of this process, which work a little ahead of who reads and hold nothing that was read.

    >>> with Threads() as threads:
    ...     squares = threads.map(lambda n: pa.table({"n": [n], "square": [n * n]}), [3, 1, 2])
    ...     [part.to_pydict() for part in squares.sorted("n").parts(["square"], rows=2)]
    [{'square': [1, 4]}, {'square': [9]}]
    """

    def __init__(self) -> None:
        self._count = min(_MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
        self._pool = ThreadPoolExecutor(self._count, "prunesampler-blocks")

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def map(self, function: Function, items: Sequence[Any]) -> Blocks:
        """See :class:`Engine`."""
        return _Made(self, function, lambda: iter(items))

    def ahead(self, function: Function, items: Iterator[Any]) -> Iterator[pa.Table]:
        """The function of each item, begun for a few more than were asked for."""
        running: deque[Future[pa.Table]] = deque()
        for item in items:
            running.append(self.begun(function, item))
            if len(running) > 2 * self._count:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()

    def begun(self, function: Function, item: Any) -> Future[pa.Table]:
        """The function of one item, some time."""
        return self._pool.submit(function, item)


class _Parts(ABC):
    def __init__(self, threads: Threads) -> None:
        self._threads = threads

    @abstractmethod
    def _tables(self) -> Iterator[pa.Table]: ...

    def parts(self, columns: Sequence[str] | None = None, rows: int | None = None) -> Iterator[pa.Table]:
        tables = (table if columns is None else table.select(columns) for table in self._tables() if len(table))
        return tables if rows is None else _sized(tables, rows)

    def map(self, function: Function) -> Blocks:
        return _Made(self._threads, function, self.parts)

    def sorted(self, column: str) -> Blocks:
        tables = list(self.parts())
        if not tables:
            return self
        whole = pa.concat_tables(tables).sort_by(column)
        size = -(-len(whole) // len(tables))
        return _Held(self._threads, [whole.slice(start, size) for start in range(0, len(whole), size)])

    def held(self) -> Blocks:
        return self


class _Made(_Parts):
    """Made anew whenever it is read."""

    def __init__(self, threads: Threads, function: Function, items: Callable[[], Iterator[Any]]) -> None:
        super().__init__(threads)
        self._function, self._items = function, items

    def _tables(self) -> Iterator[pa.Table]:
        return self._threads.ahead(self._function, self._items())

    def held(self) -> Blocks:
        return _Held(self._threads, [self._threads.begun(self._function, item) for item in self._items()])


class _Held(_Parts):
    def __init__(self, threads: Threads, tables: Sequence[pa.Table | Future[pa.Table]]) -> None:
        super().__init__(threads)
        self._held = tables

    def _tables(self) -> Iterator[pa.Table]:
        return (table.result() if isinstance(table, Future) else table for table in self._held)


def _sized(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    count = 0
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
