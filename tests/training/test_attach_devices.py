"""The whole path on each device at hand: asynchronous copies, compiled models, captured graphs, and NCCL."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import prunesampler as ps
from tests.helpers.devices import EPOCHS, PRUNED, N, run
from tests.helpers.rankruns import Presentations, together
from tests.helpers.training import check_scores, hardest


def check(table: ps.ScoreTable, coreset: list[int], ranks: list[list[Presentations]]) -> None:
    """The ranks' logs tell these scores and this coreset, and that the pruned epochs had it whole."""
    epochs = list(zip(*ranks, strict=True))
    assert len(epochs) == EPOCHS + PRUNED
    journal = together(epochs[:EPOCHS])
    check_scores(table, journal, N)
    assert set(coreset) == hardest(journal, N, N // 2)
    for epoch in epochs[EPOCHS:]:
        assert sorted(row for presentations in epoch for row, *_ in presentations) == sorted(coreset)


@pytest.mark.filterwarnings("ignore")  # what compilers find worth saying
@pytest.mark.parametrize(
    ("device", "how"),
    [
        ("cpu", "eager"),
        *(pytest.param("cuda", how, marks=pytest.mark.gpu) for how in ("eager", "default", "reduce-overhead")),
    ],
)
def test_a_model_is_scored_on_its_device(device: str, how: str) -> None:
    loader, log = run(device, how)
    check(loader.pruning.table, loader.pruning.coreset.rows.tolist(), [log])


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
def test_a_captured_graph_overwrites_its_output_at_each_step() -> None:
    loader, log = run("cuda", "graphed callable")
    check(loader.pruning.table, loader.pruning.coreset.rows.tolist(), [log])


@pytest.mark.gpu
def test_torchrun(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    command += ["--module", "tests.helpers.devices", "cuda", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rank = torch.load(tmp_path / "0.pt", weights_only=True)
    check(ps.ScoreTable.load(tmp_path / "0/scores.parquet"), rank["coreset"], [rank["log"]])
