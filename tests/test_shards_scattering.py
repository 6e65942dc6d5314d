from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunesampler.errors import CorruptFileError
from prunesampler.shards import build_index
from prunesampler.shards.scattering import ScatterReader
from shardfiles import write_shards


@pytest.mark.parametrize("open_files", [1, 2])
def test_bytes_come_where_they_are_wanted(open_files: int, tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [30, 20, 40])
    index, content = build_index(paths, progress=False), [Path(path).read_bytes() for path in paths]
    draw = np.random.default_rng(0)
    shards = draw.integers(0, 3, 1500)  # more than one call may take, overlapping, near and far
    sizes = draw.integers(0, 3000, 1500)
    offsets = np.array([draw.integers(0, len(content[shard]) - 3000) for shard in shards])
    filled = [(bytearray(min(size, 512)), bytearray(max(size - 512, 0))) for size in sizes.tolist()]
    reader = ScatterReader(index, open_files)
    reader.fill(shards, offsets, sizes, [[memoryview(one), memoryview(two)] for one, two in filled])
    reader.close()
    for shard, offset, size, (one, two) in zip(shards, offsets.tolist(), sizes.tolist(), filled, strict=True):
        assert bytes(one + two) == content[shard][offset : offset + size]


def test_neighbours_are_read_by_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    path = Path(write_shards(tmp_path, [30])[0])
    read, calls = os.preadv, []

    def counted(file: int, buffers: list[memoryview], offset: int) -> int:
        calls.append(offset)
        return read(file, buffers, min(offset, 10**6))

    monkeypatch.setattr(os, "preadv", counted)
    reader = ScatterReader(build_index(str(path), progress=False), 1)
    slots = [memoryview(bytearray(100)) for _ in range(3)]
    reader.fill(np.zeros(3, int), np.array([40_000, 0, 5000]), np.full(3, 100), [[slot] for slot in slots])
    assert calls == [0, 40_000]
    assert [bytes(slot) for slot in slots] == [path.read_bytes()[at : at + 100] for at in (40_000, 0, 5000)]


def test_a_short_answer_is_taken_up_and_an_end_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    path = Path(write_shards(tmp_path, [3])[0])
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, offset: read(file, [buffers[0][:7]], offset))
    reader = ScatterReader(build_index(str(path), progress=False), 1)
    slot = memoryview(bytearray(100))
    reader.fill(np.array([0]), np.array([3]), np.array([100]), [[slot[:60], slot[60:]]])
    assert bytes(slot) == path.read_bytes()[3:103]
    with pytest.raises(CorruptFileError, match=r"000000\.tar is cut short"):
        reader.fill(np.array([0]), np.array([path.stat().st_size - 50]), np.array([100]), [[slot]])
