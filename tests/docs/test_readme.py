from __future__ import annotations

import inspect
import logging
import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import prunesampler
from prunesampler.cli import app as cli
from prunesampler.errors import PruneSamplerWarning
from prunesampler.tables.coreset import Coreset

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def stand_ins() -> dict[str, Any]:
    """What a reader has already: data, a model, and a loop around them."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1000, 8, generator=generator)
    model = torch.nn.Linear(8, 4)
    return {
        "torch": torch,
        "cross_entropy": cross_entropy,
        "DataLoader": DataLoader,
        "dataset": TensorDataset(inputs, inputs[:, :4].argmax(1)),
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "epochs": 12,
    }


def test_the_python_blocks_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    names = stand_ins()
    one_line, reading, elsewhere, _, parts, resume = blocks("python")
    with caplog.at_level(logging.INFO, "prunesampler"), warnings.catch_warnings():
        warnings.simplefilter("ignore", PruneSamplerWarning)  # "attach warns"
        exec(one_line, names)
        assert [record.getMessage() for record in caplog.records] == [blocks("text")[0].strip()]
        assert names["schedule"].last_epoch == names["steps"] == 10 * 32 + 2 * 16
        attached = names["loader"]

        exec(reading, names)

        exec(elsewhere, names)
        assert len(names["subset"]) == len(names["sampler"]) == 500
        assert names["loader"].pruning.phase == "pruned"
        assert len(names["loader"].pruning.coreset) == 700

        exec(parts, names)
        assert len(names["sampler"]) == 500
        assert set(names["table"].scores) == {"el2n", "el2n_spread", "confidence"}

        names["loader"] = attached
        exec(resume, names)
        assert names["loader"] is not attached
        assert names["loader"].pruning.coreset == attached.pruning.coreset
        assert len(list(names["loader"])) == 16


def test_the_columns_are_those_that_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PruneSamplerWarning)
        exec(blocks("python")[0], stand_ins())
    told = dict(re.findall(r"^\| `runs/a/(\w+)\.parquet` \| (.*) \|$", README, re.MULTILINE))
    for file, text in told.items():
        found = pq.read_schema(f"runs/a/{file}.parquet").names
        assert set(found) <= set(re.findall(r"`(\w+)`", text))
    assert set(told) == {"scores", "coreset"}
    assert len(Coreset.load("runs/a/coreset.parquet")) == 500


# webdataset leaves files for the garbage collector to close.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_commands_for_shards_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wds = pytest.importorskip("webdataset")
    from tests.helpers.shardfiles import write_shards

    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path / "shards", [40] * 4)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    names = {**stand_ins(), "ps": prunesampler, "model": model, "epochs": 3}
    names["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.1)
    index, repack = (shlex.split(block)[1:] for block in blocks("bash"))
    (training,) = (block for block in blocks("python") if "shards.track" in block)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PruneSamplerWarning)
        assert cli.main(index) == 0
        exec(training, names)
        assert cli.main(repack) == 0
    kept = Coreset.load("runs/b/coreset.parquet")
    repacked = wds.WebDataset(str(tmp_path / "kept/000000.tar"), shardshuffle=False)
    assert sorted(int(sample["__key__"]) for sample in repacked) == kept.rows.tolist()
    assert len(kept) == 80


def test_ci_runs_the_test_command_that_is_told() -> None:
    commands = [block.strip() for block in blocks("sh")]
    assert len(commands) == 2
    assert all("\n" not in command for command in commands)
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    steps = [step.replace(".venv", '"$venv"') for step in commands[1].split(" && ")]
    assert [line for line in ci if line in steps] == steps
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_every_argument_that_is_told_exists() -> None:
    known = {
        name
        for function in (prunesampler.attach, prunesampler.select, prunesampler.PrunedSampler, DataLoader)
        for name in inspect.signature(function).parameters
    }
    told = set(re.findall(r"`([a-z]\w*)=", README))
    assert told
    assert told <= known
