"""A recording run, and runs that replay it: what was hard is worked out by hand."""

from __future__ import annotations

import copy
import itertools
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler

import prunesampler as ps
from prunesampler.tracking.ranks import Group
from tests.helpers.training import Journal, Leaky, Net, Trainer

N, BATCH, EPOCHS = 22, 8, 3  # the last batch has six rows


class Recorded(Trainer):
    """A loop that writes down of each batch the rows with the highest loss, in plain Python."""

    def __init__(self, model: Any, keep: float) -> None:
        super().__init__(model, Journal())
        self.keep = keep
        self.hard: list[list[list[int]]] = [[]]

    def step(self, batch: Any) -> None:
        x, y = batch
        with torch.no_grad():
            logits = self.model.eval()(x).double().tolist()
        self.model.train()
        losses = [math.log(sum(math.exp(z) for z in each)) - each[label] for each, label in zip(logits, y, strict=True)]
        count = max(1, round(self.keep * len(losses)))
        places = sorted(sorted(range(len(losses)), key=lambda place: -losses[place])[:count])
        self.hard[-1].append([int(x[place, 0]) for place in places])
        super().step(batch)

    def end_epoch(self) -> None:
        self.hard.append([])


def attached(folder: Path, keep: float = 0.5, sampler: Any = None, **options: Any) -> tuple[Any, Recorded]:
    model = Net()
    loader = DataLoader(Leaky(N), BATCH, shuffle=None if sampler else True, sampler=sampler)
    loader = ps.attach(loader, model, policy=ps.RecordHardest(keep), save_dir=folder, seed=4, **options)
    return loader, Recorded(model, keep)


def epochs_in(folder: Path) -> list[list[int]]:
    return [rows.tolist() for rows in ps.Schedule.load(folder / "schedule.parquet").epochs]


def flat(epochs: Any) -> list[list[int]]:
    return [list(itertools.chain(*batches)) for batches in epochs if batches]


@pytest.mark.parametrize("keep", [0.5, 0.75, 0.01])
def test_the_hardest_rows_of_each_batch_are_written_at_the_end_of_each_epoch(keep: float, tmp_path: Path) -> None:
    loader, trainer = attached(tmp_path, keep)
    assert (len(loader), loader.pruning.total_steps(EPOCHS)) == (3, 3 * EPOCHS)
    for epoch in range(EPOCHS):
        trainer.epoch(loader)
        trainer.end_epoch()
        assert sorted(trainer.journal.epochs[epoch]) == list(range(N))
        assert epochs_in(tmp_path) == flat(trainer.hard)
    loader.pruning.finish()
    assert ps.ScoreTable.load(tmp_path / "scores.parquet").column("loss").shape == (N,)
    assert epochs_in(tmp_path) == flat(trainer.hard)


def test_another_run_trains_on_the_recorded_batches(tmp_path: Path) -> None:
    loader, trainer = attached(tmp_path)
    for _ in range(EPOCHS):
        trainer.epoch(loader)
        trainer.end_epoch()
    replay = ps.attach(DataLoader(Leaky(N), BATCH // 2), None, policy=ps.Scheduled(tmp_path / "schedule.parquet"))
    for batches in trainer.hard[:-1]:
        assert [x[:, 0].long().tolist() for x, _ in replay] == batches


def test_an_epoch_that_is_left_early_is_as_long_as_it_was(tmp_path: Path) -> None:
    loader, trainer = attached(tmp_path)
    for _ in range(EPOCHS):
        for batch in itertools.islice(loader, 2):
            trainer.step(batch)
        trainer.end_epoch()
    loader.pruning.finish()
    assert epochs_in(tmp_path) == flat(trainer.hard)
    assert [len(rows) for rows in epochs_in(tmp_path)] == [8] * EPOCHS


def test_a_row_that_comes_twice_in_an_epoch_is_recorded_once(tmp_path: Path) -> None:
    loader, trainer = attached(tmp_path, 1.0, RandomSampler(range(N), replacement=True, num_samples=40))  # type: ignore[arg-type]
    trainer.epoch(loader)
    trainer.end_epoch()
    assert epochs_in(tmp_path) == [list(dict.fromkeys(trainer.journal.epochs[0]))]
    assert len(trainer.journal.epochs[0]) == 40


def test_a_run_that_is_cut_off_after_any_step_records_the_same(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    loader, trainer = attached(whole)
    states, done = [], 0
    for _ in range(EPOCHS):
        for batch in loader:
            trainer.step(batch)
            done += 1
            state = {"pruning": loader.pruning.state_dict(), "model": trainer.model.state_dict()}
            states.append((done, copy.deepcopy(state)))
            shutil.copytree(whole, tmp_path / f"at-{done}", ignore=shutil.ignore_patterns(".lock"))
        trainer.journal.end_epoch()
    steps = list(itertools.chain(*trainer.journal.epochs))
    for done, state in states:
        # The file of a run that was killed is of the same moment, or further than the state.
        folder = tmp_path / f"at-{done}" if done % 2 else shutil.copytree(whole, tmp_path / f"later-{done}")
        (folder / ".lock").unlink(missing_ok=True)
        loader, trainer = attached(folder, resume=True)
        trainer.model.load_state_dict(state["model"])
        loader.pruning.load_state_dict(state["pruning"])
        if done % 3:  # else the epoch is over once it is loaded
            assert str(loader.pruning.state_dict()["recording"]) == str(state["pruning"]["recording"])
        while len(list(itertools.chain(*trainer.journal.epochs))) < len(steps) - rows_before(done):
            trainer.epoch(loader)
        assert list(itertools.chain(*trainer.journal.epochs)) == steps[rows_before(done) :]
        assert epochs_in(folder) == epochs_in(whole)


def rows_before(steps: int) -> int:
    epochs, batches = divmod(steps, 3)
    return epochs * N + batches * BATCH


def test_a_state_goes_on_only_beside_the_file_that_it_belongs_to(tmp_path: Path) -> None:
    loader, trainer = attached(tmp_path / "a")
    for _ in range(2):
        trainer.epoch(loader)
    state = loader.pruning.state_dict()
    with pytest.raises(ps.StateError, match="resume=True"):
        attached(tmp_path / "a")
    for folder in ("a", "b", "c"):
        if folder == "c":
            ps.Schedule([[0], [1]], num_rows=N).save(tmp_path / "schedule.parquet")
            (tmp_path / "c").mkdir()
            (tmp_path / "schedule.parquet").rename(tmp_path / "c" / "schedule.parquet")
        other, _ = attached(tmp_path / folder, resume=True)
        if folder == "a":
            with pytest.raises(ps.StateError, match="load_state_dict"):
                next(iter(other))
            other.pruning.load_state_dict(state)
            next(iter(other))
        else:
            with pytest.raises(ps.StateError, match=r"schedule\.parquet in save_dir does not begin with"):
                other.pruning.load_state_dict(state)


@pytest.mark.parametrize(
    "damage",
    [None, 3, {}, {"open": None}, {"open": torch.zeros(1)}, {"open": torch.tensor([-1])}, {"ended": -1}, {"digest": 7}],
)
def test_a_damaged_recording_is_refused(damage: Any, tmp_path: Path) -> None:
    loader, trainer = attached(tmp_path / "a")
    trainer.epoch(loader)
    state = loader.pruning.state_dict()
    recording = {**state["recording"], **damage} if isinstance(damage, dict) and damage else damage
    with pytest.raises(ps.StateError):
        loader.pruning.load_state_dict({**state, "recording": recording})


@pytest.mark.parametrize("keep", [0, 1.5, "half"])
def test_keep_is_checked_at_once(keep: Any) -> None:
    with pytest.raises(ps.ArgumentError, match=r"^keep must"):
        ps.RecordHardest(keep)


def test_a_recording_wants_a_folder() -> None:
    with pytest.raises(ps.ArgumentError, match=r"^save_dir must be given"):
        attached(None)  # type: ignore[arg-type]


def test_several_ranks_are_refused_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Group, "create", lambda: SimpleNamespace(world_size=2, rank=0))
    with pytest.raises(ps.UnsupportedError, match="in one process"):
        attached(tmp_path)
