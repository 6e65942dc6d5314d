from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("webdataset")

from prunesampler.errors import MismatchError
from prunesampler.shards.build import build_index
from prunesampler.shards.seeking import Seeker
from tests.helpers.shardfiles import delivered, write_shards


def test_rows_are_what_webdataset_gives_and_nothing_else_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = write_shards(tmp_path, [90, 60])
    index = build_index(urls, progress=False)
    read: list[tuple[int, int]] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *given: read.append(given[1:]) or pread(*given))
    seeker = Seeker(index)
    found = list(seeker.read(urls[1], np.array([91, 92, 148])))
    seeker.close()
    expected = delivered(urls[1])
    for (row, sample), wanted in zip(found, (91, 92, 148), strict=True):
        assert row == wanted
        assert sample.pop("__local_path__") == urls[1]
        assert sample == expected[wanted - 90]
    assert len(read) == 2
    assert sum(count for count, _ in read) < os.path.getsize(urls[1]) / 8
    assert list(seeker.read(urls[0], np.array([], np.int64))) == []


def test_large_parts_come_one_after_the_other(tmp_path: Path) -> None:
    urls = write_shards(tmp_path, [9])
    index = build_index(urls, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunesampler.shards.seeking._AT_ONCE", 1)
        samples = [sample for _, sample in Seeker(index).read(urls[0], np.arange(9))]
    assert [sample["__key__"] for sample in samples] == [sample["__key__"] for sample in delivered(urls)]


def test_it_reads_the_tar_of_the_index_alone(tmp_path: Path) -> None:
    urls = write_shards(tmp_path / "a", [3])
    moved = str(shutil.copy(urls[0], tmp_path))
    seeker = Seeker(build_index(urls, progress=False))
    given = (urls[0], f"file:{urls[0]}", os.path.relpath(urls[0]), moved, "http://host/000000.tar", f"pipe:cat {moved}")
    assert [seeker.can_read(url, 0) for url in given] == [True, True, True, False, False, False]


def test_a_shard_that_changed_is_refused(tmp_path: Path) -> None:
    urls = write_shards(tmp_path, [3])
    index = build_index(urls, progress=False)
    with open(urls[0], "ab") as file:
        file.write(bytes(512))
    with pytest.raises(MismatchError, match="has changed"):
        list(Seeker(index).read(urls[0], np.arange(3)))
