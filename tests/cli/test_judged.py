from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prunesampler.analysis.judgement import judge
from prunesampler.cli.formatting import write
from prunesampler.cli.judged import judgement_text
from prunesampler.tables.score_table import ScoreTable

ONLINE = {"kind": "online", "epochs": 4, "reduction": "mean", "runs": 1, "split_half": 0.4}


def said(capsys: pytest.CaptureFixture[str], table: ScoreTable, keeps: list[Any], **options: Any) -> str:
    write(judgement_text(judge(table, keeps, **options)))
    return capsys.readouterr().out


def table(**changes: Any) -> ScoreTable:
    labels = np.repeat([0, 1], [90, 10])
    easy = {"forgetting_events": np.zeros(100, int), "learned": np.ones(100, bool), "labels": labels}
    return ScoreTable({"el2n": (labels == 0).astype(float)}, **{**easy, "protocols": {"el2n": ONLINE}, **changes})


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
    assert "scoring: of unknown length; --score-epochs N gives it" in text
    assert "breaks even" not in text
    assert "classes" not in text
    text = said(capsys, table(), [0.5])
    assert "breaks even" in text
    assert "hours" not in text.replace("--epoch-seconds T tell what", "")
    assert "--epochs N and --epoch-seconds T" in text


def test_a_run_that_ends_before_it_breaks_even_never_does(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, table(protocols={"el2n": {**ONLINE, "runs": 5}}), [0.5], epochs=30)
    assert ["0.5", "50", "100", "%", "–", "never", "35"] in [line.split() for line in text.splitlines()]
    assert "scoring: 20 full epochs beside it" in text


def test_nothing_goes_needs_no_control(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, table(), [1.0])
    assert "keep 1.0: No row would go.\n" in text
    assert "random.parquet" not in text


def test_keys_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, ScoreTable({"el2n": [0.5, 1.0]}, keys=["\x1b[31m[bold]a", "b" * 300]), [0.5])
    assert "\x1b" not in text
    assert "\\x1b[31m[bold]a" in text
