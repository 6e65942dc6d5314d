from __future__ import annotations

import os
from pathlib import Path

import fsspec
import numpy as np
import pytest

from prunesampler.errors import CorruptFileError, MismatchError
from prunesampler.shards import build_index
from prunesampler.shards.range_reader import Locations
from prunesampler.shards.shard_fetch import fetch_ranges, kept_ranges, whole_shard
from tests.helpers.http_server import serving
from tests.helpers.shardfiles import LEFT_OPEN, write_shards

pytestmark = LEFT_OPEN


@pytest.mark.parametrize("share", [0.02, 0.3, 0.97])
def test_the_fewest_ranges_that_a_quarter_more_bytes_allows(share: float, tmp_path: Path) -> None:
    index = build_index(write_shards(tmp_path, [200]), progress=False)
    kept = np.random.default_rng(1).random(200) < share
    fetch = kept_ranges(index.records[0], Locations(index), kept, below=1)
    assert fetch is not None
    members = index.table(0)["members"].to_pylist()
    spans = [(files[0]["offset"] - 512, files[-1]["offset"] + files[-1]["size"]) for files in members]
    wanted = [span for span, keep in zip(spans, kept, strict=True) if keep]
    for first, end in wanted:
        assert any(start <= first and end <= stop for start, stop in fetch.ranges)
    fetched, needed = (sum(end - first for first, end in each) for each in (fetch.ranges, wanted))
    assert needed <= fetched <= 1.25 * needed
    gaps = sorted(later - end for (_, end), (later, _) in zip(fetch.ranges, fetch.ranges[1:], strict=False))
    assert not gaps or fetched + gaps[0] > 1.25 * needed  # one range fewer would be too much
    assert kept_ranges(index.records[0], Locations(index), kept, below=needed / index.records[0].size) is None
    other = kept_ranges(index.records[0], Locations(index), ~kept, below=1)
    assert other is not None
    assert len({fetch.name, other.name, whole_shard(index.records[0], 0).name}) == 3


@pytest.mark.parametrize("scheme", ["http", "memory"])
def test_ranges_lie_where_they_do_in_the_shard(scheme: str, tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path / "shards", [40])
    data, ranges = Path(path).read_bytes(), [(512, 700), (2048, 9000), (20_000, 20_001)]
    with serving(tmp_path / "shards") as server:
        fsspec.filesystem("memory").pipe_file("/fetch/000000.tar", data)
        url = server.url + "000000.tar" if scheme == "http" else "memory://fetch/000000.tar"
        (shard,) = build_index(url, progress=False).records
        server.busy = 2
        for wanted in (ranges, [(0, len(data))]):
            file = os.open(tmp_path / "copy", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            fetch_ranges(shard, wanted, file)
            assert os.fstat(file).st_size == len(data)
            assert all(os.pread(file, end - first, first) == data[first:end] for first, end in wanted)
            os.close(file)
        Path(path).write_bytes(data[:30_000])
        fsspec.filesystem("memory").pipe_file("/fetch/000000.tar", data[:30_000])
        file = os.open(tmp_path / "copy", os.O_RDWR | os.O_TRUNC)
        for wanted in (ranges, [(0, len(data))]):
            with pytest.raises((MismatchError, CorruptFileError), match=r"000000\.tar"):
                fetch_ranges(shard, wanted, file)
        Path(path).unlink()
        fsspec.filesystem("memory").rm("/fetch", recursive=True)
        with pytest.raises(FileNotFoundError, match=url):
            fetch_ranges(shard, ranges, file)
        os.close(file)


def test_ranges_of_one_shard_are_of_one_version(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path / "shards", [40])
    with serving(tmp_path / "shards") as server, open(tmp_path / "copy", "wb") as copy:
        (shard,) = build_index(server.url + "000000.tar", progress=False).records
        del server.requests[:]
        server.later, server.later_tags = Path(path).read_bytes(), {"ETag": '"2"'}
        with pytest.raises(MismatchError, match="has changed while it was read"):
            fetch_ranges(shard, [(512, 700), (2048, 9000)], copy.fileno())
