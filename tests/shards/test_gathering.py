from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from prunesampler.errors import CorruptFileError
from prunesampler.shards import build_index, gathering
from prunesampler.shards.gathering import GatherReader
from tests.helpers.shardfiles import write_shards

BLOCK = 512


@pytest.mark.parametrize("open_files", [1, 2])
@pytest.mark.parametrize("large", [0, 1 << 30])
def test_bytes_come_where_they_are_wanted(
    large: int, open_files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "_LARGE", large)
    paths = write_shards(tmp_path, [300, 200, 400])
    index, content = build_index(paths, progress=False), [Path(path).read_bytes() for path in paths]
    draw = np.random.default_rng(0)
    runs = []
    for shard, data in enumerate(content):
        at = 0
        while at + 6 * BLOCK < len(data):
            runs.append((shard, at, int(draw.integers(1, 3000))))
            at += -(-runs[-1][2] // BLOCK) * BLOCK + int(draw.choice([0, 0, 1, 2, 40])) * BLOCK  # near and far
    shards, offsets, sizes = np.array(runs)[draw.permutation(len(runs))].T
    blocks = draw.permutation(len(runs)) * 6
    room = np.empty((6 * len(runs), BLOCK), np.uint8)
    reader = GatherReader(index, open_files)
    for part in np.split(np.arange(len(runs)), [0, 1, 9]):  # the buffer grows
        reader.fill(shards[part], offsets[part], sizes[part], blocks[part] * BLOCK, room)
        for i in part.tolist():
            expected = content[shards[i]][offsets[i] : offsets[i] + sizes[i]]
            assert room[blocks[i] :].reshape(-1)[: sizes[i]].tobytes() == expected
    reader.close()


def test_neighbours_are_read_by_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(write_shards(tmp_path, [30])[0])
    read, calls = os.preadv, []

    def counted(file: int, buffers: list[memoryview], offset: int) -> int:
        calls.append(offset)
        return read(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", counted)
    reader = GatherReader(build_index(str(path), progress=False), 1)
    room, offsets = np.empty((3, BLOCK), np.uint8), np.array([80, 0, 10]) * BLOCK
    reader.fill(np.zeros(3, int), offsets, np.full(3, 100), np.arange(3) * BLOCK, room)
    assert calls == [0, 80 * BLOCK]
    assert [row[:100].tobytes() for row in room] == [path.read_bytes()[at : at + 100] for at in offsets.tolist()]


@pytest.mark.parametrize("large", [0, 1 << 30])
def test_a_short_answer_is_taken_up_and_an_end_is_noticed(
    large: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "_LARGE", large)
    path = Path(write_shards(tmp_path, [3])[0])
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, offset: read(file, [buffers[0][:7]], offset))
    reader = GatherReader(build_index(str(path), progress=False), 1)
    room, zero, size = np.empty((1, BLOCK), np.uint8), np.array([0]), path.stat().st_size
    reader.fill(zero, np.array([BLOCK]), np.array([100]), zero, room)
    assert room.tobytes()[:100] == path.read_bytes()[BLOCK : BLOCK + 100]
    last = np.array([size - BLOCK])
    reader.fill(zero, last, np.array([BLOCK]), zero, room)  # to the very end
    with pytest.raises(CorruptFileError, match=r"000000\.tar is cut short"):
        reader.fill(zero, last, np.array([BLOCK + 1]), zero, np.empty((2, BLOCK), np.uint8))
