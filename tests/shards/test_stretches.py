from __future__ import annotations

import io
import tarfile
from pathlib import Path

from prunesampler.shards import build_index
from prunesampler.shards.packing import file_header
from prunesampler.shards.repack_plan import Layout
from prunesampler.shards.stretches import Stretch
from tests.helpers.shardfiles import write_tar

FILES = [("a.txt", b"x" * 600), ("b.x", b""), ("b." + "y" * 120, b"1"), ("c.txt", b"x" * 512), ("d.txt", b"4")]


def test_where_files_stand_and_what_they_are_called(tmp_path: Path) -> None:
    index = build_index(write_tar(tmp_path / "a.tar", FILES, tarfile.PAX_FORMAT), progress=False)
    stretch = Stretch(Layout(index, None, 10**6, False, 0, False), 1, 3)
    assert stretch.places.tolist() == [1, 2]
    assert stretch.starts.tolist() == [0, 2, 3]
    assert stretch.names.to_pylist() == [name for name, _ in FILES[1:4]]
    assert stretch.sizes.tolist() == [0, 1, 512]
    archive = b"".join(file_header(name, len(data)) + data + bytes(-len(data) % 512) for name, data in FILES[1:4])
    with tarfile.open(fileobj=io.BytesIO(archive + bytes(1024))) as tar:
        assert [info.offset_data for info in tar] == stretch.offsets.tolist()
    assert stretch.ends[-1] == len(archive)
    renamed = Stretch(Layout(index, None, 10**6, False, 0, True), 1, 3)
    assert renamed.names.to_pylist() == ["1.x", "1." + "y" * 120, "2.txt"]
