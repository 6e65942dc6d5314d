from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from prunesampler.cli.formatting import write
from prunesampler.cli.inspected import coreset_json, coreset_text, scores_json, scores_text
from prunesampler.selection.select import select
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.score_table import ScoreTable

ONLINE = {"kind": "online", "epochs": 3, "reduction": "mean", "runs": 1}


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


def test_a_coreset_alone(capsys: pytest.CaptureFixture[str]) -> None:
    coreset = Coreset([0, 2], num_rows=4, weights=[1.0, 3.0])
    write(coreset_text(coreset, Path("c"), None, "not at hand"))
    text = capsys.readouterr().out
    assert "weights: 1 to 3, mean 2\nscores: not at hand\n" in text
    assert "  fingerprint: none\n" in text
    assert json.loads(coreset_json(coreset, Path("c"), None, "not at hand"))["figures"]["classes"] is None
