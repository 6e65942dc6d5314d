"""Pruned streams: what comes out, what is decoded, and which shards are opened."""

from __future__ import annotations

import copy
import gzip
import itertools
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from torch.utils.data import DataLoader

from prunesampler.errors import ArgumentError, MismatchError, StateError, UnsupportedError
from prunesampler.shards import kept_stream
from prunesampler.shards.build import build_index
from prunesampler.shards.index import ShardIndex
from prunesampler.shards.kept_stream import Keep, keep
from prunesampler.shards.worker_split import Slice
from prunesampler.tables.coreset import Coreset
from tests.helpers.shardfiles import LEFT_OPEN, write_shards, write_split
from tests.helpers.shardfiles import delivered as delivered_samples

pytestmark = [*LEFT_OPEN, pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")]
SIZES = [7, 5, 9, 4, 8]
N = sum(SIZES)


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    samples = ({"__key__": f"s{row}", "json": {"row": row}, "cls": row % 3} for row in range(N))
    return write_split(tmp_path_factory.mktemp("shards"), samples, SIZES)


@pytest.fixture(scope="module")
def index(urls: list[str]) -> ShardIndex:
    return build_index(urls, progress=False)


def rows_of(sample: dict[str, Any]) -> int:
    return int(json.loads(sample["json"])["row"])


class Opened:
    """A stage that writes down the shards that are opened, into a file that workers share."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, source: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for item in source:
            with self.path.open("a") as file:
                file.write(item["url"] + "\n")
            yield item


def pipeline(urls: list[str], kept: Keep, *between: Any) -> Any:
    return wds.DataPipeline(
        wds.SimpleShardList(urls), kept.shards, *between, wds.tarfile_to_samples(), kept, wds.map(rows_of)
    )


def seeking(urls: list[str], kept: Keep, *between: Any) -> Any:
    return wds.DataPipeline(wds.SimpleShardList(urls), kept.shards, *between, kept.samples, wds.map(rows_of))


def delivered(dataset: Any, workers: int, **options: Any) -> list[int]:
    return list(DataLoader(dataset, batch_size=None, num_workers=workers, **options))


@pytest.mark.parametrize(
    ("workers", "ranks", "count"), [*itertools.product([0], [1, 3], [2, 11, N]), (3, 1, 2), (3, 3, 11)]
)
def test_every_kept_sample_comes_once(
    urls: list[str], index: ShardIndex, workers: int, ranks: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = sorted(random.Random(count).sample(range(N), count))
    coreset = Coreset(rows, num_rows=N)
    exact, sought, padded = [], [], []
    for rank in range(ranks):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        exact.append(delivered(pipeline(urls, keep(coreset, index, remainder="exact")), workers))
        sought.append(delivered(seeking(urls, keep(coreset, index, remainder="exact")), workers))
        padded.append(delivered(pipeline(urls, keep(coreset, index), wds.shuffle(5)), workers))
    assert sorted(row for rank in exact for row in rank) == rows
    assert sought == exact
    assert max(map(len, exact)) - min(map(len, exact)) <= 1
    assert {len(rank) for rank in padded} == {-(-count // ranks)}
    times = Counter(row for rank in padded for row in rank)
    assert sorted(times) == rows
    assert sum(times.values()) - count == -count % ranks
    assert all(len(set(rank)) == len(rank) for rank in padded)


def test_the_remainder_can_be_dropped(urls: list[str], index: ShardIndex) -> None:
    coreset = Coreset(range(11), num_rows=N)
    parts = [
        list(pipeline(urls, keep(coreset, index, remainder="drop", rank=rank, num_replicas=3))) for rank in range(3)
    ]
    assert [len(part) for part in parts] == [3, 3, 3]
    assert len({row for part in parts for row in part}) == 9


def test_shards_without_kept_samples_are_not_opened(urls: list[str], index: ShardIndex, tmp_path: Path) -> None:
    rows = [0, 3, 21, 22]  # of the first and the fourth shard
    opened = Opened(tmp_path / "opened")
    dataset = pipeline(urls, keep(Coreset(rows, num_rows=N), index), opened)
    assert sorted(dataset) == rows
    assert opened.path.read_text().split() == [urls[0], urls[3]]


def test_the_stage_that_reads_gives_what_webdataset_gives(urls: list[str], index: ShardIndex, tmp_path: Path) -> None:
    """Of shards that are sought in, compressed, elsewhere than the index has them, or spelled otherwise."""
    packed = f"{tmp_path}/001.tar.gz"
    Path(packed).write_bytes(gzip.compress(Path(urls[1]).read_bytes()))
    moved = shutil.copy(urls[2], tmp_path)
    given = [urls[0], packed, str(moved), f"file:{urls[3]}", os.path.relpath(urls[4])]
    mixed = build_index([urls[0], packed, *urls[2:]], progress=False)
    rows = [0, 1, 3, 8, 9, 12, 18, 22, 24, 26, 31]
    kept = keep(Coreset(rows, num_rows=N), mixed)
    found = list(wds.DataPipeline(wds.SimpleShardList(given), kept.shards, wds.shuffle(5), kept.samples))
    whole = {rows_of(sample): sample for sample in wds.WebDataset(given, shardshuffle=False)}
    assert sorted(map(rows_of, found)) == rows
    for sample in found:
        expected = whole[rows_of(sample)]
        if sample["__url__"] in (packed, moved):  # streamed by tarfile_to_samples, which does not name the file
            del expected["__local_path__"]
        assert sample == expected


@pytest.mark.parametrize("read_bytes", [1, 1 << 20])
def test_seeking_reads_the_kept_samples_and_nothing_else(
    read_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = write_shards(tmp_path, [90, 60])
    index = build_index(urls, progress=False)
    expected = delivered_samples(urls)
    read: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *given: read.append(given[1]) or pread(*given))
    monkeypatch.setattr(kept_stream, "_READ_BYTES", read_bytes)
    stages = [{"url": url} for url in urls]
    found = list(keep(Coreset([91, 92, 148], num_rows=150), index).samples(stages))
    assert [sample.pop("__local_path__") for sample in found] == [urls[1]] * 3
    assert found == [expected[row] for row in (91, 92, 148)]
    assert len(read) == (2 if read_bytes > 1 else 3)
    assert sum(read) < os.path.getsize(urls[1]) / 8


def test_a_shard_that_has_changed_is_refused(tmp_path: Path) -> None:
    urls = write_shards(tmp_path, [3])
    kept = keep(Coreset([1], num_rows=3), build_index(urls, progress=False))
    with open(urls[0], "ab") as file:
        file.write(bytes(512))
    with pytest.raises(MismatchError, match="has changed"):
        list(kept.samples([{"url": urls[0]}]))


def test_what_is_dropped_is_not_decoded(urls: list[str], index: ShardIndex) -> None:
    decoded: list[bytes] = []

    def decoder(key: str, data: bytes) -> Any:
        if key == ".json":
            decoded.append(data)
            return json.loads(data)
        return None

    kept = keep(Coreset([1, 2, 8], num_rows=N), index)
    dataset = (
        wds.WebDataset(urls, nodesplitter=kept.shards, workersplitter=None, shardshuffle=False, empty_check=False)
        .compose(kept)
        .decode(decoder)
        .to_tuple("json")
    )
    assert [sample[0]["row"] for sample in dataset] == [1, 2, 8]
    assert [json.loads(data)["row"] for data in decoded] == [1, 2, 8]


@pytest.mark.parametrize("workers", [0, 3])
def test_web_datasets_with_more_workers_than_shards(urls: list[str], index: ShardIndex, workers: int) -> None:
    kept = keep(Coreset([1, 9], num_rows=N), index)
    dataset = (
        wds.WebDataset(urls[:2], nodesplitter=kept.shards, workersplitter=None, shardshuffle=10, empty_check=False)
        .compose(kept)
        .map(rows_of)
    )
    assert sorted(delivered(dataset, workers)) == [1, 9]


def test_only_listed_shards_are_dealt_out(urls: list[str], index: ShardIndex) -> None:
    kept = [keep(Coreset([0, 1, 2, 3, 30, 31, 32], num_rows=N), index, rank=rank, num_replicas=2) for rank in (0, 1)]
    parts = [list(pipeline(urls[:2], one)) for one in kept]
    assert sorted(parts[0] + parts[1]) == [0, 1, 2, 3]
    assert len(parts[0]) == len(parts[1]) == 2


def test_a_switch_reaches_persistent_workers(urls: list[str], index: ShardIndex) -> None:
    kept = keep(None, index)
    loader = DataLoader(pipeline(urls, kept), batch_size=None, num_workers=2, persistent_workers=True)
    assert sorted(loader) == list(range(N))
    kept.switch(Coreset([2, 3, 30], num_rows=N))
    assert sorted(loader) == [2, 3, 30]
    kept.switch(Coreset([5], num_rows=N))
    for _ in range(2):
        assert sorted(loader) == [5]
    kept.switch(None)
    assert sorted(loader) == list(range(N))


def test_workers_that_are_not_forked_from_this_process(urls: list[str], index: ShardIndex) -> None:
    kept = keep(None, index)
    dataset = wds.DataPipeline(wds.SimpleShardList(urls), kept.shards, wds.tarfile_to_samples(), kept)
    loader = DataLoader(
        dataset, batch_size=None, num_workers=1, persistent_workers=True, multiprocessing_context="forkserver"
    )
    assert len(list(loader)) == N
    kept.switch(Coreset([2, 3, 30], num_rows=N))
    assert sorted(map(rows_of, loader)) == [2, 3, 30]


def test_epochs_deal_anew_and_alike_on_all_ranks(urls: list[str], index: ShardIndex) -> None:
    coreset = Coreset(range(0, N, 2), num_rows=N)
    kept = [keep(coreset, index, rank=rank, num_replicas=2, remainder="exact") for rank in (0, 1)]
    seen = []
    for epoch in range(4):
        for one in kept:
            one.set_epoch(epoch)
        parts = [sorted(pipeline(urls, one)) for one in kept]
        assert sorted(parts[0] + parts[1]) == coreset.rows.tolist()
        seen.append(tuple(parts[0]))
    assert len(set(seen)) > 1


@pytest.mark.parametrize("workers", [0, 2])
def test_resampled_shards_give_kept_samples_only(urls: list[str], index: ShardIndex, workers: int) -> None:
    kept = keep(Coreset([1, 9, 10], num_rows=N), index)
    dataset = wds.DataPipeline(
        wds.ResampledShards(urls, seed=1, deterministic=True),
        kept.shards,
        wds.tarfile_to_samples(),
        kept,
        wds.map(rows_of),
    ).with_epoch(40)
    found = delivered(dataset, workers)
    assert len(found) == 40 * max(1, workers)
    assert set(found) == {1, 9, 10}


@pytest.mark.parametrize("source", [wds.SimpleShardList, wds.ResampledShards])
def test_nothing_kept_in_the_listed_shards_is_an_error(urls: list[str], index: ShardIndex, source: Any) -> None:
    kept = keep(Coreset([N - 1], num_rows=N), index)
    dataset = wds.DataPipeline(source(urls[:2]), kept.shards, wds.tarfile_to_samples(), kept)
    with pytest.raises(StateError, match="none of the"):
        next(iter(dataset))


def test_shards_split_twice_are_noticed(urls: list[str], index: ShardIndex) -> None:
    kept = keep(Coreset(range(0, N, 2), num_rows=N), index)
    half = wds.slice(0, None, 2)
    with pytest.raises(StateError, match="split once more"):
        list(pipeline(urls, kept, half))
    with pytest.raises(StateError, match="split once more"):
        list(pipeline(urls, kept, wds.select(lambda _: False)))


def test_without_its_shard_stage_it_only_drops(urls: list[str], index: ShardIndex) -> None:
    kept = keep(Coreset([1, 9, 10], num_rows=N), index)
    dataset = wds.DataPipeline(
        wds.SimpleShardList(urls), wds.split_by_worker, wds.tarfile_to_samples(), kept, wds.map(rows_of)
    )
    assert sorted(delivered(dataset, 2)) == [1, 9, 10]


def test_samples_outside_the_index_are_named(urls: list[str], index: ShardIndex, tmp_path: Path) -> None:
    kept = keep(None, index)
    other = str(tmp_path / "other.tar")
    with wds.TarWriter(other) as writer:
        writer.write({"__key__": "x", "cls": 1})
    with pytest.raises(ArgumentError, match=r"other\.tar"):
        list(pipeline([other], kept))
    with pytest.raises(ArgumentError, match="nowhere"):
        list(kept([{"__key__": "nowhere", "__url__": urls[0]}]))
    with pytest.raises(UnsupportedError, match="__url__"):
        list(kept([{"__key__": "s1"}]))


def test_refusals(index: ShardIndex) -> None:
    with pytest.raises(MismatchError, match="of 3 rows"):
        keep(Coreset([1], num_rows=3), index)
    with pytest.raises(MismatchError, match="sha256"):
        keep(Coreset([1], num_rows=N, fingerprint="sha256:else"), index)
    keep(Coreset([1], num_rows=N, fingerprint=index.fingerprint), index)
    for argument, options in {
        "remainder": {"remainder": "wrap"},
        "seed": {"seed": -1},
        "rank": {"rank": 2, "num_replicas": 2},
    }.items():
        with pytest.raises(ArgumentError, match=argument):
            keep(None, index, **options)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="rank"):
        keep(None, index, rank=1)
    with pytest.raises(ArgumentError, match="index"):
        keep(None, "index.parquet")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="coreset"):
        keep([1, 2], index)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="epoch"):
        keep(None, index).set_epoch(-1)


def test_rows_at_every_byte_boundary(urls: list[str], index: ShardIndex) -> None:
    for row in range(N):
        assert list(pipeline(urls, keep(Coreset([row], num_rows=N), index))) == [row]
    everything = keep(Coreset(np.arange(N), num_rows=N), copy.deepcopy(index))
    assert sorted(pipeline(urls, everything)) == list(range(N))


def test_a_worker_knows_the_rank_of_the_process_that_started_it(
    index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keep(Coreset([1, 2, 3, 4], num_rows=N), index)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    sent = copy.copy(kept)
    monkeypatch.delenv("RANK")
    assert sent.assigned([0]).slices == [Slice(0, 2, 4)]
    assert kept.assigned([0]).slices == [Slice(0, 0, 4)]


class Fluid(wds.DataPipeline, wds.FluidInterface):
    """Stages of one's own, and webdataset's methods after them."""


def test_a_stage_that_seeks_goes_on_in_the_fluid_form(urls: list[str], index: ShardIndex) -> None:
    kept = keep(Coreset(range(0, N, 3), num_rows=N), index)
    dataset = Fluid(wds.SimpleShardList(urls), kept.shards, kept.samples).shuffle(9).map(rows_of)
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=2)
    assert sorted(loader) == list(range(0, N, 3))
