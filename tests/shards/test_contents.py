from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from prunesampler.errors import CorruptFileError, MismatchError
from prunesampler.shards import ShardIndex, build_index
from prunesampler.shards.contents import Contents
from prunesampler.shards.locations import Locations
from prunesampler.shards.packing import padded
from tests.helpers.shardfiles import write_tar

FILES = [(f"{row}.{extension}", f"{row}{extension}".encode() * 300) for row in range(6) for extension in ("a", "b")]


def put(contents: Contents, index: ShardIndex, places: list[int]) -> list[bytes]:
    locations = Locations(index)
    sizes = np.array([locations.sizes[file] for place in places for file in locations.files(place)])
    ends = np.cumsum(512 + padded(sizes))
    room = np.empty(ends[-1], np.uint8)
    starts = ends - padded(sizes)
    contents.put(np.array(places), room, starts)
    return [room[start : start + size].tobytes() for start, size in zip(starts, sizes, strict=True)]


def test_plain_and_compressed_shards(tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / f"{n}.tar", FILES) for n in range(2)]
    Path(paths[1]).write_bytes(gzip.compress(Path(paths[1]).read_bytes()))
    index = build_index(paths, label=None, repeated_keys=True, progress=False)
    expected = [[content for _, content in FILES[2 * row : 2 * row + 2]] for row in range(6)] * 2
    with Contents(index, Locations(index)) as contents:
        for places in ([7, 3, 8], [5], [0, 11]):  # ascending in the second shard
            assert put(contents, index, places) == [content for place in places for content in expected[place]]


def test_a_compressed_shard_that_has_changed(tmp_path: Path) -> None:
    path = Path(write_tar(tmp_path / "a.tar", FILES))
    plain = path.read_bytes()
    path.write_bytes(gzip.compress(plain))
    index = build_index(path, label=None, progress=False)
    path.write_bytes(gzip.compress(plain[:2048]))
    with Contents(index, Locations(index)) as contents, pytest.raises(CorruptFileError, match="cut short"):
        put(contents, index, [5])
    path.write_bytes(gzip.compress(plain.replace(b"5.b\0", b"6.b\0")))
    with Contents(index, Locations(index)) as contents, pytest.raises(MismatchError, match=r"'5\.b' is not where"):
        put(contents, index, [5])
