"""Where the work on blocks is done: in a few threads of this process, or on a Ray cluster.

An engine's ``map`` is like Python's own, which does the work in this thread: a function of one block and the blocks in,
results in the order of the blocks out. It begins at once, works a little ahead of who reads, and holds nothing that was
read. On a cluster functions, blocks and results are pickled.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from prunesampler.errors import PruneSamplerError, UnsupportedError

Map = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


class Threads:
    """A few threads of this process."""

    def __init__(self) -> None:
        # More than four would wait: files are verified and written by one at a time.
        self._count = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
        self._pool = ThreadPoolExecutor(self._count, "prunesampler-blocks")

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """The function of each item, in their order."""
        return _ahead(lambda item: self._pool.submit(function, item), Future.result, items, 2 * self._count)


class RayEngine:
    """One task of Ray for each block, on whichever node has room.

    Ray is told where its cluster is by ``ray.init`` or ``RAY_ADDRESS``; else it starts on this machine.

    Raises:
        UnsupportedError: Ray is not installed.
    """

    def __init__(self) -> None:
        try:
            import ray
            import ray.exceptions
        except ImportError as error:
            raise UnsupportedError(f"the engine needs Ray ({error}): pip install 'prunesampler[ray]'") from error
        self._ray = ray
        if not ray.is_initialized():
            ray.init()
        self._task = ray.remote(_call).options(scheduling_strategy="SPREAD")

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """The function of each item, in their order."""
        shared = self._ray.put(function)
        most = 2 * max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        return _ahead(lambda item: self._task.remote(shared, item), self._result, items, most)

    def _result(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, PruneSamplerError | OSError):  # raised on purpose: as if it were raised here
                raise error.cause from error
            raise


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _ahead(begin: Callable[[Any], Any], result: Callable[[Any], Any], items: Iterable[Any], most: int) -> Iterator[Any]:
    items = iter(items)
    begun = deque(begin(item) for item in itertools.islice(items, most))

    def results() -> Iterator[Any]:
        while begun:
            yield result(begun.popleft())
            begun.extend(begin(item) for item in itertools.islice(items, 1))

    return results()
