"""The handle: restarts are exact, wherever the run was cut off."""

from __future__ import annotations

import copy
import io
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import prunesampler as ps
from tests.helpers.attached import AUTO, BATCH, EPOCHS, N, attach, make_loader, scored
from tests.helpers.training import Journal, Leaky, Net, Trainer, lookahead

STEPS_SCORED = EPOCHS * -(-N // BATCH)
TOTAL_EPOCHS = EPOCHS + 3


class Run:
    """A training run that can be cut off anywhere: its own sampler seeded by the epoch, as people do it."""

    def __init__(
        self, *, loop_skips: bool, workers: int = 0, ahead: bool = False, rest: bool = False, **options: Any
    ) -> None:
        self.generator = torch.Generator()
        self.model = Net()
        self.loader = attach(make_loader(generator=self.generator, num_workers=workers), self.model, **options)
        self.trainer = Trainer(self.model, Journal())
        self.loop_skips, self.ahead, self.rest = loop_skips, ahead, rest
        self.epoch = self.done = 0

    def steps(self) -> Any:
        """One training step each; yields the rows that it trained on."""
        while self.epoch < TOTAL_EPOCHS:
            self.generator.manual_seed(self.epoch)
            skip, number = (self.done, -1) if self.loop_skips else (0, self.done - 1)
            if not self.loop_skips and self.loader.pruning.phase == "scoring":
                number = -1  # the epoch starts again
            loader: Any = self.loader
            if self.rest and skip:  # as a framework does that makes a loader of the batches that are left
                import accelerate  # slow, and not wanted in processes that are killed

                loader = accelerate.skip_first_batches(loader, skip)
                self.loader.pruning.follow(loader, skipped=skip)
                number = skip - 1
            for batch in lookahead(loader) if self.ahead else loader:
                number += 1
                if number < skip:
                    continue
                self.trainer.step(batch)
                self.done = number + 1
                yield batch[0][:, 0].long().tolist()
            self.epoch, self.done = self.epoch + 1, 0

    def checkpoint(self) -> dict[str, Any]:
        buffer = io.BytesIO()
        state = {
            "model": self.model.state_dict(),
            "pruning": self.loader.pruning.state_dict(),
            "epoch": self.epoch,
            "done": self.done,
        }
        torch.save(state, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=True)

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.loader.pruning.load_state_dict(state["pruning"], mid_epoch=not self.loop_skips)
        self.epoch, self.done = state["epoch"], state["done"]
        if self.done == len(self.loader):
            self.epoch, self.done = self.epoch + 1, 0


def finished(run: Run) -> tuple[Any, Any]:
    return run.loader.pruning.coreset, [parameter.tolist() for parameter in run.model.parameters()]


@pytest.mark.parametrize(
    "options", [{}, AUTO, {"workers": 1}, {"ahead": True}, {"rest": True}, {"rest": True, "ahead": True}], ids=str
)
def test_a_loop_that_skips_what_it_trained_resumes_anywhere(options: dict[str, Any]) -> None:
    whole = Run(loop_skips=True, **options)
    steps, checkpoints = [], []
    for rows in whole.steps():
        steps.append(rows)
        checkpoints.append(whole.checkpoint())
    assert len(steps) > STEPS_SCORED + 5
    assert len(whole.loader.pruning.coreset) < N
    for cut in range(0, len(steps) - 1, 1 if not options else 12 if "workers" in options else 4):
        resumed = Run(loop_skips=True, **options)
        resumed.restore(checkpoints[cut])
        assert list(resumed.steps()) == steps[cut + 1 :], cut
        assert finished(resumed) == finished(whole)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_run_that_is_cut_off_again_and_again(ahead: bool) -> None:
    whole = Run(loop_skips=True, ahead=ahead)
    expected = list(whole.steps())
    for seed in range(6):
        draw, state, seen, over = random.Random(seed), None, [], False
        while not over:
            run = Run(loop_skips=True, ahead=ahead)
            if state is not None:
                run.restore(state)
            left = draw.randint(1, 9)
            over = True
            for rows in run.steps():
                seen.append(rows)
                left -= 1
                if not left:
                    state, over = run.checkpoint(), False
                    break
        assert seen == expected
        assert finished(run) == finished(whole)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("options", [{}, {"epoch_length": "full"}, AUTO], ids=str)
def test_the_pruned_order_continues_by_itself(ahead: bool, options: dict[str, Any]) -> None:
    whole = Run(loop_skips=False, ahead=ahead, **options)
    steps, checkpoints = [], []
    for rows in whole.steps():
        steps.append(rows)
        checkpoints.append(whole.checkpoint())
    for cut in range(STEPS_SCORED, len(steps) - 1):
        resumed = Run(loop_skips=False, ahead=ahead, **options)
        resumed.restore(checkpoints[cut])
        assert list(resumed.steps()) == steps[cut + 1 :], cut
        assert finished(resumed) == finished(whole)


def test_a_scoring_epoch_that_starts_again_counts_once() -> None:
    run = Run(loop_skips=False)
    states = []
    for _ in run.steps():
        states.append(run.checkpoint())
        if len(states) == 10:  # in the second epoch
            break
    resumed = Run(loop_skips=False)
    resumed.restore(states[-1])
    for _ in resumed.steps():
        if resumed.loader.pruning.phase == "pruned":
            break
    # The table of epochs 0 (before the cut), 1 and 2 (after it): each row is presented three times, not more.
    assert resumed.loader.pruning.table.presentations.tolist() == [EPOCHS] * N


def test_a_resumed_loop_may_pass_over_a_long_beginning() -> None:
    def make() -> tuple[Any, Trainer]:
        model = Net()
        return attach(make_loader(batch_size=1, shuffle=False, dataset=Leaky(100)), model), Trainer(model, Journal())

    loader, trainer = make()
    for number, batch in enumerate(loader):
        trainer.step(batch)
        if number == 90:
            break
    state = loader.pruning.state_dict()
    loader, trainer = make()
    loader.pruning.load_state_dict(state)
    for number, batch in enumerate(loader):
        if number > 90:
            trainer.step(batch)
    assert loader.pruning.tracker.table().presentations.tolist() == [1] * 100


def test_a_finished_run_starts_pruned_and_other_options_select_again(tmp_path: Path, caplog: Any) -> None:
    loader, _ = scored(epochs=EPOCHS + 1, save_dir=tmp_path)
    first = loader.pruning.coreset
    scores = (tmp_path / "scores.parquet").read_bytes()

    again = attach(make_loader(), Net(), save_dir=tmp_path, resume=True)
    assert again.pruning.phase == "pruned"
    assert again.pruning.coreset == first
    assert len(again) == len(loader)
    assert again.pruning.total_steps(5) == loader.pruning.total_steps(5)

    with caplog.at_level("INFO", "prunesampler"):
        other = attach(make_loader(), Net(), save_dir=tmp_path, resume=True, keep=10)
    assert "selecting again" in caplog.text
    assert len(other.pruning.coreset) == 10
    assert ps.Coreset.load(tmp_path / "coreset.parquet") == other.pruning.coreset
    assert (tmp_path / "scores.parquet").read_bytes() == scores


def test_states_of_other_runs_are_refused() -> None:
    run = Run(loop_skips=True)
    next(run.steps())
    state = run.checkpoint()["pruning"]

    def refuse(match: str, state: Any, **options: Any) -> None:
        other = attach(make_loader(), Net(), **options)
        with pytest.raises(ps.StateError, match=match):
            other.pruning.load_state_dict(state)

    refuse("version", {**state, "version": 99})
    refuse("plan", state, keep=0.6)
    refuse("plan", state, **AUTO)
    refuse("plan", state, score_epochs=EPOCHS + 1)
    refuse("keys", {name: value for name, value in state.items() if name != "scoring"})
    refuse("keys", {**state, "extra": 1})
    refuse("keys", {})
    for match, dataset in (("num_rows", Leaky(N + 1)), ("fingerprint", Leaky(N, seed=1))):
        other = attach(DataLoader(dataset, batch_size=BATCH), Net())
        with pytest.raises(ps.StateError, match=match):
            other.pruning.load_state_dict(state)


def test_a_damaged_state_is_refused_and_changes_nothing() -> None:
    run = Run(loop_skips=True)
    states = [run.checkpoint()["pruning"] for _ in run.steps()]
    scoring, pruned = states[STEPS_SCORED - 3], states[-3]
    assert (scoring["phase"], pruned["phase"]) == ("scoring", "pruned")
    damages = [{"phase": "training"}, {"batches_open": "7"}, {"fingerprint": 3}]
    damaged = [{**state, **damage} for state in (scoring, pruned) for damage in damages]
    damaged += [{**scoring, "scoring": value} for value in (None, 3, {}, {**scoring["scoring"], "rows": None})]
    damaged += [{**scoring, "scoring": {**scoring["scoring"], "tracker": value}} for value in (None, 3, {})]
    damaged += [{**pruned, "coreset": value} for value in (None, 3, {}, {**pruned["coreset"], "num_rows": N + 1})]
    damaged += [{**pruned, "sampler": value} for value in (None, 3, {}, {**pruned["sampler"], "position": -1})]
    other = Run(loop_skips=True)
    other.restore({**other.checkpoint(), "pruning": states[9]})
    before = str(other.checkpoint()["pruning"])
    for state in damaged:
        with pytest.raises(ps.StateError):
            other.loader.pruning.load_state_dict(state)
        assert str(other.checkpoint()["pruning"]) == before


def test_a_state_taken_while_scoring_goes_back_from_a_finished_folder(tmp_path: Path) -> None:
    run = Run(loop_skips=True, save_dir=tmp_path)
    states, steps = [], []
    for rows in run.steps():
        states.append(run.checkpoint())
        steps.append(rows)
    # Killed after the files were written, before the next checkpoint: the last one is older than the files.
    cut = STEPS_SCORED - 3
    resumed = Run(loop_skips=True, save_dir=tmp_path, resume=True)
    assert resumed.loader.pruning.phase == "pruned"
    resumed.restore(states[cut])
    assert resumed.loader.pruning.phase == "scoring"
    assert list(resumed.steps()) == steps[cut + 1 :]
    assert finished(resumed) == finished(run)


def test_total_steps_are_what_the_loop_sees() -> None:
    run = Run(loop_skips=False)
    assert run.loader.pruning.total_steps(TOTAL_EPOCHS) == len(list(run.steps()))
    for epochs in (-1, 2.5, True):
        with pytest.raises(ps.ArgumentError, match="epochs"):
            run.loader.pruning.total_steps(epochs)


# -- SIGKILL ---------------------------------------------------------------------------------------------------


def train_until_killed(folder: str, pause: float, limit: int | None = None) -> None:
    """A run that starts from its last checkpoint, and writes one after every step, of ``limit`` at most."""
    path = Path(folder)
    run = Run(loop_skips=True, save_dir=path / "run", resume=True)
    if (path / "checkpoint.pt").exists():
        run.restore(torch.load(path / "checkpoint.pt", weights_only=True))
    for number, rows in enumerate(run.steps()):
        if number == limit:  # whoever kills it has no time
            time.sleep(3600)
        with (path / "steps.jsonl").open("a") as file:
            file.write(json.dumps([run.epoch, run.done, rows]) + "\n")
        torch.save(run.checkpoint(), path / "new.pt")
        os.replace(path / "new.pt", path / "checkpoint.pt")
        time.sleep(pause)
    torch.save(run.checkpoint(), path / "final.pt")


def test_sigkill_at_any_moment_changes_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = context.Process(target=train_until_killed, args=(str(tmp_path / "whole"), 0.0))
    whole.start()

    killed, draw, deaths = tmp_path / "killed", random.Random(4), 0
    for _ in range(60):
        log, steps_left = killed / "steps.jsonl", draw.randint(1, 9)
        target = steps_left + (log.read_text().count("\n") if log.exists() else 0)
        process = context.Process(target=train_until_killed, args=(str(killed), 0.01, steps_left + 2))
        process.start()
        while process.is_alive():
            if log.exists() and log.read_text().count("\n") >= target:
                time.sleep(draw.uniform(0, 0.02))
                break
            time.sleep(0.002)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            deaths += 1
        process.join()
        for name in ("scores.parquet", "coreset.parquet"):
            if (killed / "run" / name).exists():
                (ps.ScoreTable if name == "scores.parquet" else ps.Coreset).load(killed / "run" / name)
        if (killed / "final.pt").exists():
            break
    whole.join()
    assert whole.exitcode == 0
    assert deaths >= 3
    assert (killed / "final.pt").exists()

    def steps(folder: Path) -> dict[tuple[int, int], list[int]]:
        records = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
        by_step: dict[tuple[int, int], list[int]] = {}
        for epoch, done, rows in records:
            # A step that was repeated, since its checkpoint was lost, saw the same rows.
            assert by_step.setdefault((epoch, done), rows) == rows
        return by_step

    assert steps(killed) == steps(tmp_path / "whole")
    found, wanted = (ps.ScoreTable.load(folder / "run" / "scores.parquet") for folder in (killed, tmp_path / "whole"))
    assert found.scores.keys() == wanted.scores.keys()
    for name, values in wanted.scores.items():  # a checkpoint scores earlier what waits, in other batches
        np.testing.assert_allclose(found.scores[name], values, rtol=1e-6, atol=1e-6)
    for name in ("presentations", "labels", "forgetting_events", "learned"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    assert found.fingerprint == wanted.fingerprint
    cores = [ps.Coreset.load(folder / "run" / "coreset.parquet") for folder in (killed, tmp_path / "whole")]
    assert (cores[0].rows.tolist(), cores[0].selection) == (cores[1].rows.tolist(), cores[1].selection)
    final = [torch.load(folder / "final.pt", weights_only=True) for folder in (killed, tmp_path / "whole")]
    for name, value in final[0]["model"].items():
        assert torch.equal(value, final[1]["model"][name])


def test_pickled_loaders_are_plain() -> None:
    loader = attach(make_loader(generator=None), Net())
    plain = copy.deepcopy(loader)
    assert type(plain) is DataLoader
    assert sum(len(x) for x, _ in plain) == N
    assert isinstance(loader, ps.AttachedLoader)
    assert isinstance(loader.pruning, ps.Pruning)
