from __future__ import annotations

import os
from pathlib import Path

import pytest

from prunesampler.errors import MismatchError
from prunesampler.shards import build_index
from prunesampler.shards.handles import Handles
from tests.helpers.shardfiles import write_shards


def test_few_files_are_open_and_none_is_opened_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_shards(tmp_path, [1, 1, 1])
    handles, opened, system_open = Handles(build_index(paths, progress=False), 2), [], os.open

    def noted(path: str, flags: int) -> int:
        opened.append(paths.index(path))
        return system_open(path, flags)

    monkeypatch.setattr(os, "open", noted)
    for number in (0, 1, 0, 2, 0, 1):
        assert os.path.samestat(os.fstat(handles.of(number)), os.stat(paths[number]))
    assert opened == [0, 1, 2, 1]
    files = [handles.of(0), handles.of(1)]
    handles.close()
    for file in files:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(file)


def test_a_shard_of_another_size_is_refused(tmp_path: Path) -> None:
    path = Path(write_shards(tmp_path, [1])[0])
    index = build_index(str(path), progress=False)
    path.write_bytes(path.read_bytes() + b"x")
    handles = Handles(index, 1)
    for _ in range(2):
        with pytest.raises(MismatchError, match="has changed since it was indexed"):
            handles.of(0)
