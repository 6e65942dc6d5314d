from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from prunesampler.errors import CorruptFileError, StateError
from prunesampler.shards import workers as workers_module
from prunesampler.shards.scan import scan_shard
from prunesampler.shards.workers import scan_shards
from tests.helpers.shardfiles import write_shards


@pytest.fixture(autouse=True)
def forking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "_WORTH_FORKING", -1)


def test_little_work_needs_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_shards(tmp_path, [1, 1, 1])
    processes = scan_shards(paths, lambda key, files: os.getpid(), 3)
    assert len({table["label"].to_pylist()[0] for *_, table in processes}) == 3
    monkeypatch.setattr(workers_module, "_WORTH_FORKING", 1e9)
    own = scan_shards(paths, lambda key, files: os.getpid(), 3)
    assert {table["label"].to_pylist()[0] for *_, table in own} == {os.getpid()}


@pytest.mark.parametrize("workers", [1, 2, 3, 9])
def test_every_shard_once(tmp_path: Path, workers: int) -> None:
    paths = write_shards(tmp_path, [3, 0, 5, 1, 2])
    found = sorted(scan_shards(paths, "cls", workers), key=lambda result: result[0])
    assert [place for place, *_ in found] == list(range(5))
    for path, (_, shard, table) in zip(paths, found, strict=True):
        expected = scan_shard(path)
        assert (shard, table.to_pydict()) == (expected[0], expected[1].to_pydict())
    assert not multiprocessing.active_children()


def test_a_function_need_not_be_picklable(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [2, 2])
    found = scan_shards(paths, lambda key, files: int(key) + 100, 2)
    assert [table["label"].to_pylist() for _, _, table in sorted(found, key=lambda result: result[0])] == [
        [100, 101],
        [102, 103],
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_ends_all(tmp_path: Path, workers: int) -> None:
    paths = write_shards(tmp_path, [2] * 6)
    Path(paths[3]).write_bytes(b"")
    with pytest.raises(CorruptFileError, match=r"000003.tar is empty"):
        list(scan_shards(paths, "cls", workers))
    assert not multiprocessing.active_children()


def test_processes_with_much_to_do_are_ended(tmp_path: Path) -> None:
    def label(key: str, files: Mapping[str, bytes]) -> int:
        if key == "000002":
            raise ValueError("this one")
        if int(key) > 2:
            time.sleep(1000)
        return 0

    with pytest.raises(ValueError, match="this one"):
        list(scan_shards(write_shards(tmp_path, [2, 1, 1, 1]), label, 3))
    assert not multiprocessing.active_children()


def test_who_stops_listening_leaves_no_process(tmp_path: Path) -> None:
    results = scan_shards(write_shards(tmp_path, [2] * 6), "cls", 2)
    next(results)
    results.close()
    assert not multiprocessing.active_children()


def test_a_process_that_is_killed_is_noticed(tmp_path: Path) -> None:
    def label(key: str, files: Mapping[str, bytes]) -> int:
        if key == "000003":
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    with pytest.raises(StateError, match="was killed"):
        list(scan_shards(write_shards(tmp_path, [1, 2, 2]), label, 2))
