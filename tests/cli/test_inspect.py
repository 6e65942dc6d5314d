from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from prunesampler.cli.app import main
from prunesampler.selection.select import select
from prunesampler.tables.score_table import Coreset, ScoreTable
from tests.helpers.command_line import assert_refused

ONLINE = {"kind": "online", "epochs": 3, "reduction": "mean", "runs": 1}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    table = ScoreTable(
        {"el2n": np.linspace(0, 1.4, 60), "odd": [float("nan")] * 60},
        labels=np.arange(60) % 3,
        forgetting_events=np.arange(60) // 20,
        learned=np.arange(60) < 50,
        protocols={"el2n": ONLINE},
    )
    table.save("scores.parquet")
    select(table, 0.5).save("coreset.parquet")
    Coreset([1, 2], num_rows=60).save("foreign.parquet")
    Path("damaged.parquet").write_bytes(Path("scores.parquet").read_bytes()[:-40])
    Path("text.parquet").write_text("no Parquet")
    return tmp_path


def out(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["inspect", *args]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "\x1b" not in captured.out
    return captured.out


def test_scores(capsys: pytest.CaptureFixture[str]) -> None:
    text = out(capsys, "scores.parquet")
    assert text.startswith("scores.parquet: scores of 60 of 60 rows, 3 classes\n")
    assert "judgement" not in text
    assert max(map(len, text.splitlines())) <= 80 + len("sha256:")


def test_the_judgement_and_its_control(capsys: pytest.CaptureFixture[str]) -> None:
    text = out(capsys, "scores.parquet", "--keep", "0.7, 0.5,20", "--epochs", "12", "--epoch-seconds", "60")
    assert "keep 0.5: Only 33 % of the rows are learned for good, and 50 % would go:" in " ".join(text.split())
    (command,) = [line for line in text.splitlines() if "--keep 20 " in line]
    assert main(command.split()[1:]) == 0
    assert len(Coreset.load("random.parquet")) == 20


def test_json_has_the_same_figures(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(out(capsys, "scores.parquet", "--keep", "0.5", "--epochs", "12", "--json"))
    assert found["kind"] == "scores"
    assert found["figures"]["scores"][0]["unscored"] == 0
    (case,) = found["judgement"]["cases"]
    assert (case["gone"], case["verdict"], case["cost"]["break_even"]) == (30, "likely to cost", 4)
    assert json.loads(out(capsys, "scores.parquet", "--json"))["judgement"] is None
    assert json.loads(out(capsys, "coreset.parquet", "--json"))["figures"]["classes"][0]["rows"] == 20


def test_a_coreset_finds_its_scores(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "el2n, gone" in out(capsys, "coreset.parquet")
    (here / "elsewhere").mkdir()
    (here / "coreset.parquet").rename(here / "elsewhere/coreset.parquet")
    text = out(capsys, "elsewhere/coreset.parquet")
    assert "scores: not at hand (" in text
    assert "el2n" not in text.split("provenance")[0]
    assert "el2n, gone" in out(capsys, "elsewhere/coreset.parquet", "--scores", "scores.parquet")


def test_a_neighbour_that_does_not_fit_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ScoreTable({"el2n": [0.5] * 60}).save("scores.parquet")
    assert "scores: not at hand (the coreset was not selected from these scores)" in out(capsys, "coreset.parquet")
    (here / "damaged.parquet").replace(here / "scores.parquet")
    assert "scores: not at hand (" in out(capsys, "coreset.parquet")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere.parquet"], "nowhere.parquet"),
        (["damaged.parquet"], "damaged.parquet is damaged or cut short"),
        (["text.parquet"], "text.parquet is damaged"),
        (["."], "directory"),
        (["coreset.parquet", "--scores", "nowhere.parquet"], "nowhere.parquet"),
        (["coreset.parquet", "--scores", "coreset.parquet"], "holds 'coreset', not 'scores'"),
        (["coreset.parquet", "--keep", "0.5"], "keep belongs to a file of scores, and this is a coreset"),
        (["scores.parquet", "--scores", "scores.parquet"], "scores belongs to a coreset"),
        (["scores.parquet", "--epochs", "10"], "epochs needs keep"),
        (["scores.parquet", "--by", "el2n"], "by needs keep"),
        (["scores.parquet", "--keep", "0.5,half"], "keep must be a fraction"),
        (["scores.parquet", "--keep", ""], "keep must be a fraction"),
        (["scores.parquet", "--keep", "0.5,1"], "keep must be a float in (0, 1]"),
        (["scores.parquet", "--keep", "auto"], "el2n_spread"),
        (["scores.parquet", "--keep", "0.5", "--by", "loss"], "by must be a score of the table"),
        (["scores.parquet", "--keep", "0.5", "--by", "odd"], "by must be a score that at least one row has"),
        (["scores.parquet", "--keep", "0.5", "--method", "best"], "method must be one of"),
        (["scores.parquet", "--keep", "0.5", "--epochs", "3"], "epochs must be an int above 3"),
        (["scores.parquet", "--keep", "0.5", "--epoch-seconds", "3"], "epoch_seconds needs epochs"),
    ],
)
def test_misuse_is_one_line_and_writes_nothing(
    args: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.iterdir())
    assert_refused(capsys, ["inspect", *args], message)
    assert sorted(here.iterdir()) == before
