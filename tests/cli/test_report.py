from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from prunesampler.cli.app import main
from prunesampler.selection.select import select
from prunesampler.tables.score_table import Coreset, ScoreTable
from tests.helpers.command_line import assert_refused
from tests.helpers.pictures import write_parquet


@pytest.fixture(autouse=True)
def files(here: Path) -> None:
    table = ScoreTable({"el2n": np.linspace(0, 1, 120)}, labels=np.arange(120) % 10)
    table.save("scores.parquet")
    select(table, 0.5).save("coreset.parquet")
    Coreset([1], num_rows=120, scores_digest="sha256:other").save("foreign.parquet")
    Path("text.parquet").write_text("no Parquet")


def test_the_page(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "data").mkdir()
    write_parquet(here / "data", train=120)
    given = ["report", "scores.parquet", "-o", "report.html", "--coreset", "coreset.parquet", "--images", "data"]
    assert main([*given, "--keep", "0.9, 60"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("written to report.html\n", "")
    text = (here / "report.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert text.count("data:image/png;base64,") == 60
    assert "keep 60: 60 rows would be removed" in text
    assert "automobile" in text

    assert main(given) == 2
    assert "report.html exists already" in capsys.readouterr().err
    assert main([*given[:4], "--force"]) == 0
    assert "data:image" not in (here / "report.html").read_text(encoding="utf-8")


@pytest.mark.skipif("PRUNESAMPLER_DATA" not in os.environ, reason="PRUNESAMPLER_DATA names no folder of CIFAR-10")
def test_pictures_of_the_real_cifar10(here: Path) -> None:
    from prunesampler.analysis.images import read_cifar10

    data = os.environ["PRUNESAMPLER_DATA"]
    labels = read_cifar10(Path(data), "train", rows=200, quiet=True)[1].numpy()
    ScoreTable({"el2n": np.linspace(0, 1, 200)}, labels=labels).save("real.parquet")
    assert main(["report", "real.parquet", "-o", "real.html", "--images", data]) == 0
    assert (here / "real.html").read_text(encoding="utf-8").count("<img") == 60


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere.parquet"], "nowhere.parquet"),
        (["text.parquet"], "text.parquet is damaged"),
        (["coreset.parquet"], "holds 'coreset', not 'scores'"),
        (["scores.parquet", "--coreset", "scores.parquet"], "holds 'scores', not 'coreset'"),
        (["scores.parquet", "--coreset", "foreign.parquet"], "was not selected from these scores"),
        (["scores.parquet", "--images", "nowhere"], "images must hold CIFAR-10"),
        (["scores.parquet", "--by", "loss"], "by must be a score of the table"),
        (["scores.parquet", "--keep", "some"], "keep must be a fraction"),
        (["scores.parquet", "-o", "nowhere/report.html"], "nowhere is not a folder"),
        (["scores.parquet", "-o", "scores.parquet", "--force"], "is read by this command"),
    ],
)
def test_misuse_is_refused_in_one_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, ["report", "-o", "report.html", *args], message)


def test_a_missing_extra_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", "scores.parquet", "-o", "report.html"]) == 2
    error = capsys.readouterr().err
    assert "pip install 'prunesampler[report]'" in error
    assert error.count("\n") == 1
    assert not Path("report.html").exists()
