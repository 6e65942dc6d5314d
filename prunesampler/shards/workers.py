"""Several shards read at once, in processes: parsing headers is bound by Python, which threads would share."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Generator, Sequence
from multiprocessing.connection import Connection, wait

import pyarrow as pa

from prunesampler.errors import StateError
from prunesampler.shards.labels import Label
from prunesampler.shards.scan import scan_shard
from prunesampler.shards.store import Shard

__all__ = ["scan_shards"]

_WORTH_FORKING = 0.2  # seconds of work left


def scan_shards(urls: Sequence[str], label: Label, workers: int) -> Generator[tuple[int, Shard, pa.Table], None, None]:
    """Read shards, ``workers`` of them at once.

    Args:
        urls: of the shards.
        label: see :func:`prunesampler.shards.build_index`; a function need not be picklable.
        workers: processes, forked once what is left would take long enough; with 1, none is.

    Yields:
        Position in ``urls``, shard and samples, as they are ready.

    Raises:
        Exception: what :func:`scan_shard` raised for the first shard that failed.
        StateError: a process was killed.
    """
    begun = time.perf_counter()
    for place, url in enumerate(urls):
        yield place, *scan_shard(url, label)
        left = urls[place + 1 :]
        if workers > 1 and len(left) > 1 and (time.perf_counter() - begun) / (place + 1) * len(left) > _WORTH_FORKING:
            for later, *found in _in_processes(left, label, min(workers, len(left))):
                yield place + 1 + later, *found
            return


def _in_processes(
    urls: Sequence[str], label: Label, workers: int
) -> Generator[tuple[int, Shard, pa.Table], None, None]:
    context = multiprocessing.get_context("fork")
    processes, open_ends = [], []
    try:
        for worker in range(workers):
            receiver, sender = context.Pipe(duplex=False)
            places = range(worker, len(urls), workers)
            process = context.Process(target=_work, args=(sender, urls, places, label), daemon=True)
            process.start()
            sender.close()
            processes.append(process)
            open_ends.append(receiver)
        missing = len(urls)
        while missing:
            if not open_ends:
                raise StateError(f"a process that read shards was killed; {missing} of {len(urls)} are not read")
            for ready in wait(open_ends):
                assert isinstance(ready, Connection)
                try:
                    result = ready.recv()
                except EOFError:
                    open_ends.remove(ready)
                    continue
                if isinstance(result, Exception):
                    raise result
                missing -= 1
                yield result
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _work(sender: Connection, urls: Sequence[str], places: Sequence[int], label: Label) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, and ends its processes
    for place in places:
        try:
            result = place, *scan_shard(urls[place], label)
        except Exception as error:
            sender.send(error)
            return
        try:
            sender.send(result)
        except BrokenPipeError:  # the parent is gone
            return
