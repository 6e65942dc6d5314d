from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import pickle
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import prunesampler as ps
from prunesampler.errors import ArgumentError, CorruptFileError, MismatchError, PruneSamplerWarning, UnsupportedError
from prunesampler.shards import ShardIndex, StreamedShards, build_index, read_plan, shard_cache
from tests.helpers.http_server import Server, serving
from tests.helpers.shardfiles import LEFT_OPEN, bytes_on_disk, delivered, write_shards

pytestmark = [
    *LEFT_OPEN,
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes"),
]

SIZES = [7, 1, 5, 9, 12, 3, 8, 6]
ROWS = sum(SIZES)
SHARD_OF = np.repeat(np.arange(len(SIZES)), SIZES)
KEPT = ps.Coreset([0, 3, 7, 8, 11, 20, 21, 22, 23, 30, 36, 44, 50], num_rows=ROWS)


def row_of(sample: dict[str, Any]) -> int:
    return int(sample["__key__"])


def as_pair(sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
    return sample["png"], sample["cls"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    write_shards(tmp_path / "served", SIZES)
    with serving(tmp_path / "served") as server:
        yield server


@pytest.fixture
def remote(server: Server, tmp_path: Path) -> ShardIndex:
    index = build_index([f"{server.url}{number:06d}.tar" for number in range(len(SIZES))], progress=False)
    index.save(tmp_path / "index.parquet")
    del server.requests[:], server.sent[:]
    return ShardIndex.load(tmp_path / "index.parquet")


@pytest.fixture
def make(remote: ShardIndex, tmp_path: Path) -> Callable[..., StreamedShards]:
    def made(coreset: ps.Coreset | None = None, **options: Any) -> StreamedShards:
        given = {"decode": row_of, "shuffle_block": 2, "cache_dir": tmp_path / "cache", "cache_limit": "2MB", **options}
        return StreamedShards(remote, coreset, **given)

    return made


def rows_read(dataset: StreamedShards, sampler: Any, workers: int = 0, size: int = 4) -> list[int]:
    return list(itertools.chain(*batches(dataset, sampler, workers, size)))


def batches(dataset: StreamedShards, sampler: Any, workers: int = 0, size: int = 4) -> list[list[int]]:
    return [batch.tolist() for batch in DataLoader(dataset, size, sampler=sampler, num_workers=workers)]


# --- every sample of an epoch -------------------------------------------------------------------------------


def test_a_row_is_what_webdataset_delivers_at_that_place(make: Any, tmp_path: Path) -> None:
    expected = delivered([str(path) for path in sorted((tmp_path / "served").glob("*.tar"))])
    dataset = make(decode=None)
    order = np.random.default_rng(0).permutation(ROWS)
    for rows in (order[:3], order[3:20], order[20:], order[[0, 0, 5]]):
        found = dataset.__getitems__(rows.tolist())
        assert [{**sample, "__url__": ""} for sample in found] == [{**expected[row], "__url__": ""} for row in rows]
    assert len(dataset) == ROWS
    assert row_of(dataset[-1]) == ROWS - 1
    with pytest.raises(IndexError, match=rf"rows must be in \[0, {ROWS}\)"):
        dataset[ROWS]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 3), (3, 1)])
def test_every_sample_is_accounted_for_over_workers_ranks_and_a_resume(
    before: int, after: int, workers: int, make: Any
) -> None:
    dataset, stop = make(), 2
    whole = list(dataset.sampler(seed=3))
    assert sorted(whole) == list(range(ROWS))
    ranks = [dataset.sampler(seed=3, num_replicas=before, rank=rank) for rank in range(before)]
    read = [batches(dataset, sampler, workers) for sampler in ranks]
    assert len({len(each) for each in read}) == 1
    assert Counter(row for each in read for batch in each for row in batch).keys() == set(whole)
    for rank, each in enumerate(read):  # rows go round, so each rank has every so manieth one
        of_rank = (whole + whole[:before])[rank : -(-ROWS // before) * before : before]
        assert [row for batch in each for row in batch] == of_rank
    done = {row for each in read for batch in each[:stop] for row in batch}
    state = ranks[0].state_dict(position=stop * 4 * before)
    resumed = []
    for rank in range(after):
        sampler = dataset.sampler(seed=3, num_replicas=after, rank=rank)
        sampler.load_state_dict(state)
        resumed.append(batches(dataset, sampler, workers))
    assert len({len(each) for each in resumed}) == 1
    rest = Counter(row for each in resumed for batch in each for row in batch)
    assert done | rest.keys() == set(whole)
    assert sum(rest.values()) - (ROWS - len(done)) < after  # the padding of the epoch's end, at most
    assert sum(rest[row] for row in done) < after


def test_a_shard_is_fetched_once_by_all_processes_and_epochs(make: Any, server: Server, tmp_path: Path) -> None:
    dataset = make()
    sampler = dataset.sampler()
    for _ in range(2):
        assert sorted(rows_read(dataset, sampler, workers=3)) == list(range(ROWS))
    again = make()  # another run
    assert sorted(rows_read(again, again.sampler(seed=7))) == list(range(ROWS))
    whole = {path.name: path.stat().st_size for path in (tmp_path / "served").glob("*.tar")}
    assert Counter(name for name, size in server.sent if size == whole[name]) == dict.fromkeys(whole, 1)
    assert bytes_on_disk(tmp_path / "cache") <= 2_000_000


def test_of_a_shard_of_which_little_is_kept_only_kept_ranges_are_fetched(
    make: Any, server: Server, remote: ShardIndex, tmp_path: Path
) -> None:
    dataset = make(KEPT, ranges_below=0.9)
    members = [remote.members(row) for row in KEPT.rows]
    needed = sum(files[-1].offset + files[-1].size - files[0].offset + 512 for files in members)
    for _ in range(2):
        assert sorted(rows_read(dataset, dataset.sampler(), workers=2)) == KEPT.rows.tolist()
    assert needed <= sum(size for _, size in server.sent) <= 1.25 * needed
    assert {name for name, _ in server.sent} == {f"{number:06d}.tar" for number in set(SHARD_OF[KEPT.rows])}
    del server.sent[:]
    assert sorted(rows_read(make(), make().sampler())) == list(range(ROWS))  # all, beside what is there
    assert row_of(make(decode=None).__getitems__([5])[0]) == 5


# --- in loops -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [None, ps.RandomSubset(0.5)])
def test_attach_and_policies_read_blocks_too(policy: Any, make: Any, server: Server, tmp_path: Path) -> None:
    dataset = make(decode=["torchrgb"], transform=as_pair)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    loader = DataLoader(dataset, batch_size=4, sampler=dataset.sampler(), num_workers=1)
    options = {"keep": 0.5, "score_epochs": 2} if policy is None else {"policy": policy}
    options |= {"save_dir": tmp_path / "run"} if policy is None else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PruneSamplerWarning)
        loader = ps.attach(loader, model, **options)
    seen: list[list[int]] = []
    for _ in range(4):
        seen.append([])
        for images, labels in loader:
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            seen[-1].append(len(labels))
    half = ROWS // 2 + ROWS % 2
    assert [sum(epoch) for epoch in seen] == ([ROWS, ROWS, half, half] if policy is None else [half] * 4)
    rows = list(loader.pruning.sampler)
    shards = SHARD_OF[rows]
    places = {shard: np.flatnonzero(shards == shard) for shard in set(shards.tolist())}
    assert max(each.max() - each.min() for each in places.values()) < 21  # two shards, mixed


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_goes_on_at_the_batch(workers: int, make: Any) -> None:
    def loader() -> Any:
        dataset = make()
        return StatefulDataLoader(dataset, batch_size=4, sampler=dataset.sampler(seed=2), num_workers=workers)

    first, second = loader(), loader()
    whole = [batch.tolist() for batch in first]
    stopped = loader()
    iterator = iter(stopped)
    assert [next(iterator).tolist() for _ in range(5)] == whole[:5]
    second.load_state_dict(stopped.state_dict())
    assert [batch.tolist() for batch in second] == whole[5:]


def test_rows_come_with_batches_and_rows_that_are_not_kept_are_refused(make: Any) -> None:
    dataset = make(KEPT)
    loader = DataLoader(dataset, batch_size=4, sampler=dataset.sampler(), num_workers=1)
    pairs = [(rows.tolist(), batch.tolist()) for rows, batch in ps.with_rows(loader)]
    assert all(rows == batch for rows, batch in pairs)
    assert sorted(row for rows, _ in pairs for row in rows) == KEPT.rows.tolist()
    with pytest.raises(ArgumentError, match=r"row must be of the coreset: .*sampler=dataset\.sampler\(\), got 1$"):
        dataset[1]
    assert pickle.loads(pickle.dumps(dataset))[3] == 3


def test_a_spawned_worker_shares_the_plan(make: Any) -> None:
    dataset = make()
    spawned = pickle.loads(ForkingPickler.dumps(dataset))
    first = next(iter(dataset.sampler(seed=9)))
    shard = int(SHARD_OF[first])
    assert spawned._plan.upcoming(np.array([shard]), 8) == dataset._plan.upcoming(np.array([shard]), 8)
    assert len(spawned._plan.upcoming(np.array([shard]), 8)) == len(SIZES)


def test_machines_fetch_shards_of_their_own(make: Any, server: Server, tmp_path: Path) -> None:
    fetched = []
    for node in range(2):
        dataset = make(cache_dir=tmp_path / f"node{node}", shuffle_block=1, predownload=0)
        for local in range(2):
            read = rows_read(dataset, dataset.sampler(nodes=2, num_replicas=4, rank=2 * node + local))
            assert len(read) == -(-ROWS // 4)
        fetched.append({name for name, _ in server.sent})
        del server.sent[:]
    assert len(fetched[0] & fetched[1]) <= 2  # where the order is cut, and what fills up the end
    with pytest.raises(ArgumentError, match="nodes must divide the number of ranks, 4, got 3"):
        dataset.sampler(nodes=3, num_replicas=4, rank=0)


def test_a_sampler_that_jumps_between_shards_is_warned_of(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make(shuffle_block=1)
    monkeypatch.setattr(read_plan, "_SMALL_GAP", 0)
    with pytest.warns(PruneSamplerWarning, match=r"rows from \d+ remote shards.*sampler=dataset\.sampler\(\)"):
        found = rows_read(dataset, np.random.default_rng(0).permutation(ROWS).tolist(), size=16)
    assert sorted(found) == list(range(ROWS))


# --- what goes wrong ----------------------------------------------------------------------------------------


def spoil(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "short":
        path.write_bytes(data[: len(data) // 2])
    elif how == "changed":
        path.write_bytes(data + bytes(10_240))
    else:
        data[512:] = bytes(len(data) - 512)
        path.write_bytes(data)


BROKEN = {
    "missing": (FileNotFoundError, "the server answers 404 Not Found: 'http.*000003.tar'"),
    "short": (MismatchError, "000003.tar has changed since it was indexed"),
    "changed": (MismatchError, "000003.tar has changed since it was indexed"),
    "corrupt": (MismatchError, "000003.tar has changed since it was indexed"),
}


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("how", BROKEN)
def test_a_shard_that_cannot_be_read_is_named_or_skipped(how: str, warm: bool, make: Any, tmp_path: Path) -> None:
    spoil(tmp_path / "served" / "000003.tar", how)
    (kind, message), lost = BROKEN[how], set(np.flatnonzero(SHARD_OF == 3).tolist())
    dataset = make(shuffle_block=3, ranges_below=0.0)
    if warm:
        dataset[0]
    with pytest.raises(kind, match=message):
        batches(dataset, dataset.sampler(), size=8)
    dataset = make(shuffle_block=3, on_missing="skip")
    if warm:
        dataset[0]
    loader = DataLoader(dataset, batch_size=8, sampler=dataset.sampler())
    with pytest.warns(PruneSamplerWarning, match=r"^\d+ samples are left out, as .*000003\.tar cannot be read"):
        pairs = [(rows.tolist(), batch.tolist()) for rows, batch in ps.with_rows(loader)]
    assert len(pairs) == len(loader)  # as many batches as without it
    assert all(rows == batch for rows, batch in pairs)
    read = {row for rows, _ in pairs for row in rows}
    assert set(range(ROWS)) - read <= lost
    assert how == "corrupt" or read.isdisjoint(lost)
    assert dataset.skipped == [dataset.index.shards[3]]
    with pytest.raises(UnsupportedError, match=r"row \d+ cannot be read, as its shard was left out"):
        dataset[min(lost) + 1]
    for path in (tmp_path / "served").iterdir():
        path.unlink()
    empty = make(on_missing="skip", cache_dir=tmp_path / "empty")
    with pytest.warns(PruneSamplerWarning), pytest.raises(CorruptFileError, match="none of the shards that are kept"):
        empty[0]


def test_a_copy_that_is_damaged_is_fetched_again(make: Any, tmp_path: Path) -> None:
    dataset = make()
    batches(dataset, dataset.sampler())
    for path in (tmp_path / "cache").glob("*.shard"):
        size = path.stat().st_size
        path.write_bytes(b"")
        os.truncate(path, size)
    again = make()
    assert sorted(rows_read(again, again.sampler())) == list(range(ROWS))


@pytest.mark.parametrize("coreset", [None, KEPT])
def test_a_server_without_ranges_gives_whole_shards(coreset: Any, make: Any, server: Server) -> None:
    server.ranges = False  # it answers with the whole file
    dataset = make(coreset, ranges_below=0.9)
    assert sorted(rows_read(dataset, dataset.sampler(), workers=1)) == sorted(dataset.sampler())


def test_a_full_disk_makes_it_slow_and_is_told(make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shard_cache.os, "fdatasync", full)
    dataset = make()
    with pytest.warns(PruneSamplerWarning, match="cache cannot be written: No space left on device: rows are read"):
        found = rows_read(dataset, dataset.sampler())
    assert sorted(found) == list(range(ROWS))
    assert not [*(tmp_path / "cache").glob("*.tmp"), *(tmp_path / "cache").glob("*.shard")]


def test_the_cache_stays_within_its_limit_while_two_runs_share_it(make: Any, tmp_path: Path) -> None:
    sizes = sorted(path.stat().st_size for path in (tmp_path / "served").glob("*.tar"))
    limit, most = sum(sizes[-3:]) + 3 * 4096, 0
    runs = [make(cache_limit=limit) for _ in range(2)]
    loaders = [DataLoader(run, 2, sampler=run.sampler(seed=seed), num_workers=2) for seed, run in enumerate(runs)]
    seen: list[list[int]] = [[], []]
    for pair in zip(*loaders, strict=True):
        most = max(most, bytes_on_disk(tmp_path / "cache"))
        for rows, batch in zip(seen, pair, strict=True):
            rows += batch.tolist()
    assert [sorted(rows) for rows in seen] == [list(range(ROWS))] * 2
    assert 0 < most <= limit


def _train_until_killed(dataset: StreamedShards, victim: str, journal: Path) -> None:
    iterator = iter(DataLoader(dataset, batch_size=4, sampler=dataset.sampler(seed=4), num_workers=2))
    with journal.open("w") as file:
        for batch in iterator:
            print(*batch.tolist(), file=file, flush=True)
            os.kill(iterator._workers[0].pid if victim == "worker" else os.getpid(), signal.SIGKILL)
            time.sleep(0.01)


@pytest.mark.parametrize("victim", ["worker", "rank"])
def test_a_process_that_is_killed_costs_no_sample(victim: str, make: Any, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_train_until_killed, args=(make(), victim, tmp_path / "journal"))
    process.start()
    process.join()
    assert process.exitcode == (1 if victim == "worker" else -signal.SIGKILL)
    read = [int(row) for row in (tmp_path / "journal").read_text().split()]
    again = make()
    whole, resumed = list(again.sampler(seed=4)), again.sampler(seed=4)
    resumed.load_state_dict(resumed.state_dict(position=len(read)))
    assert read + rows_read(again, resumed, workers=1) == whole
    assert len(whole) > len(read) > 0
    assert not list((tmp_path / "cache").glob("*.tmp"))


# --- elsewhere ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [None, KEPT])
def test_shards_in_an_object_store(keep: Any, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in write_shards(tmp_path / "shards", SIZES):
        memory.pipe_file(f"/streamed/{Path(path).name}", Path(path).read_bytes())
    try:
        urls = [f"memory://streamed/{number:06d}.tar" for number in range(len(SIZES))]
        index = build_index(urls, progress=False)
        dataset = StreamedShards(index, keep, row_of, cache_dir=tmp_path / "cache", ranges_below=0.9)
        expected = list(range(ROWS)) if keep is None else keep.rows.tolist()
        assert sorted(rows_read(dataset, dataset.sampler())) == expected
        memory.rm("/streamed/000004.tar")
        other = StreamedShards(index, None, row_of, cache_dir=tmp_path / "other")
        with pytest.raises(FileNotFoundError, match=r"memory://streamed/000004\.tar"):
            batches(other, other.sampler())
    finally:
        memory.rm("/streamed", recursive=True)


def test_local_shards_are_read_where_they_are(index: ShardIndex, tmp_path: Path) -> None:
    dataset = StreamedShards(index, decode=row_of, cache_dir=tmp_path / "cache")
    assert sorted(rows_read(dataset, dataset.sampler(), workers=1)) == list(range(22))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffle_block": 0}, "shuffle_block must be an int >= 1"),
        ({"predownload": -1}, "predownload must be an int >= 0"),
        ({"cache_limit": "many"}, "cache_limit must be a number of bytes"),
        ({"cache_limit": 10_000}, "cache_limit must hold shuffle_block=2 shards and one more"),
        ({"ranges_below": 1.5}, "ranges_below must be"),
        ({"on_missing": "ignore"}, "on_missing must be one of 'error', 'skip'"),
        ({"transform": 3}, "transform must be a function or None"),
    ],
)
def test_arguments(options: dict[str, Any], message: str, make: Any) -> None:
    with pytest.raises(ArgumentError, match=message):
        make(**options)


def test_what_cannot_be_streamed_is_refused(tmp_path: Path) -> None:
    import webdataset

    with webdataset.TarWriter(str(tmp_path / "z.tar.gz"), compress=True) as writer:
        writer.write({"__key__": "z", "txt": "z"})
    with pytest.raises(UnsupportedError, match=r"z\.tar\.gz is compressed .* prunesampler repack"):
        StreamedShards(build_index(str(tmp_path / "z.tar.gz"), progress=False))
    with pytest.raises(MismatchError, match="of 5 rows"):
        StreamedShards(build_index(write_shards(tmp_path / "s", [3]), progress=False), ps.Coreset([1], num_rows=5))
