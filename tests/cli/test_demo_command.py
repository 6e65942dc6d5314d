from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from prunesampler.cli.app import main
from prunesampler.tables.score_table import Coreset, ScoreTable
from tests.helpers.command_line import assert_refused
from tests.helpers.pictures import write_parquet

QUICK = ["--seeds", "1", "--epochs", "2", "--score-epochs", "1", "--quiet"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_the_demo(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *QUICK, "--rows", "200", "--batch-size", "50"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    rows = (re.match(r" +((?:full|kept|random).*?)  +(\d+) +(\d+) ", line) for line in lines)
    steps = {row[1]: row[3] for row in rows if row}
    assert steps == {"full data": "8", "kept half": "6", "random half": "6", "full data, shorter": "6"}
    assert lines[-2:] == ["scores:  prunesampler-demo/scores.parquet", "coreset: prunesampler-demo/coreset.parquet"]
    assert len(Coreset.load(here / "prunesampler-demo/coreset.parquet")) == 100
    assert len(ScoreTable.load(here / "prunesampler-demo/scores.parquet")) == 200

    assert main(["demo", *QUICK, "--rows", "200"]) == 2
    assert "holds scores.parquet and coreset.parquet already" in capsys.readouterr().err
    assert main(["demo", *QUICK, "--rows", "200", "--force", "--keep", "30"]) == 0
    assert len(Coreset.load(here / "prunesampler-demo/coreset.parquet")) == 30


def test_the_demo_on_parquet_images(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_parquet(tmp_path)
    given = ["--data", "cifar10", "--root", str(tmp_path), "--rows", "100", "--batch-size", "50", "--out", "run"]
    assert main(["demo", *QUICK, *given]) == 0
    assert "CIFAR-10: 100 training and 100 test images" in capsys.readouterr().out
    assert len(Coreset.load(here / "run/coreset.parquet")) == 50


@pytest.mark.skipif("PRUNESAMPLER_DATA" not in os.environ, reason="PRUNESAMPLER_DATA names no folder of CIFAR-10")
def test_the_demo_on_a_little_of_the_real_cifar10(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--data", "cifar10", "--root", os.environ["PRUNESAMPLER_DATA"], "--rows", "256", "--out", "run"]
    assert main(["demo", *QUICK, *given, "--batch-size", "64"]) == 0
    assert "CIFAR-10: 256 training and 256 test images" in capsys.readouterr().out
    assert len(Coreset.load(here / "run/coreset.parquet")) == 128


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["demo", "--keep", "1"], "keep must be a float in (0, 1], the fraction, or an int >= 2"),
        (["demo", "--keep", "-3"], "keep must be"),
        (["demo", "--keep", "nan"], "keep must be"),
        (["demo", "--keep", "half"], "keep must be a fraction in (0, 1], a number of rows, or auto, got 'half'"),
        (["demo", "--keep", "auto"], "keep must be a number here"),
        (["demo", "--keep", "5000"], "keep must be at most the number of eligible rows, 1347, got 5000"),
        (["demo", "--epochs", "3"], "score_epochs must be below epochs, 3, got 6"),
        (["demo", "--score-epochs", "0"], "score_epochs must be an int >= 1, got 0"),
        (["demo", "--seeds", "0"], "seeds must be an int >= 1, got 0"),
        (["demo", "--batch-size", "-1"], "batch_size must be an int >= 1, got -1"),
        (["demo", "--rows", "5"], "rows must be an int >= 100, got 5"),
        (["demo", "--epochs", "many"], "--epochs"),
        (["demo", "--data", "mnist"], "--data"),
        (["demo", "--data", "cifar10"], "root must be given with --data cifar10"),
        (["demo", "--data", "cifar10", "--root", "nowhere"], "root must hold"),
        (["demo", "--root", "."], "root and download belong to --data cifar10"),
        (["demo", "--download"], "root and download belong to --data cifar10"),
    ],
)
def test_misuse_is_one_line_and_writes_nothing(
    args: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(capsys, args, message)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("module", ["sklearn", "torchvision"])
def test_a_missing_extra_is_one_line(
    module: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["demo"] if module == "sklearn" else ["demo", "--data", "cifar10", "--root", "."]) == 2
    error = capsys.readouterr().err
    assert "pip install 'prunesampler[demo]'" in error
    assert error.count("\n") == 1
    assert list(here.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *QUICK, "--out", "/proc/nothing/here"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
