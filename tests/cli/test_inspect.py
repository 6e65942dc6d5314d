from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunesampler.analysis.advice import judge
from prunesampler.cli.app import main
from prunesampler.cli.console import write
from prunesampler.cli.inspect_text import coreset_json, coreset_text, judgement_text, scores_json, scores_text
from prunesampler.selection.select import select
from prunesampler.tables.score_table import Coreset, ScoreTable
from tests.helpers.command_line import assert_refused

ONLINE = {"kind": "online", "epochs": 3, "reduction": "mean", "runs": 1}


@pytest.fixture(autouse=True)
def files(here: Path) -> None:
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
    assert "keep 0.5: Only 33 % of the rows are learned for good, and 50 % would be removed:" in " ".join(text.split())
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
    assert "scores: not available (" in text
    assert "el2n" not in text.split("provenance")[0]
    assert "el2n, gone" in out(capsys, "elsewhere/coreset.parquet", "--scores", "scores.parquet")


def test_a_neighbour_that_does_not_fit_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ScoreTable({"el2n": [0.5] * 60}).save("scores.parquet")
    assert "scores: not available (the coreset was not selected from these scores)" in out(capsys, "coreset.parquet")
    (here / "damaged.parquet").replace(here / "scores.parquet")
    assert "scores: not available (" in out(capsys, "coreset.parquet")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere.parquet"], "nowhere.parquet"),
        (["damaged.parquet"], "damaged.parquet is damaged or cut short"),
        (["text.parquet"], "text.parquet is damaged"),
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
def test_misuse_is_refused_in_one_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, ["inspect", *args], message)


def many_classes() -> ScoreTable:
    labels = np.repeat(np.arange(1000), 3)
    return ScoreTable({"el2n": labels / 1000}, labels=labels, protocols={"el2n": ONLINE})


def test_of_many_classes_the_extremes_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    write(scores_text(many_classes(), Path("scores.parquet"), None))
    text = capsys.readouterr().out
    assert text.startswith("scores.parquet: scores of 3,000 of 3,000 rows, 1,000 classes\n")
    assert "el2n: online, mean, 3 epochs, 1 run, higher is harder" in text
    at = text.index("10 of 1,000 classes, the extremes by mean el2n, hardest first")
    shown = [int(line.split()[0]) for line in text[at:].splitlines()[3:13]]
    assert shown == [999, 998, 997, 996, 995, 4, 3, 2, 1, 0]
    assert len(text.splitlines()) < 40
    assert len(json.loads(scores_json(many_classes(), Path("scores.parquet"), None))["figures"]["classes"]) == 1000


def test_few_classes_are_shown_by_label(capsys: pytest.CaptureFixture[str]) -> None:
    table = ScoreTable(
        {"margin": [0.5, 0.25, -1.0, float("nan")]},
        labels=[2, 0, 0, -1],
        forgetting_events=[1, 0, 0, 2],
        learned=[True, True, False, True],
        presentations=[2, 2, 2, 0],
    )
    write(scores_text(table, Path("a"), None))
    text = capsys.readouterr().out
    assert "3 of 4 rows were presented, 1.5 times on average" in text
    assert "learned 67 %, never forgotten 33 %, never learned 33 %" in text
    assert "margin: protocol unknown, lower is harder\n" in text
    assert "forgetting: protocol unknown, higher is harder; 1 never learned (∞)" in text
    at = text.index("\nclasses\n")
    assert [line.split() for line in text[at:].splitlines()[4:7]] == [
        ["0", "2", "50", "%", "-0.375", "0"],
        ["2", "1", "25", "%", "0.500", "1"],
        ["none", "1", "25", "%", "–", "–"],
    ]


def test_a_coreset_beside_its_scores(capsys: pytest.CaptureFixture[str]) -> None:
    table = many_classes()
    coreset = select(table, keep=0.5, method="bottom")
    write(coreset_text(coreset, Path("coreset.parquet"), table, "scores.parquet"))
    text = capsys.readouterr().out
    assert text.startswith("coreset.parquet: a coreset of 1,500 of 3,000 rows (50 %)\nscores: scores.parquet\n")
    assert "10 of 1,000 classes, the extremes by kept share, lowest first" in text
    assert "    method: bottom\n" in text
    found = json.loads(coreset_json(coreset, Path("coreset.parquet"), table, "scores.parquet"))
    assert found["figures"]["classes"][0] == {"label": 0, "rows": 3, "kept": 3, "share": 1.0, "ratio": 2.0}
    assert found["figures"]["distributions_gone"][0]["scored"] == 1500
    assert found["selection"]["options"]["method"] == "bottom"


def test_classes_are_told_by_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = ScoreTable({"el2n": np.arange(20.0)}, labels=np.arange(20) % 2, provenance={"classes": ["cat", "dog"]})
    write(scores_text(named, Path("s"), judge(named, [0.5])))
    coreset = select(named, 0.5)
    write(coreset_text(coreset, Path("c"), named, "s"))
    text = capsys.readouterr().out
    assert len(re.findall(r"^(?:0.5)? +(?:cat|dog) +10 ", text, re.MULTILINE)) == 6  # means, what is lost, what is kept
    assert re.search(r"^ 19 +– +dog ", text, re.MULTILINE)


def test_a_coreset_alone(capsys: pytest.CaptureFixture[str]) -> None:
    coreset = Coreset([0, 2], num_rows=4, weights=[1.0, 3.0])
    write(coreset_text(coreset, Path("c"), None, "not available"))
    text = capsys.readouterr().out
    assert "weights: 1 to 3, mean 2\nscores: not available\n" in text
    assert "  fingerprint: none\n" in text
    assert json.loads(coreset_json(coreset, Path("c"), None, "not available"))["figures"]["classes"] is None


MEASURED = {"kind": "online", "epochs": 4, "reduction": "mean", "runs": 1, "split_half": 0.4}


def said(capsys: pytest.CaptureFixture[str], table: ScoreTable, keeps: list[Any], **options: Any) -> str:
    write(judgement_text(judge(table, keeps, **options)))
    return capsys.readouterr().out


def table(**changes: Any) -> ScoreTable:
    labels = np.repeat([0, 1], [90, 10])
    easy = {"forgetting_events": np.zeros(100, int), "learned": np.ones(100, bool), "labels": labels}
    return ScoreTable({"el2n": (labels == 0).astype(float)}, **{**easy, "protocols": {"el2n": MEASURED}, **changes})


def test_the_judgement(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, table(), [0.5, 0.9], method="top", epochs=20, epoch_seconds=1800)
    assert text.startswith("judgement: top by el2n\nreliability: 0.57 (noisy); odd and even scoring epochs of one run")
    assert "4 epochs of the run, at no extra cost; a run of 20 epochs, 10 hours" in " ".join(text.split())
    cases = [line.split() for line in text.splitlines() if line.startswith(("0.5 ", "0.9 ", "of all"))]
    assert cases[:3] == [
        ["0.5", "50", "100", "%", "–", "5", "12", "4"],
        ["0.9", "10", "100", "%", "–", "5", "18.4", "0.8"],
        ["of", "all", "100", "%", "–"],
    ]
    assert "classes that lose most (* keeps less than half of the mean)" in text
    assert ["0.9", "1", "10", "0", "0", "%", "0.00*"] in cases
    assert "\nprunesampler select scores.parquet -o random.parquet --keep 0.9 --method random --seed 0\n" in text
    assert '\nloader = ps.attach(loader, model, keep=0.9, score_epochs=4, method="random")\n' in text
    assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith(("reliab", "prune", "loader")))


def test_unknown_costs_have_no_columns(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, ScoreTable({"loss": [0.5, 1.0]}), [0.5])
    assert "reliability: unknown, the score was measured once" in text
    assert "scoring: cost unknown; give the number of scoring epochs as --score-epochs" in " ".join(text.split())
    assert "breaks even" not in text
    assert "classes" not in text
    text = said(capsys, table(), [0.5])
    assert "breaks even" in text
    assert "hours" not in text.replace("--epoch-seconds T tell what", "")
    assert "--epochs N and --epoch-seconds T" in text


def test_a_run_that_ends_before_it_breaks_even_never_does(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, table(protocols={"el2n": {**MEASURED, "runs": 5}}), [0.5], epochs=30)
    assert ["0.5", "50", "100", "%", "–", "never", "35"] in [line.split() for line in text.splitlines()]
    assert "scoring: 20 full epochs beside it" in text


def test_nothing_goes_needs_no_control(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, table(), [1.0])
    assert "keep 1.0: No row would be removed.\n" in text
    assert "random.parquet" not in text


def test_keys_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, ScoreTable({"el2n": [0.5, 1.0]}, keys=["\x1b[31m[bold]a", "b" * 300]), [0.5])
    assert "\x1b" not in text
    assert "\\x1b[31m[bold]a" in text
