from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prunesampler.errors import WriteError
from prunesampler.shards.shard_cache import ShardCache
from tests.helpers.shardfiles import bytes_on_disk

PAGE = 4096
fork = multiprocessing.get_context("fork")


def content(byte: int, pages: int = 1) -> Callable[[int], None]:
    def write(file: int) -> None:
        os.write(file, bytes([byte]) * PAGE * pages)

    return write


def add(cache: ShardCache, name: str, byte: int = 1, pages: int = 1) -> str:
    return cache.add(name, PAGE * pages, content(byte, pages), wait=True)


def test_what_was_used_longest_ago_goes_first_and_what_is_in_use_never(tmp_path: Path) -> None:
    cache = ShardCache(str(tmp_path / "cache"), 3 * PAGE)
    (tmp_path / "cache" / "notes.txt").write_text("mine")
    assert [add(cache, name) for name in ("aa", "bb", "cc")] == ["here"] * 3
    first = cache.open("aa")  # used later than bb
    assert first is not None
    assert add(cache, "dd") == "here"
    assert cache.open("bb") is None
    assert cache.touch("cc")
    assert add(cache, "ee") == "here"
    assert [cache.touch(name) for name in ("aa", "bb", "cc", "dd", "ee")] == [True, False, True, False, True]
    others = [cache.open("cc"), cache.open("ee")]
    assert add(cache, "ff") == "no room"  # all are open
    assert cache.used() == 3 * PAGE
    for file in (first, *others):
        assert file is not None
        assert os.pread(file, 1, 0) == b"\1"
        os.close(file)
    assert add(cache, "ff", pages=4) == "no room"  # ever
    assert add(cache, "ff", pages=3) == "here"
    assert cache.used() == 3 * PAGE
    assert (tmp_path / "cache" / "notes.txt").read_text() == "mine"


def _add_many(folder: str, limit: int, seed: int) -> None:
    cache, rng = ShardCache(folder, limit), np.random.default_rng(seed)
    held: list[int] = []
    for _ in range(60):
        number = int(rng.integers(12))
        pages = 1 + number % 5
        cache.add(f"{number:02x}", PAGE * pages, content(number, pages), wait=bool(rng.integers(2)))
        file = cache.open(f"{number:02x}")
        if file is not None:
            assert os.pread(file, 10**6, 0) == bytes([number]) * PAGE * pages, "a file was not complete"
            held.append(file)
        while len(held) > int(rng.integers(3)):
            os.close(held.pop(0))


def test_processes_that_share_a_folder_never_exceed_its_limit(tmp_path: Path) -> None:
    limit = 12 * PAGE
    processes = [fork.Process(target=_add_many, args=(str(tmp_path), limit, seed)) for seed in range(4)]
    for process in processes:
        process.start()
    most = 0
    while any(process.is_alive() for process in processes):
        most = max(most, bytes_on_disk(tmp_path))
        time.sleep(0.0005)
    assert [process.exitcode for process in processes] == [0] * 4
    assert 0 < most <= limit
    assert not list(tmp_path.glob("*.tmp"))


def _die_writing(folder: str, begun: str) -> None:
    def write(file: int) -> None:
        os.write(file, b"half")
        Path(begun).touch()
        time.sleep(3600)

    ShardCache(folder, 4 * PAGE).add("aa", 3 * PAGE, write, wait=True)


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.001)


@pytest.mark.parametrize("again", ["aa", "bb"])
def test_a_writer_that_is_killed_leaves_nothing_that_counts(again: str, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    process = fork.Process(target=_die_writing, args=(str(folder), str(tmp_path / "begun")))
    process.start()
    _wait_for(tmp_path / "begun")
    cache = ShardCache(str(folder), 4 * PAGE)
    assert cache.add("aa", 3 * PAGE, content(1, 3), wait=False) == "busy"
    assert add(cache, "bb", pages=3) == "no room"  # what is being written counts in full
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert cache.open("aa") is None
    assert add(cache, again, 7, pages=3) == "here"
    file = cache.open(again)
    assert file is not None
    assert os.pread(file, 10**6, 0) == b"\7" * 3 * PAGE
    os.close(file)
    assert not list(folder.glob("*.tmp"))


def test_who_waits_gets_the_file_of_another_or_writes_it_after_a_failure(tmp_path: Path) -> None:
    cache, go_on, written = ShardCache(str(tmp_path), 4 * PAGE), threading.Event(), []
    outcomes: list[object] = []

    def write(fails: bool, file: int) -> None:
        go_on.wait()
        written.append(fails)
        if fails:
            raise ConnectionError("no server")
        content(3)(file)

    def one(fails: bool) -> None:
        try:
            outcomes.append(cache.add("aa", PAGE, lambda file: write(fails, file), wait=True))
        except ConnectionError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=one, args=(fails,)) for fails in (True, False, False)]
    for thread in threads:
        thread.start()
        while not list(tmp_path.glob("aa.*")):
            time.sleep(0.001)
    go_on.set()
    for thread in threads:
        thread.join()
    assert sorted(map(str, outcomes)) == ["here", "here", "no server"]
    assert written == [True, False]


@pytest.mark.parametrize("failures", [1, 9])
def test_a_full_disk_makes_room_once_and_is_told_then(failures: int, tmp_path: Path) -> None:
    cache = ShardCache(str(tmp_path), 9 * PAGE)
    add(cache, "aa", pages=2)
    left = [OSError(errno.ENOSPC, "No space left on device")] * failures

    def write(file: int) -> None:
        os.write(file, b"x" * 100)
        if left:
            raise left.pop()

    if failures == 1:
        assert cache.add("bb", PAGE, write, wait=True) == "here"
        assert not cache.touch("aa")
    else:
        with pytest.raises(WriteError, match="cannot be written: No space left on device"):
            cache.add("bb", PAGE, write, wait=True)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="file cannot be written"):
        ShardCache(str(tmp_path / "file"), PAGE)
