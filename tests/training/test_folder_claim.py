"""A folder belongs to one run: the living are refused, the dead taken over, and nobody's file is overwritten."""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import prunesampler as ps
from prunesampler.errors import StateError
from prunesampler.training.folder_claim import LOCK, FolderClaim, _host, _start
from tests.helpers.attached import EPOCHS, attach, make_loader
from tests.helpers.training import Journal, Net, Trainer


def started(folder: Path, **options: Any) -> tuple[Any, Trainer]:
    model = Net()
    return attach(make_loader(), model, save_dir=folder, **options), Trainer(model, Journal())


def lock(folder: Path, **changes: Any) -> Path:
    own = {"host": _host(), "pid": os.getpid(), "process_start": _start(os.getpid()), "start": "then", "token": "x"}
    (folder / LOCK).write_text(json.dumps({**own, **changes}))
    return folder / LOCK


def dead() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_second_run_is_refused_while_the_first_scores_and_has_the_folder_when_it_gives_up(tmp_path: Path) -> None:
    first, _ = started(tmp_path / "run")
    for options in ({}, {"resume": True}):
        (tmp_path / "alias").unlink(missing_ok=True)
        (tmp_path / "alias").symlink_to(tmp_path / "run")
        for folder in ("run", "alias", "alias/../run"):
            with pytest.raises(StateError, match=rf"in use: .* claimed by process {os.getpid()} on .*detach\(\)"):
                started(tmp_path / folder, **options)
    first.pruning.detach()
    assert not [*(tmp_path / "run").iterdir()]
    second, trainer = started(tmp_path / "run")
    for _ in range(EPOCHS):
        trainer.epoch(second)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["coreset.parquet", "scores.parquet"]
    with pytest.raises(StateError, match="resume=True"):
        started(tmp_path / "run")
    both = [started(tmp_path / "run", resume=True)[0] for _ in range(2)]  # a finished run may be read by many
    assert {loader.pruning.phase for loader in both} == {"pruned"}


def test_a_run_that_nobody_holds_any_more_leaves_nothing(tmp_path: Path) -> None:
    claim = FolderClaim(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    del claim
    gc.collect()
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("kind", ["dead", "another with its number", "of this process, and forgotten"])
def test_what_the_dead_left_is_taken_over_and_said(tmp_path: Path, kind: str, caplog: Any) -> None:
    changes: dict[str, dict[str, Any]] = {
        "dead": {"pid": dead()},
        "another with its number": {"pid": os.getppid(), "process_start": 1},
        "of this process, and forgotten": {},
    }
    lock(tmp_path, **changes[kind])
    with caplog.at_level(logging.WARNING, "prunesampler"):
        loader, trainer = started(tmp_path)
    assert "claimed by process" in caplog.text
    assert "which is dead: taken over" in caplog.text
    for _ in range(EPOCHS):
        trainer.epoch(loader)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coreset.parquet", "scores.parquet"]


@pytest.mark.parametrize("kind", ["alive", "of another host", "cut short", "something else"])
def test_who_may_live_is_not_taken_over_and_the_cure_works(tmp_path: Path, kind: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        "alive": {"pid": os.getppid(), "process_start": _start(os.getppid())},
        "of another host": {"host": "elsewhere", "pid": dead()},
    }
    path = lock(tmp_path, **changes.get(kind, {}))
    if kind in ("cut short", "something else"):
        path.write_text('{"host": "' if kind == "cut short" else "[1]")
    with pytest.raises(StateError, match=r"save_dir is in use: .* claimed by .*: give another save_dir"):
        started(tmp_path)
    if kind != "alive":
        with pytest.raises(StateError, match=rf"remove {path} if that run is dead"):
            started(tmp_path)
        path.unlink()
        started(tmp_path)[0].pruning.detach()
    started(tmp_path / "another")[0].pruning.detach()


def test_it_is_looked_at_again_before_anything_is_written(tmp_path: Path) -> None:
    loader, trainer = started(tmp_path)
    for _ in range(EPOCHS - 1):
        trainer.epoch(loader)
    before = lock(tmp_path, host="elsewhere").read_bytes()  # a run that could not see this one
    with pytest.raises(StateError, match=r"claimed by process .* on elsewhere .* now, so nothing is written there"):
        trainer.epoch(loader)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    assert (tmp_path / LOCK).read_bytes() == before
    loader.pruning.tracker.table().save(tmp_path / "elsewhere.parquet")  # as the message says


@pytest.mark.parametrize("name", ["scores.parquet", "coreset.parquet"])
def test_a_foreign_file_that_appears_is_left_alone(tmp_path: Path, name: str) -> None:
    loader, trainer = started(tmp_path)
    for _ in range(EPOCHS - 1):
        trainer.epoch(loader)
    (tmp_path / name).write_bytes(b"of somebody else")
    with pytest.raises(StateError, match=rf"{name} is not this run's, but has appeared .*: move it away"):
        trainer.epoch(loader)
    with pytest.raises(StateError, match=name):
        iter(loader)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"of somebody else"
    (tmp_path / name).rename(tmp_path / "away")
    iter(loader)
    assert ps.Coreset.load(tmp_path / "coreset.parquet") == loader.pruning.coreset


def test_a_finished_run_is_not_overwritten_by_one_that_resumed_it_before_it_changed(tmp_path: Path) -> None:
    loader, trainer = started(tmp_path)
    for _ in range(EPOCHS):
        trainer.epoch(loader)
    scores = ps.ScoreTable.load(tmp_path / "scores.parquet")
    resumed, _ = started(tmp_path, resume=True)
    scores.replace(provenance={"by": "another"}).save(tmp_path / "scores.parquet")
    before = (tmp_path / "scores.parquet").read_bytes()
    with pytest.raises(StateError, match="is not this run's"):
        resumed._row_listener._run.phases.folder.conclude(scores, None)
    assert (tmp_path / "scores.parquet").read_bytes() == before


def test_a_lock_file_that_was_cleared_up_is_made_again(tmp_path: Path) -> None:
    claim = FolderClaim(tmp_path)
    (tmp_path / LOCK).unlink()
    claim.check()
    assert (tmp_path / LOCK).exists()
    claim.release()
    assert not [*tmp_path.iterdir()]


def test_a_relative_folder_is_that_of_attach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    loader, trainer = started(Path("runs/a"))
    monkeypatch.chdir(tmp_path / "two")
    for _ in range(EPOCHS):
        trainer.epoch(loader)
    assert (tmp_path / "one/runs/a/coreset.parquet").exists()
    assert not [*(tmp_path / "two").iterdir()]
