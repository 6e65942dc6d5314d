from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
from torch.utils.data import DataLoader

import prunesampler as ps
from prunesampler.errors import ArgumentError, CorruptFileError, MismatchError, UnsupportedError
from prunesampler.shards import IndexedShards, ShardIndex, build_index
from prunesampler.tables.fingerprint import fingerprint
from prunesampler.tables.score_table import Coreset
from tests.helpers.shardfiles import LEFT_OPEN, delivered, write_shards, write_tar

pytestmark = LEFT_OPEN

COUNTS = [7, 1, 5, 9]
ROWS = sum(COUNTS)
KEPT = [0, 3, 7, 8, 11, 20, 21]


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    return write_shards(tmp_path / "shards", COUNTS)


@pytest.fixture
def index(paths: list[str], tmp_path: Path) -> ShardIndex:
    build_index(paths, progress=False).save(tmp_path / "index.parquet")
    return ShardIndex.load(tmp_path / "index.parquet")


def streamed(paths: list[str]) -> list[dict[str, Any]]:
    """What webdataset delivers, without its note on where it read."""
    return [{name: value for name, value in sample.items() if name != "__local_path__"} for sample in delivered(paths)]


def as_pair(sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
    return sample["png"], sample["cls"]


def row_of(sample: dict[str, Any]) -> int:
    return int(sample["__key__"])


def test_a_row_is_what_webdataset_delivers_at_that_place(paths: list[str], index: ShardIndex) -> None:
    dataset = IndexedShards(index)
    expected = streamed(paths)
    assert len(dataset) == ROWS
    assert [dataset[row] for row in range(ROWS)] == expected
    assert list(dataset[0]) == list(expected[0])
    assert dataset[-1] == expected[-1]
    order = np.random.default_rng(0).integers(-ROWS, ROWS, 100)
    assert dataset.__getitems__(order.tolist()) == [expected[row] for row in order]
    assert dataset.__getitems__([]) == []


def test_a_coreset_leaves_rows_their_numbers(paths: list[str], index: ShardIndex) -> None:
    dataset = IndexedShards(index, Coreset(KEPT, num_rows=ROWS))
    expected = streamed(paths)
    assert len(dataset) == ROWS
    assert dataset.__getitems__(KEPT[::-1]) == [expected[row] for row in KEPT[::-1]]
    for row in set(range(ROWS)) - set(KEPT):
        with pytest.raises(ArgumentError, match=f"row must be of the coreset: .*PrunedSampler.*got {row}$"):
            dataset[row]


@pytest.mark.parametrize("row", [ROWS, -ROWS - 1])
def test_rows_out_of_range(row: int, index: ShardIndex) -> None:
    with pytest.raises(IndexError, match=f"rows must be in \\[0, {ROWS}\\)"):
        IndexedShards(index)[row]


@pytest.mark.parametrize("names", ["pil", "torchrgb", "rgb8", ("l8", webdataset.handle_extension("cls", int))])
def test_decoders_of_webdataset(names: Any, paths: list[str], index: ShardIndex) -> None:
    names = (names,) if isinstance(names, str) else names
    expected = list(webdataset.WebDataset(paths, shardshuffle=False).decode(*names))
    found = IndexedShards(index, decode=names).__getitems__(range(ROWS))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["cls"] == theirs["cls"]
        assert np.array_equal(np.asarray(mine["png"]), np.asarray(theirs["png"]))


def test_a_function_and_a_transform(index: ShardIndex) -> None:
    assert IndexedShards(index, decode=row_of)[5] == 5
    image, label = IndexedShards(index, decode="torchrgb", transform=as_pair)[12]
    assert (image.shape, label) == ((3, 32, 32), 2)


@pytest.mark.parametrize(("workers", "context"), [(0, None), (2, "fork"), (2, "spawn")])
def test_a_loader_with_a_sampler(workers: int, context: str | None, index: ShardIndex, tmp_path: Path) -> None:
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
    assert len(rows) == 4
    assert all(rows)


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_in_the_middle_of_an_epoch(workers: int, index: ShardIndex) -> None:
    dataset = IndexedShards(index, decode=row_of)

    def loader(sampler: ps.PrunedSampler) -> DataLoader[Any]:
        return DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=workers)

    whole = [batch.tolist() for batch in loader(ps.PrunedSampler(dataset, seed=1))]
    stopped = ps.PrunedSampler(dataset, seed=1)
    state = {**stopped.state_dict(), "position": 8}
    resumed = ps.PrunedSampler(dataset, seed=1)
    resumed.load_state_dict(state)
    assert [batch.tolist() for batch in loader(resumed)] == whole[2:]


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
    with pytest.raises(MismatchError, match="of 5 rows, the index has 22"):
        IndexedShards(index, Coreset([1], num_rows=5))
    with pytest.raises(MismatchError, match="fingerprint sha256:0"):
        IndexedShards(index, Coreset([1], num_rows=ROWS, fingerprint="sha256:0"))


def test_it_travels_as_paths(index: ShardIndex, tmp_path: Path) -> None:
    Coreset(KEPT, num_rows=ROWS).save(tmp_path / "coreset.parquet")
    dataset = IndexedShards(tmp_path / "index.parquet", tmp_path / "coreset.parquet")
    before = dataset[3]
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 1000
    assert pickle.loads(pickled)[3] == before
    with pytest.raises(ArgumentError, match="of the coreset"):
        pickle.loads(pickled)[1]
    in_memory = pickle.loads(pickle.dumps(IndexedShards(index, Coreset(KEPT, num_rows=ROWS))))
    assert in_memory[3] == before


def _open_shards() -> list[str]:
    folder = Path("/proc/self/fd")
    links = [os.readlink(link) for link in folder.iterdir() if link.exists()]
    return [link for link in links if link.endswith(".tar")]


def test_few_files_stay_open(tmp_path: Path) -> None:
    dataset = IndexedShards(build_index(write_shards(tmp_path, [2] * 12), progress=False), open_files=3)
    before = len(_open_shards())
    assert [sample["__key__"] for sample in dataset.__getitems__(range(24))] == [f"{row:06d}" for row in range(24)]
    assert len(_open_shards()) == before + 3
    del dataset
    assert len(_open_shards()) == before


def _read_in_child(dataset: IndexedShards, pipe: Any) -> None:
    for row in range(200):
        assert row_of(dataset[row % ROWS]) == row % ROWS
    pipe.send(True)


def test_parent_and_children_read_at_once_after_a_fork(index: ShardIndex) -> None:
    dataset = IndexedShards(index, open_files=2)
    dataset.__getitems__(range(ROWS))
    pipes = [multiprocessing.get_context("fork").Pipe() for _ in range(2)]
    children = [
        multiprocessing.get_context("fork").Process(target=_read_in_child, args=(dataset, pipe[1])) for pipe in pipes
    ]
    for child in children:
        child.start()
    for row in range(200):
        assert row_of(dataset[-1 - row % ROWS]) == ROWS - 1 - row % ROWS
    for child, (mine, _) in zip(children, pipes, strict=True):
        assert mine.poll(60)
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


def test_names_of_all_kinds(tmp_path: Path) -> None:
    import tarfile

    names = ["../up.txt", "/abs.txt", "döt.JPG", "a.b/c.seg.png", "x" * 150 + ".txt", "empty.bin", "0.é"]
    files = [(name, name.encode() * (name != "empty.bin")) for name in names]
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = write_tar(tmp_path / "a.tar", files, format)
        assert IndexedShards(build_index(path, progress=False)).__getitems__(range(len(names))) == streamed([path])
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


class _Ranges(BaseHTTPRequestHandler):
    folder: Path
    ranges = True
    asked: list[str]
    breaks_off = False  # at the first request for each range

    def do_GET(self) -> None:
        content = (self.folder / self.path.lstrip("/")).read_bytes()
        wanted = self.headers.get("Range") if self.ranges else None
        self.asked.append(wanted or "")
        if self.breaks_off and self.asked.count(wanted or "") == 1:
            self.close_connection = True
            return
        if wanted is None:
            self.send_response(200)
        else:
            first, end = wanted.removeprefix("bytes=").split("-")
            self.send_response(206)
            total = len(content)
            content = content[int(first) : int(end or total) + 1]
            self.send_header("Content-Range", f"bytes {first}-{end or total - 1}/{total}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(paths: list[str]) -> Iterator[tuple[str, type[_Ranges]]]:
    handler = type("Handler", (_Ranges,), {"folder": Path(paths[0]).parent, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", handler
        finally:
            server.shutdown()
            thread.join()


def over_http(base: str, paths: list[str]) -> IndexedShards:
    index = build_index([base + Path(path).name for path in paths], progress=False)
    return IndexedShards(index, transform=partial(_without_url))


def _without_url(sample: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sample.items() if not name.startswith("__url")}


def test_over_http_a_batch_is_a_request_for_each_shard(server: tuple[str, Any], paths: list[str]) -> None:
    base, handler = server
    dataset = over_http(base, paths)
    del handler.asked[:]
    rows = [20, 3, 7, 0, 21]
    expected = streamed(paths)
    assert dataset.__getitems__(rows) == [_without_url(expected[row]) for row in rows]
    assert len(handler.asked) == 3
    assert all(handler.asked)
    del handler.asked[:]
    handler.breaks_off = True
    assert dataset.__getitems__(range(ROWS)) == [_without_url(sample) for sample in expected]


def test_a_server_without_ranges_is_refused(server: tuple[str, Any], paths: list[str]) -> None:
    base, handler = server
    dataset = over_http(base, paths)
    handler.ranges = False
    with pytest.raises(UnsupportedError, match="whole files only: stream the shards, or repack"):
        dataset[0]
    handler.ranges = True
    write_shards(Path(paths[0]).parent, [9])
    with pytest.raises(MismatchError, match="has changed"):
        dataset[0]
    Path(paths[0]).unlink()
    Path(paths[0]).mkdir()  # the handler fails, the connection breaks
    handler.log_message = lambda *args: None


def test_shards_in_an_object_store(paths: list[str], tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in paths:
        memory.pipe_file(f"/reader/{Path(path).name}", Path(path).read_bytes())
    try:
        index = build_index([f"memory://reader/{Path(path).name}" for path in paths], progress=False)
        dataset = IndexedShards(index, transform=_without_url)
        rows = [20, 3, 7, 0, 21]
        expected = streamed(paths)
        assert dataset.__getitems__(rows) == [_without_url(expected[row]) for row in rows]
        memory.pipe_file("/reader/000000.tar", Path(paths[0]).read_bytes()[:1000])
        with pytest.raises((CorruptFileError, MismatchError)):
            dataset[3]
    finally:
        memory.rm("/reader", recursive=True)


def test_memory_is_that_of_the_kept_rows(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [2000])
    index = build_index(paths, progress=False)
    tracemalloc.start()
    dataset = IndexedShards(index, Coreset([5], num_rows=2000))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert dataset[5]["__key__"] == "000005"
    assert held < 100_000


@pytest.mark.skipif("PRUNESAMPLER_DATA" not in os.environ, reason="PRUNESAMPLER_DATA names no folder with CIFAR-10")
def test_cifar10(tmp_path: Path) -> None:
    table = pq.read_table(Path(os.environ["PRUNESAMPLER_DATA"]) / "cifar10-test.parquet")
    images = table["image"].to_pylist()[:3000]
    images = [image["bytes"] if isinstance(image, dict) else image for image in images]
    labels = table["label"].to_pylist()[:3000]
    with webdataset.ShardWriter(str(tmp_path / "%06d.tar"), maxcount=700, verbose=0) as writer:
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            writer.write({"__key__": f"{row:06d}", "img": image, "cls": label})
    index = build_index(sorted(map(str, tmp_path.glob("*.tar"))), progress=False)
    assert index.labels.tolist() == labels
    coreset = Coreset(np.random.default_rng(0).choice(3000, 1000, replace=False), num_rows=3000)
    dataset = IndexedShards(index, coreset)
    loader: Callable[..., Any] = partial(DataLoader, dataset, batch_size=64, collate_fn=list)
    sampler = ps.PrunedSampler(dataset, coreset=coreset)
    found = [
        (row_of(sample), sample["img"], int(sample["cls"])) for batch in loader(sampler=sampler) for sample in batch
    ]
    assert sorted(found) == [(row, images[row], labels[row]) for row in coreset.rows.tolist()]
