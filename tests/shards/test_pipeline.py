"""Scores of tar shards against a record that the training loop keeps by hand; then the pruned passes."""

from __future__ import annotations

import copy
import itertools
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from torch.utils.data import DataLoader

from prunesampler.capture.row_loader import with_rows
from prunesampler.capture.rows import row_stream
from prunesampler.errors import ArgumentError, StateError, UnsupportedError
from prunesampler.selection.select import select
from prunesampler.shards.build import build_index
from prunesampler.shards.index import ShardIndex
from prunesampler.shards.pipeline import track
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.score_table import ScoreTable
from prunesampler.tracking.eval_pass import score
from prunesampler.training.attach import attach
from prunesampler.training.policies.importance_sampling import ImportanceSampling
from prunesampler.training.policies.proxy_filter import ProxyFilter
from prunesampler.training.policies.random_subset import RandomSubset
from tests.helpers.frameworks import accelerator
from tests.helpers.ranks import run_ranks
from tests.helpers.shardfiles import LEFT_OPEN, write_split
from tests.helpers.training import Journal, Leaky, Net, Trainer, check_scores, hardest

pytestmark = [*LEFT_OPEN, pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")]
SIZES = [9, 12, 7, 12]
N = sum(SIZES)
DATA = Leaky(N)


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    samples = (
        {"__key__": f"s{row}", "x.bin": x.numpy().tobytes(), "cls": int(y)}
        for row, (x, y) in enumerate(map(DATA.__getitem__, range(N)))
    )
    return write_split(tmp_path_factory.mktemp("shards"), samples, SIZES)


@pytest.fixture(scope="module")
def index(urls: list[str]) -> ShardIndex:
    return build_index(urls, progress=False)


def vector(content: bytes) -> torch.Tensor:
    # An .npy would be parsed as Python, in which Python 3.11 fails now and then where files wait to be closed.
    return torch.frombuffer(bytearray(content), dtype=torch.float32)


def tensors(sample: Any) -> Any:
    x, y = sample
    return vector(x), torch.as_tensor(y)


def named(sample: dict[str, Any]) -> dict[str, Any]:
    return {
        "input_ids": vector(sample["x.bin"]),
        "attention_mask": torch.ones(4),
        "labels": torch.as_tensor(sample["cls"]),
    }


def only(*names: str) -> Any:
    """A stage of one's own, one by one."""

    def stage(source: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for sample in source:
            yield {name: sample[name] for name in names}

    return stage


def shards(urls: list[str], **options: Any) -> Any:
    return wds.WebDataset(urls, **{"shardshuffle": 10, "empty_check": False, **options})


def samples(urls: list[str], **options: Any) -> Any:
    return shards(urls, **options).shuffle(8).decode().to_tuple("x.bin", "cls").map(tensors)


def fluid_inside(urls: list[str], index: ShardIndex, workers: int) -> Any:
    return wds.WebLoader(track(samples(urls).batched(5), index), batch_size=None, num_workers=workers)


def fluid_outside(urls: list[str], index: ShardIndex, workers: int) -> Any:
    return track(wds.WebLoader(samples(urls), batch_size=None, num_workers=workers).shuffle(6).batched(5), index)


def rebatched(urls: list[str], index: ShardIndex, workers: int) -> Any:
    loader = wds.WebLoader(samples(urls).batched(4), batch_size=None, num_workers=workers)
    return track(loader.unbatched().shuffle(9).batched(6), index)


def plain_loader(urls: list[str], index: ShardIndex, workers: int) -> Any:
    return DataLoader(track(samples(urls), index), batch_size=5, num_workers=workers)


def persistent(urls: list[str], index: ShardIndex, workers: int) -> Any:
    return DataLoader(
        track(samples(urls), index), batch_size=5, num_workers=workers, persistent_workers=workers > 0, pin_memory=False
    )


def persistent_web(urls: list[str], index: ShardIndex, workers: int) -> Any:
    dataset = samples(urls).batched(5)
    return track(wds.WebLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0), index)


def stages(urls: list[str], index: ShardIndex, workers: int) -> Any:
    dataset = wds.DataPipeline(
        wds.SimpleShardList(urls),
        wds.detshuffle(10),
        wds.split_by_worker,
        wds.tarfile_to_samples(),
        wds.detshuffle(7),
        wds.decode(),
        wds.rename(x="x.bin", y="cls"),
        wds.to_tuple("x", "y"),
        wds.map_tuple(vector, torch.as_tensor),
        wds.batched(5),
    )
    return wds.WebLoader(track(dataset, index), batch_size=None, num_workers=workers)


def dicts(urls: list[str], index: ShardIndex, workers: int) -> Any:
    dataset = track(shards(urls), index).shuffle(8).decode().map(named)
    dataset = dataset.compose(only("input_ids", "attention_mask", "labels"))
    return wds.WebLoader(dataset.batched(5), batch_size=None, num_workers=workers)


def from_urls(urls: list[str], index: ShardIndex, workers: int) -> Any:
    dataset = track(urls, index).shuffle(8).decode().to_tuple("x.bin", "cls").map(tensors)
    return DataLoader(dataset.batched(5), batch_size=None, num_workers=workers)


def prepared(urls: list[str], index: ShardIndex, workers: int) -> Any:
    """Accelerate makes another loader around ours, and counts its passes."""
    return accelerator().prepare(plain_loader(urls, index, workers))


Making = Callable[[list[str], ShardIndex, int], Any]
INSIDE: list[Making] = [fluid_inside, plain_loader, persistent, stages, dicts, from_urls]
LOADERS = [*INSIDE, fluid_outside, rebatched, persistent_web]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("making", [*LOADERS, prepared])
def test_scores_are_those_kept_by_hand_and_pruned_passes_are_the_coreset(
    urls: list[str], index: ShardIndex, making: Making, workers: int
) -> None:
    loader: Any = making(urls, index, workers)
    model, journal = Net(), Journal()
    trainer = Trainer(model, journal)
    loader = attach(loader, model, keep=0.7, score_epochs=3, method="top")
    for _ in range(3):
        trainer.epoch(loader)
    journal.recording = False
    for _ in range(2):
        trainer.epoch(loader)
    assert loader.pruning.phase == "pruned"
    check_scores(loader.pruning.table, journal, N)
    for epoch in journal.epochs[:3]:
        assert sorted(epoch) == list(range(N))
    kept = hardest(journal, N, 28)
    for epoch in journal.epochs[3:5]:
        assert sorted(epoch) == sorted(kept)
    assert loader.pruning.table.fingerprint == index.fingerprint
    loader.pruning.detach()
    trainer.epoch(loader)
    assert sorted(journal.epochs[5]) == list(range(N))


@pytest.mark.parametrize("making", LOADERS)
def test_attach_changes_nothing_in_what_comes(urls: list[str], index: ShardIndex, making: Making) -> None:
    loader = making(urls, index, 2)
    before = [type(batch) for batch in loader] if making is not persistent else []
    seen = list(with_rows(loader)) if row_stream(loader) is not None else []
    for rows, batch in seen:
        x = batch["input_ids"] if isinstance(batch, dict) else batch[0]
        assert rows.tolist() == x[:, 0].long().tolist()
        if isinstance(batch, dict):
            assert set(batch) == {"input_ids", "attention_mask", "labels"} | ({"__key__"} & set(batch))
    if seen and before:
        assert [type(batch) for _, batch in seen] == before


@pytest.mark.parametrize("options", [{}, {"handler": wds.warn_and_stop}, {"select_files": lambda name: True}])
def test_pruned_passes_seek_where_the_reading_is_plain(
    urls: list[str], index: ShardIndex, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = wds.DataPipeline(wds.SimpleShardList(urls), wds.tarfile_to_samples(**options), wds.to_tuple("cls"))
    for pipeline in (samples(urls, **options), staged):
        dataset = track(pipeline, index)
        dataset.prunable(0)
        dataset.prune(Coreset([1, 20, 21], num_rows=N))
        opened: list[Any] = []
        with monkeypatch.context() as patch:
            patch.setattr(
                tarfile, "open", lambda opened=opened, open=tarfile.open, **given: opened.append(given) or open(**given)
            )
            assert sorted(row for rows, _ in with_rows(dataset) for row in rows.tolist()) == [1, 20, 21]
        assert bool(opened) == bool(options)


@pytest.mark.parametrize("workers", [0, 2])
def test_resampled_shards_and_epochs_of_a_given_length(urls: list[str], index: ShardIndex, workers: int) -> None:
    dataset = track(shards(urls, resampled=True, shardshuffle=False), index)
    dataset = dataset.shuffle(5).decode().to_tuple("x.bin", "cls").map(tensors).batched(4)
    loader: Any = wds.WebLoader(dataset, batch_size=None, num_workers=workers).with_epoch(12)
    model, journal = Net(), Journal()
    trainer = Trainer(model, journal)
    loader = attach(loader, model, keep=10, score_epochs=4, unscored="drop")
    for _ in range(4):
        trainer.epoch(loader)
    journal.recording = False
    trainer.epoch(loader)
    assert loader.pruning.phase == "pruned"
    table = loader.pruning.table
    assert table.presentations.sum() == sum(map(len, journal.epochs[:4]))
    check_scores(table, journal, [row for row in range(N) if journal.seen[row]])
    assert len(journal.epochs[4]) > 10
    assert set(journal.epochs[4]) <= set(loader.pruning.coreset.rows.tolist())


def filtered(urls: list[str], index: ShardIndex) -> Any:
    dataset = track(shards(urls), index).decode().select(lambda sample: sample["cls"] != 1)
    return dataset.to_tuple("x.bin", "cls").map(tensors)


@pytest.mark.parametrize("rescored", [False, True])
@pytest.mark.parametrize("kind", ["filtered", "shards left out"])
def test_what_a_stream_never_hands_out_is_not_eligible(
    urls: list[str], index: ShardIndex, kind: str, rescored: bool, tmp_path: Path
) -> None:
    seen = [row for row in range(N) if int(DATA[row][1]) != 1] if kind == "filtered" else list(range(SIZES[0], N))

    def loader() -> Any:
        dataset = filtered(urls, index) if kind == "filtered" else track(samples(urls[1:]), index)
        return DataLoader(dataset, batch_size=5)

    model, journal = Net(), Journal()
    options: dict[str, Any] = {"keep": 0.5, "score_epochs": 2}
    if rescored:
        options["rescore"] = DataLoader(track(samples(urls), index), batch_size=7)
    made: list[Any] = [attach(loader(), model, save_dir=tmp_path, **options)]
    trainer = Trainer(model, journal)
    trainer.epoch(made[0])
    if rescored:  # what was seen is in the state
        made.append(attach(loader(), Net(), **options))
        made[1].pruning.load_state_dict(made[0].pruning.state_dict())
        made[1].pruning.finish()
    for _ in range(2):
        trainer.epoch(made[0])
    for each in made:
        assert each.pruning.table.rows.tolist() == seen
        assert len(each.pruning.coreset) == round(len(seen) / 2)
        assert {*each.pruning.coreset.rows.tolist()} <= {*seen}
    assert {*journal.epochs[2]} == {*made[0].pruning.coreset.rows.tolist()}
    again = select(ScoreTable.load(tmp_path / "scores.parquet"), keep=0.5)
    assert again.rows.tolist() == made[0].pruning.coreset.rows.tolist()
    assert score(model, loader(), progress=False).rows.tolist() == seen


def test_a_loop_that_leaves_an_endless_stream(urls: list[str], index: ShardIndex) -> None:
    loader: Any = attach(
        track(samples(urls, resampled=True, shardshuffle=False).batched(4), index),
        model := Net(),
        keep=20,
        score_epochs=2,
    )
    trainer = Trainer(model, journal := Journal())
    for _ in range(3):
        trainer.epoch(itertools.islice(loader, 15))
    assert set(journal.epochs[2]) <= set(loader.pruning.coreset.rows.tolist())
    assert len(journal.epochs[2]) == 60


def test_score_in_a_pass_of_its_own(urls: list[str], index: ShardIndex) -> None:
    model = Net()
    plain = DataLoader(DATA, batch_size=8)
    expected = score(model, plain, progress=False)
    for making in (plain_loader, fluid_outside):
        found = score(model, making(urls, index, 2), progress=False)
        np.testing.assert_allclose(found.scores["el2n"], expected.scores["el2n"], atol=1e-6)
        assert found.labels is not None
        assert found.labels.tolist() == DATA.targets.tolist()
        assert found.fingerprint == index.fingerprint
    loader: Any = attach(
        plain_loader(urls, index, 0), model, keep=0.5, score_epochs=1, rescore=fluid_outside(urls, index, 0)
    )
    Trainer(model, Journal()).epoch(loader)
    assert len(loader.pruning.finish()) == N // 2


def test_a_given_coreset_and_a_run_that_resumes(urls: list[str], index: ShardIndex, tmp_path: Path) -> None:
    model, journal = Net(), Journal()
    coreset = Coreset([1, 5, 30], num_rows=N)
    trainer = Trainer(model, journal)
    trainer.epoch(attach(plain_loader(urls, index, 2), model, coreset=coreset))
    assert sorted(journal.epochs[0]) == [1, 5, 30]

    first: Any = attach(plain_loader(urls, index, 0), model, keep=0.5, score_epochs=1, save_dir=tmp_path)
    trainer.epoch(first)
    rows = first.pruning.finish().rows.tolist()
    again: Any = attach(plain_loader(urls, index, 2), model, keep=0.5, score_epochs=1, save_dir=tmp_path, resume=True)
    trainer.epoch(again)
    assert sorted(journal.epochs[2]) == rows
    third = attach(plain_loader(urls, index, 0), Net(), keep=0.5, score_epochs=1)
    third.pruning.load_state_dict(again.pruning.state_dict())
    assert third.pruning.phase == "pruned"


def test_an_epoch_that_was_cut_off_starts_again_and_steps_are_unknown(urls: list[str], index: ShardIndex) -> None:
    coreset = Coreset(range(12), num_rows=N)
    first: Any = attach(plain_loader(urls, index, 0), Net(), coreset=coreset)
    with pytest.raises(StateError, match="does not say how many batches one pass hands out"):
        first.pruning.total_steps(3)
    passing = iter(first)
    next(passing)
    again: Any = attach(plain_loader(urls, index, 0), Net(), coreset=coreset)
    again.pruning.load_state_dict(first.pruning.state_dict())
    assert [len(labels) for _, labels in passing] == [5, 2]
    assert [len(labels) for _, labels in again] == [5, 5, 2]


def test_a_scoring_run_goes_on(urls: list[str], index: ShardIndex) -> None:
    model, journal = Net(), Journal()
    trainer = Trainer(model, journal)
    loader: Any = attach(plain_loader(urls, index, 0), model, keep=None, score_epochs=2)
    trainer.epoch(loader)
    state = loader.pruning.state_dict()
    loader.pruning.detach()
    loader = attach(plain_loader(urls, index, 0), model, keep=None, score_epochs=2)
    loader.pruning.load_state_dict(state)
    trainer.epoch(loader)
    iter(loader)
    assert loader.pruning.phase == "scored"
    check_scores(loader.pruning.table, journal, N)


def test_ranks_split_what_is_kept_as_evenly_as_the_pipeline_split_shards(
    urls: list[str], index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    coreset = Coreset(range(0, N, 3), num_rows=N)
    parts = []
    for rank in (0, 1, 2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        dataset = track(samples(urls, nodesplitter=wds.split_by_node), index)
        dataset.prunable(0)
        dataset.prune(coreset)
        parts.append(
            [int(row) for rows, _ in with_rows(DataLoader(dataset, batch_size=2, num_workers=2)) for row in rows]
        )
    assert [len(part) for part in parts] == [5, 5, 5]
    assert sorted({row for part in parts for row in part}) == coreset.rows.tolist()


def test_a_pruned_stream_may_be_cut_but_not_lose_shards(urls: list[str], index: ShardIndex) -> None:
    def pruned(dataset: Any) -> Any:
        tracked = track(dataset, index)
        tracked.prunable(0)
        tracked.prune(Coreset(range(0, N, 2), num_rows=N))
        return tracked

    assert len(list(pruned(samples(urls).slice(7)))) == 7
    assert len(list(pruned(samples(urls).batched(3).slice(2)))) == 2
    with pytest.raises(StateError, match="split once more"):
        list(pruned(samples(urls, nodesplitter=wds.slice(1, 3))))
    with pytest.raises(StateError, match="split once more"):
        list(pruned(samples(urls, nodesplitter=wds.select(lambda _: False))))


def test_generators_of_ones_own(urls: list[str], index: ShardIndex) -> None:
    def hoarding(source: Iterator[Any]) -> Iterator[Any]:
        yield from reversed(list(source))

    def stripped(source: Iterator[Any]) -> Iterator[Any]:
        for sample in source:
            yield sample["cls"]

    def selecting(source: Iterator[Any]) -> Iterator[Any]:
        held = [sample for sample in source if int(sample["cls"]) == 1]
        yield from held

    dataset = track(shards(urls, shardshuffle=False), index)
    kept = [int(rows[0]) for rows, _ in with_rows(dataset.compose(selecting))]
    assert kept == [row for row in range(N) if DATA.targets[row] == 1]
    assert [int(rows[0]) for rows, _ in with_rows(dataset.compose(stripped))] == list(range(N))
    backwards = [int(rows[0]) for rows, _ in with_rows(dataset.compose(hoarding))]
    assert backwards == list(reversed(range(N)))
    with pytest.raises(UnsupportedError, match="hoarding"):
        list(dataset.decode().to_tuple("cls").compose(hoarding))


def test_samples_that_are_not_in_the_index_are_named(urls: list[str], index: ShardIndex) -> None:
    small = build_index(urls[:2], progress=False)
    with pytest.raises(ArgumentError, match=r"002\.tar"):
        list(track(samples(urls, shardshuffle=False), small))
    renamed = wds.DataPipeline([[{"__key__": "stranger", "__url__": urls[0]}]])
    with pytest.raises(ArgumentError, match="stranger"):
        list(track(renamed, index))
    with pytest.raises(UnsupportedError, match="__key__"):
        list(track(wds.DataPipeline([[{"cls": 1}]]), index))


def test_the_given_pipeline_stays_as_it_is(urls: list[str], index: ShardIndex) -> None:
    plain = samples(urls)
    stages, kind = list(plain.pipeline), type(plain)
    tracked = track(plain, index)
    assert (plain.pipeline, type(plain)) == (stages, kind)
    assert track(tracked, index) is tracked
    assert isinstance(tracked, wds.WebDataset)
    assert sorted(int(x[0]) for x, _ in copy.copy(tracked)) == list(range(N))
    loader = DataLoader(
        track(shards(urls).decode().to_tuple("cls"), index),
        batch_size=None,
        num_workers=1,
        multiprocessing_context="forkserver",
    )
    assert sorted(int(row) for rows, _ in with_rows(loader) for row in rows) == list(range(N))


def test_refusals(urls: list[str], index: ShardIndex) -> None:
    with pytest.raises(ArgumentError, match="index"):
        track(samples(urls), "index.parquet")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="DataLoader is made over"):
        track(DataLoader([1, 2]), index)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="IterableDataset"):
        attach(DataLoader(samples(urls)), Net())
    with pytest.raises(ArgumentError, match="with_epoch"):
        attach(plain_loader(urls, index, 0), Net(), epoch_length="full")
    # Refused whatever the first epoch's share is.
    with pytest.raises(UnsupportedError, match="which a shard pipeline makes itself"):
        attach(plain_loader(urls, index, 0), Net(), policy=ProxyFilter(Net(), keep=[1.0, 0.5]))
    loader: Any = attach(plain_loader(urls, index, 0), Net())
    with pytest.raises(StateError, match="how many batches"):
        loader.pruning.total_steps(3)
    started = persistent_web(urls, index, 1)
    next(iter(started))
    with pytest.raises(StateError, match="persistent workers have started"):
        attach(started, Net())
    web: Any = attach(fluid_outside(urls, index, 0), Net())
    with pytest.raises(UnsupportedError, match="attached"):
        list(with_rows(web))


def trained_on_ranks(rank: int, world_size: int, urls: list[str]) -> dict[str, Any]:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size))  # as torchrun does; a spawned worker has no group
    index = build_index(urls, progress=False)
    dataset = track(samples(urls, nodesplitter=wds.split_by_node, shardshuffle=False), index)
    model, journal = Net(), Journal()
    loader: Any = attach(DataLoader(dataset, batch_size=3, num_workers=1), model, keep=0.5, score_epochs=2)
    trainer = Trainer(model, journal)
    for _ in range(3):
        trainer.epoch(loader)
    return {"phase": loader.pruning.phase, "kept": loader.pruning.coreset.rows.tolist(), "epochs": journal.epochs}


@pytest.mark.parametrize("world_size", [2])
def test_ranks_agree_on_the_coreset_and_split_it(urls: list[str], world_size: int) -> None:
    found = run_ranks(world_size, trained_on_ranks, urls)
    assert [one["phase"] for one in found] == ["pruned"] * world_size
    assert found[0]["kept"] == found[1]["kept"]
    for epoch in (0, 1):
        assert sorted(row for one in found for row in one["epochs"][epoch]) == list(range(N))
    assert [len(one["epochs"][2]) for one in found] == [N // 4] * world_size
    assert sorted(row for one in found for row in one["epochs"][2]) == found[0]["kept"]


@pytest.mark.parametrize("making", [plain_loader, persistent_web])
def test_a_fresh_subset_every_pass_and_a_run_that_resumes(urls: list[str], index: ShardIndex, making: Making) -> None:
    def started() -> tuple[Any, Trainer]:
        model = Net()
        loader = attach(making(urls, index, 2), model, policy=RandomSubset(12))
        return loader, Trainer(model, Journal())

    loader, trainer = started()
    states = []
    for _ in range(7):
        trainer.epoch(loader)
        states.append(loader.pruning.state_dict())
    epochs = [sorted(rows) for rows in trainer.journal.epochs[:-1]]
    assert all(len(set(rows)) == len(rows) == 12 for rows in epochs)
    assert set(Counter(row for rows in epochs for row in rows).values()) == {2, 3}
    again, other = started()
    again.pruning.load_state_dict(states[3], mid_epoch=False)
    for _ in range(2):
        other.epoch(again)
    assert [sorted(rows) for rows in other.journal.epochs[:2]] == epochs[4:6]


def drawn_on_ranks(rank: int, world_size: int, urls: list[str], policies: list[Any]) -> list[Any]:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size))
    index, found = build_index(urls, progress=False), []
    for policy, workers in policies:
        dataset = track(samples(urls, nodesplitter=wds.split_by_node, shardshuffle=False), index)
        model, journal = Net(), Journal()
        loader: Any = attach(DataLoader(dataset, batch_size=3, num_workers=workers), model, policy=policy)
        trainer, batches = Trainer(model, journal), []
        for _ in range(3):
            batches.append(sum(trainer.step(batch) is None for batch in loader))
            journal.end_epoch()
        loader.pruning.detach()
        trainer.epoch(loader)
        found.append((batches, journal.epochs))
    return found


@pytest.mark.parametrize("world_size", [2, 3])
def test_under_a_policy_ranks_have_equally_many_batches_whatever_their_shards(urls: list[str], world_size: int) -> None:
    policies = [(RandomSubset(13), 0), (ImportanceSampling(keep=13), 2)]  # the shards of two ranks have 16 and 24 rows
    ranks = run_ranks(world_size, drawn_on_ranks, urls, policies)
    for (policy, _), *found in zip(policies, *ranks, strict=True):
        assert len({tuple(batches) for batches, _ in found}) == 1
        for epoch in range(3):
            rows = [row for _, epochs in found for row in epochs[epoch]]
            drawn = N if epoch < policy.score_epochs else 13
            assert len(set(rows)) == drawn
            assert len(rows) == -(-drawn // world_size) * world_size  # a rank repeats one row at most
        assert [len(epochs[3]) for _, epochs in found] == [sum(SIZES[rank::world_size]) for rank in range(world_size)]


def test_files_that_are_renamed_as_they_are_read(urls: list[str], index: ShardIndex) -> None:
    renamed = shards(urls, rename_files=lambda name: name.replace("s", "t", 1)).decode().to_tuple("x.bin", "cls")
    with pytest.raises(ArgumentError, match=r"^key must be one of shard .*rename_files= .*\.rename or \.map behind"):
        next(with_rows(track(renamed.map(tensors).batched(5), index)))
    later = shards(urls).decode().rename(x="x.bin", y="cls").to_tuple("x", "y").map(tensors).batched(5)
    rows, (x, _) = next(with_rows(track(later, index)))
    assert torch.equal(x, DATA.x[rows])
