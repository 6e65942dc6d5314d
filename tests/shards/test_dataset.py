from __future__ import annotations

import multiprocessing
import os
import pickle
import tarfile
import tracemalloc
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from torch.utils.data import DataLoader

import prunesampler as ps
from prunesampler.errors import ArgumentError, CorruptFileError, MismatchError, UnsupportedError
from prunesampler.shards import IndexedShards, ShardIndex, build_index
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.fingerprint import fingerprint
from tests.helpers.http_server import serving
from tests.helpers.shardfiles import LEFT_OPEN, delivered, write_shards, write_tar

pytestmark = LEFT_OPEN

ROWS = 22
KEPT = [0, 3, 7, 8, 11, 20, 21]


def as_pair(sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
    return sample["png"], sample["cls"]


def row_of(sample: dict[str, Any]) -> int:
    return int(sample["__key__"])


def without_url(sample: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sample.items() if name != "__url__"}


def test_a_row_is_what_webdataset_delivers_at_that_place(paths: list[str], index: ShardIndex) -> None:
    dataset = IndexedShards(index)
    expected = delivered(paths)
    assert len(dataset) == ROWS
    assert [dataset[row] for row in range(ROWS)] == expected
    assert list(dataset[0]) == list(expected[0])
    assert dataset[-1] == expected[-1]
    order = np.random.default_rng(0).integers(-ROWS, ROWS, 100)
    assert dataset.__getitems__(order.tolist()) == [expected[row] for row in order]
    assert dataset.__getitems__([]) == []
    for row in (ROWS, -ROWS - 1):
        with pytest.raises(IndexError, match=rf"rows must be in \[0, {ROWS}\)"):
            dataset[row]


def test_a_coreset_leaves_rows_their_numbers(paths: list[str], index: ShardIndex) -> None:
    dataset = IndexedShards(index, Coreset(KEPT, num_rows=ROWS))
    expected = delivered(paths)
    assert len(dataset) == ROWS
    assert dataset.__getitems__(KEPT[::-1]) == [expected[row] for row in KEPT[::-1]]
    for row in set(range(ROWS)) - set(KEPT):
        with pytest.raises(ArgumentError, match=f"row must be of the coreset: .*PrunedSampler.*got {row}$"):
            dataset[row]


@pytest.mark.parametrize("names", ["pil", "torchrgb", "rgb8", ("l8", webdataset.handle_extension("cls", int))])
def test_decoders_of_webdataset(names: Any, paths: list[str], index: ShardIndex) -> None:
    names = (names,) if isinstance(names, str) else names
    expected = list(webdataset.WebDataset(paths, shardshuffle=False).decode(*names))
    found = IndexedShards(index, decode=names).__getitems__(range(ROWS))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["cls"] == theirs["cls"]
        assert np.array_equal(np.asarray(mine["png"]), np.asarray(theirs["png"]))


@pytest.mark.parametrize(("workers", "context"), [(0, None), (2, "fork"), (1, "forkserver")])
def test_a_loader_with_a_sampler(workers: int, context: str | None, index: ShardIndex, tmp_path: Path) -> None:
    index.save(tmp_path / "index.parquet")
    Coreset(KEPT, num_rows=ROWS, fingerprint=index.fingerprint).save(tmp_path / "coreset.parquet")
    dataset = IndexedShards(tmp_path / "index.parquet", tmp_path / "coreset.parquet", row_of)
    dataset[KEPT[0]]  # files that are open here are not shared with workers
    sampler = ps.PrunedSampler.from_parquet(tmp_path / "coreset.parquet", dataset, seed=3)
    loader = DataLoader(dataset, batch_size=2, sampler=sampler, num_workers=workers, multiprocessing_context=context)
    for epoch in range(2):
        found = [batch.tolist() for batch in loader]
        assert sorted(chain(*found)) == KEPT
        sampler.set_epoch(epoch)
        assert list(chain(*found)) == list(sampler)
        sampler.set_epoch(epoch + 1)
    rows = [rows.tolist() == batch.tolist() for rows, batch in ps.with_rows(loader)]
    assert rows == [True] * 4


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_in_the_middle_of_an_epoch(workers: int, index: ShardIndex) -> None:
    dataset = IndexedShards(index, decode=row_of)

    def batches(sampler: ps.PrunedSampler) -> list[list[int]]:
        loader = DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=workers)
        return [batch.tolist() for batch in loader]

    whole, resumed = ps.PrunedSampler(dataset, seed=1), ps.PrunedSampler(dataset, seed=1)
    resumed.load_state_dict({**resumed.state_dict(), "position": 8})
    assert batches(resumed) == batches(whole)[2:]


@pytest.mark.parametrize("workers", [0, 2])
def test_attach_in_one_line(workers: int, index: ShardIndex, tmp_path: Path) -> None:
    dataset = IndexedShards(index, decode="torchrgb", transform=as_pair)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    loader = DataLoader(dataset, batch_size=4, shuffle=True, num_workers=workers)
    with pytest.warns(ps.PruneSamplerWarning):
        loader = ps.attach(loader, model, keep=0.5, score_epochs=2, save_dir=tmp_path / "run")
    seen = []
    for _ in range(3):
        seen.append(0)
        for images, labels in loader:
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            seen[-1] += len(labels)
    assert seen == [ROWS, ROWS, ROWS // 2]
    table = ps.ScoreTable.load(tmp_path / "run" / "scores.parquet")
    assert table.labels.tolist() == index.labels.tolist()
    assert ps.Coreset.load(tmp_path / "run" / "coreset.parquet", index.fingerprint).fingerprint == index.fingerprint


def test_it_is_recognised_by_its_index(index: ShardIndex) -> None:
    assert fingerprint(IndexedShards(index)) == index.fingerprint
    IndexedShards(index, Coreset([1], num_rows=ROWS, fingerprint=index.fingerprint))
    with pytest.raises(MismatchError, match="of 5 rows, and this dataset has 22"):
        IndexedShards(index, Coreset([1], num_rows=5))
    with pytest.raises(MismatchError, match="fingerprint sha256:0, this one has sha256:"):
        IndexedShards(index, Coreset([1], num_rows=ROWS, fingerprint="sha256:0"))


def test_it_is_pickled_as_paths(index: ShardIndex, tmp_path: Path) -> None:
    coreset = Coreset(KEPT, num_rows=ROWS)
    index.save(tmp_path / "index.parquet")
    coreset.save(tmp_path / "coreset.parquet")
    dataset = IndexedShards(tmp_path / "index.parquet", tmp_path / "coreset.parquet")
    before = dataset[3]
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 1000
    assert pickle.loads(pickled)[3] == before
    with pytest.raises(ArgumentError, match="of the coreset"):
        pickle.loads(pickled)[1]
    assert pickle.loads(pickle.dumps(IndexedShards(index, coreset)))[3] == before


def _open_shards() -> int:
    folder = Path("/proc/self/fd")
    return sum(os.readlink(link).endswith(".tar") for link in folder.iterdir() if link.exists())


def test_few_files_stay_open(tmp_path: Path) -> None:
    dataset = IndexedShards(build_index(write_shards(tmp_path, [2] * 12), progress=False), open_files=3)
    before = _open_shards()
    assert list(map(row_of, dataset.__getitems__(range(24)))) == list(range(24))
    assert _open_shards() == before + 3
    del dataset
    assert _open_shards() == before


def _read_in_child(dataset: IndexedShards) -> None:
    for row in range(200):
        assert row_of(dataset[row % ROWS]) == row % ROWS


def test_parent_and_children_read_at_once_after_a_fork(index: ShardIndex) -> None:
    dataset = IndexedShards(index, open_files=2)
    dataset.__getitems__(range(ROWS))
    children = [multiprocessing.get_context("fork").Process(target=_read_in_child, args=(dataset,)) for _ in range(2)]
    for child in children:
        child.start()
    for row in range(200):
        assert row_of(dataset[-1 - row % ROWS]) == ROWS - 1 - row % ROWS
    for child in children:
        child.join()
        assert child.exitcode == 0


def test_compressed_shards_are_refused_with_the_cure(tmp_path: Path) -> None:
    paths = [*write_shards(tmp_path, [3]), str(tmp_path / "z.tar.gz")]
    with webdataset.TarWriter(paths[1], compress=True) as writer:
        writer.write({"__key__": "z", "txt": "z"})
    index = build_index(paths, progress=False)
    with pytest.raises(UnsupportedError, match=r"z\.tar\.gz is compressed .* prunesampler repack"):
        IndexedShards(index)
    assert len(IndexedShards(index, Coreset([0, 2], num_rows=4))) == 4  # nothing kept lies in it


def test_a_shard_that_has_changed_is_refused(tmp_path: Path) -> None:
    def index(*files: tuple[str, bytes]) -> ShardIndex:
        return build_index(write_tar(tmp_path / "a.tar", files), progress=False)

    dataset = IndexedShards(index(("a.txt", b"one"), ("b.txt", b"two")))
    index(("b.txt", b"two"), ("a.txt", b"one"))  # as long as before
    with pytest.raises(MismatchError, match=r"a\.tar has changed since it was indexed: 'a\.txt' is not where it was"):
        dataset[0]
    dataset = IndexedShards(index(("a.txt", b"one")))
    index(("a.txt", bytes(12_000)))
    with pytest.raises(MismatchError, match="from 10240 to 20480 bytes"):
        dataset[0]
    (tmp_path / "a.tar").unlink()
    with pytest.raises(FileNotFoundError):
        IndexedShards(dataset.index)[0]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_all_kinds(format: int, tmp_path: Path) -> None:
    names = ["../up.txt", "/abs.txt", "döt.JPG", "a.b/c.seg.png", "x" * 150 + ".txt", "empty.bin", "0.é"]
    files = [(name, name.encode() * (name != "empty.bin")) for name in names]
    path = write_tar(tmp_path / "a.tar", files, format)
    assert IndexedShards(build_index(path, progress=False)).__getitems__(range(len(names))) == delivered([path])
    assert [each.name for each in tmp_path.iterdir()] == ["a.tar"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"open_files": 0}, "open_files must be an int >= 1"),
        ({"open_files": True}, "open_files must be"),
        ({"decode": "png"}, "decode must be a function, None, or"),
        ({"decode": [3]}, "decode must be"),
        ({"transform": 3}, "transform must be a function or None"),
    ],
)
def test_arguments(options: dict[str, Any], message: str, index: ShardIndex) -> None:
    with pytest.raises(ArgumentError, match=message):
        IndexedShards(index, **options)


def test_over_http_a_batch_is_a_request_for_each_shard(paths: list[str]) -> None:
    with serving(Path(paths[0]).parent) as server:
        index = build_index([server.url + Path(path).name for path in paths], progress=False)
        dataset = IndexedShards(index, transform=without_url)
        expected = list(map(without_url, delivered(paths)))
        del server.requests[:]
        rows = [20, 3, 7, 0, 21]
        assert dataset.__getitems__(rows) == [expected[row] for row in rows]
        assert len(server.requests) == 3
        assert all(server.requests)
        del server.requests[:]
        server.breaks_first = True
        assert dataset.__getitems__(range(ROWS)) == expected
        server.ranges = False
        with pytest.raises(UnsupportedError, match="stream the shards, or repack"):
            dataset[0]
        server.ranges = True
        write_shards(Path(paths[0]).parent, [9])
        with pytest.raises(MismatchError, match="has changed"):
            dataset[0]


def test_shards_in_an_object_store(paths: list[str]) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in paths:
        memory.pipe_file(f"/reader/{Path(path).name}", Path(path).read_bytes())
    try:
        index = build_index([f"memory://reader/{Path(path).name}" for path in paths], progress=False)
        dataset = IndexedShards(index, transform=without_url)
        rows = [20, 3, 7, 0, 21]
        expected = list(map(without_url, delivered(paths)))
        assert dataset.__getitems__(rows) == [expected[row] for row in rows]
        memory.pipe_file("/reader/000000.tar", Path(paths[0]).read_bytes()[:1000])
        with pytest.raises((CorruptFileError, MismatchError)):
            dataset[3]
    finally:
        memory.rm("/reader", recursive=True)


def test_memory_is_that_of_the_kept_rows(tmp_path: Path) -> None:
    index = build_index(write_shards(tmp_path, [2000]), progress=False)
    tracemalloc.start()
    dataset = IndexedShards(index, Coreset([5], num_rows=2000))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert row_of(dataset[5]) == 5
    assert held < 100_000
