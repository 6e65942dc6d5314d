from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from prunesampler.errors import ArgumentError, UnsupportedError
from prunesampler.shards import IndexedShards, Member, ShardIndex, build_index, repack, track
from prunesampler.shards import index as module
from tests.helpers.shardfiles import delivered, write_shards

COUNTS = [7, 0, 12, 5]

pytestmark = pytest.mark.filterwarnings("ignore:1 of 4 shards hold no sample")


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    return write_shards(tmp_path / "shards", COUNTS)


@pytest.fixture(params=["built", "loaded", "pickled"])
def index(request: pytest.FixtureRequest, shards: list[str], tmp_path: Path) -> ShardIndex:
    built = build_index(shards, progress=False)
    if request.param == "built":
        return built
    built.save(tmp_path / "index.parquet")
    loaded = ShardIndex.load(tmp_path / "index.parquet")
    return loaded if request.param == "loaded" else pickle.loads(pickle.dumps(loaded))


def test_every_sample_of_webdataset_has_its_row(index: ShardIndex, shards: list[str]) -> None:
    samples = delivered(shards)
    assert len(index) == len(samples) == sum(COUNTS)
    for row, sample in enumerate(samples):
        assert index.row(sample["__url__"], sample["__key__"]) == row
        assert index.key(row) == sample["__key__"]
        content = Path(index.shards[index.shard_of(row)]).read_bytes()
        files = {m.extension: content[m.offset : m.offset + m.size] for m in index.members(row)}
        assert files == {name: value for name, value in sample.items() if not name.startswith("__")}
    assert index.labels is not None
    assert index.labels.tolist() == [int(sample["cls"]) for sample in samples]


def test_it_tells_shards_and_their_rows(index: ShardIndex, shards: list[str]) -> None:
    assert repr(index) == "ShardIndex(rows=24, shards=4)"
    assert index.shards == shards
    assert index.first_rows.tolist() == [0, 7, 7, 19, 24]
    assert [index.rows_of(number) for number in range(4)] == [range(7), range(7, 7), range(7, 19), range(19, 24)]
    assert index.rows_of(shards[2]) == range(7, 19)
    assert [index.shard_of(row) for row in (0, 6, 7, 18, 19, 23)] == [0, 0, 2, 2, 3, 3]
    assert all(index.seekable(shard) for shard in shards)
    assert index.lookup(2) == {key: row for row, key in enumerate(index.keys_of(2).to_pylist(), 7)}
    assert index.lookup(shards[1]) == {}
    assert isinstance(index.members(3)[0], Member)


def test_rows_are_taken_from_several_shards(index: ShardIndex) -> None:
    rows = np.array([0, 3, 6, 7, 18, 19, 23])
    table = index.take(rows)
    assert table.column_names == ["row", "shard", "key", "members", "label"]
    assert table["row"].to_pylist() == rows.tolist()
    assert table["shard"].to_pylist() == [0, 0, 0, 2, 2, 3, 3]
    assert table["key"].to_pylist() == [index.key(row) for row in rows.tolist()]
    assert table["members"].to_pylist() == [[m._asdict() for m in index.members(row)] for row in rows.tolist()]
    assert table["label"].to_pylist() == [row % 10 for row in rows.tolist()]


def test_what_is_not_in_the_index_is_refused(index: ShardIndex) -> None:
    for row in (-1, 24):
        with pytest.raises(ArgumentError, match=r"row must be an int in \[0, 23\]"):
            index.key(row)
    with pytest.raises(ArgumentError, match=r"shard must be an int in \[0, 3\], got 4"):
        index.rows_of(4)
    with pytest.raises(ArgumentError, match=r"url must be in the index, which has 4 shards like .*, got 'x.tar'"):
        index.row("x.tar", "000000")
    with pytest.raises(ArgumentError, match=r"key must be one of shard .*000002.tar, got '000000'"):
        index.row(2, "000000")
    for rows in ([3, 2], [2, 2], [24], [], [0.5]):
        with pytest.raises(ArgumentError, match="rows must"):
            index.take(rows)


def test_lookups_are_cached_up_to_a_bound(index: ShardIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CACHED_KEYS", 17)
    kept = [index.lookup(number) for number in (0, 3, 2)]
    assert index.lookup(2) is kept[2]
    assert index.lookup(3) is kept[1]
    assert index.lookup(0) is not kept[0]


def test_the_fingerprint_is_of_the_keys(shards: list[str], tmp_path: Path) -> None:
    index = build_index(shards, progress=False)
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "shards", moved)
    renamed = [moved / f"{number}.tar" for number in range(4)]
    for shard, name in zip(shards, renamed, strict=True):
        (moved / Path(shard).name).rename(name)
    subprocess.run(["gzip", renamed[0]], check=True)
    renamed[0] = moved / "0.tar.gz"
    assert build_index(renamed, progress=False).fingerprint == index.fingerprint
    assert build_index(shards[::-1], progress=False).fingerprint != index.fingerprint
    assert build_index(shards, label=None, progress=False).fingerprint == index.fingerprint
    index.save(tmp_path / "index.parquet")
    assert ShardIndex.load(tmp_path / "index.parquet").fingerprint == index.fingerprint


def test_forked_and_fresh_workers_read_a_loaded_index_by_its_path(shards: list[str], tmp_path: Path) -> None:
    build_index(shards, progress=False).save(tmp_path / "index.parquet")
    index = ShardIndex.load(tmp_path / "index.parquet")
    assert len(pickle.dumps(index)) < 400
    expected = [index.key(row) for row in range(24)]
    for context in ("fork", "forkserver"):
        loader = DataLoader(Keys(index), batch_size=5, num_workers=1, multiprocessing_context=context)
        assert [key for batch in loader for key in batch] == expected


class Keys(Dataset[str]):
    def __init__(self, index: ShardIndex) -> None:
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> str:
        return self.index.key(row)


def test_importing_shards_imports_no_extra() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    code = "import sys, torch; known = {*sys.modules}; import prunesampler.shards; "
    code += "print({'webdataset', 'fsspec', 'tqdm'} & ({*sys.modules} - known))"
    assert subprocess.check_output([sys.executable, "-c", code], env=environment) == b"set()\n"


def test_an_index_from_elsewhere_runs_no_command(tmp_path: Path) -> None:
    tar, gift, ran = write_shards(tmp_path, [3])[0], tmp_path / "gift.parquet", tmp_path / "ran"
    command = f"pipe:touch {ran}; cat {tar}"
    with pytest.raises(ArgumentError, match="urls may hold a command"):
        build_index(command, progress=False)
    build_index(command, progress=False, allow_commands=True).save(gift)
    ran.unlink()
    out = f"{tmp_path}/out/{{shard}}.tar"
    for use in (ShardIndex.load, lambda path: repack(path, None, out, progress=False), IndexedShards):
        with pytest.raises(UnsupportedError, match="load it with allow_commands=True"):
            use(gift)
    with pytest.raises(ArgumentError, match="pipeline may hold a command"):
        track([command], build_index(tar, progress=False))
    assert not ran.exists()
    assert not (tmp_path / "out").exists()
    assert len(ShardIndex.load(gift, allow_commands=True)) == 3
    assert len(repack(gift, None, out, allow_commands=True, progress=False)) == 3
    assert ran.exists()
    trusted = pickle.loads(pickle.dumps(ShardIndex.load(gift, allow_commands=True)))
    assert trusted.rows_of(command) == range(3)
