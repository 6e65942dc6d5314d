"""A run under a policy that is killed goes on from its checkpoint as if nothing had been."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import prunesampler as ps
from tests.helpers.training import Journal, Leaky, Net, Trainer

N, BATCH, EPOCHS = 24, 4, 4


def policy_of(name: str) -> ps.Policy:
    return ps.RecordHardest(0.5) if name == "recording" else ps.InfoBatch(ratio=0.7, anneal=0.25, epochs=EPOCHS)


def train(name: str, folder: Path, dies_at: int | None = None) -> tuple[list[Any], list[torch.Tensor]]:
    """What each step of the whole run was given, (epoch, rows, weights), and the parameters at its end."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ps.PruneSamplerWarning)  # of the length
    model, steps = Net(), []
    loader: Any = DataLoader(Leaky(N), BATCH, shuffle=True, generator=torch.Generator().manual_seed(1))
    loader = ps.attach(loader, model, policy=policy_of(name), save_dir=folder / "run", save_every=1, resume=True)
    trainer, pruning, checkpoint = Trainer(model, Journal()), loader.pruning, folder / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        pruning.load_state_dict(state["pruning"])
        steps = state["steps"]
    while (epoch := getattr(pruning.sampler, "epoch", 0)) < EPOCHS:
        for x, y in loader:
            rows, drawn = x[:, 0].long().tolist(), pruning.coreset
            weights = (
                {} if drawn is None or drawn.weights is None else dict(zip(drawn.rows, drawn.weights, strict=True))
            )
            trainer.step((x, y))
            steps.append([epoch, rows, [float(weights.get(row, 1)) for row in rows]])
            if len(steps) == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            state = {"model": model.state_dict(), "pruning": pruning.state_dict(), "steps": steps}
            torch.save(state, folder / "checkpoint.new")
            (folder / "checkpoint.new").rename(checkpoint)
    pruning.finish()
    return steps, list(model.parameters())


@pytest.mark.parametrize("name", ["infobatch", "recording"])
def test_draws_weights_order_and_files_are_those_of_an_undisturbed_run(name: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    steps, parameters = train(name, whole)
    assert {weight for *_, weights in steps for weight in weights} > {1.0} or name == "recording"
    epochs = [epoch for epoch, *_ in steps]
    # In the middle of an epoch; or in the first step of one, when the files are further than the checkpoint.
    dies_at = epochs.index(2) + (3 if name == "infobatch" else 1)
    process = multiprocessing.get_context("forkserver").Process(target=train, args=(name, cut, dies_at))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert torch.load(cut / "checkpoint.pt", weights_only=True)["steps"] == steps[: dies_at - 1]
    found, last = train(name, cut)
    assert found == steps
    for mine, expected in zip(last, parameters, strict=True):
        assert torch.equal(mine, expected)
    written = {path.name for path in (whole / "run").iterdir()}
    assert written == {path.name for path in (cut / "run").iterdir()}
    assert ps.ScoreTable.load(whole / "run/scores.parquet") == ps.ScoreTable.load(cut / "run/scores.parquet")
    if name == "recording":
        assert ps.Schedule.load(whole / "run/schedule.parquet") == ps.Schedule.load(cut / "run/schedule.parquet")
