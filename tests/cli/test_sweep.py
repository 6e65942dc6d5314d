from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from prunesampler.cli.app import main
from prunesampler.tables.score_table import ScoreTable
from tests.helpers.command_line import assert_refused

SCRIPT = """
def train(rows, *, seed, share):
    return 0.9 - abs(rows.mean() - 120) / {worth} + 0.001 * (seed * rows[0] % 3)
"""


@pytest.fixture(autouse=True)
def files(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    ScoreTable({"el2n": np.arange(200) / 200}).save("scores.parquet")
    Path("good_script.py").write_text(SCRIPT.format(worth=100))
    Path("poor_script.py").write_text(SCRIPT.format(worth=1e9))
    yield
    for name in ("good_script", "poor_script"):
        sys.modules.pop(name, None)


def test_the_start_of_the_window_and_the_gate(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["sweep", "scores.parquet", "--keep", "0.3", "--offsets", "0.0,0.25,100"]
    assert main([*given, "--train", "good_script.py", "--save-dir", "runs"]) == 0
    assert "Take offset 0.25: it beats random rows by +0.1" in capsys.readouterr().out
    assert len(list(Path("runs").iterdir())) == 12
    assert main([*given, "--train", "good_script.py:train", "--save-dir", "runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["best"] == "offset-0.25"
    assert main([*given, "--train", "poor_script.py"]) == 1
    assert "Take" not in capsys.readouterr().out


def test_misuse_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["sweep", "scores.parquet", "--train", "good_script.py"]
    assert_refused(capsys, [*given, "--offsets", "many"], "offsets must be fractions or numbers")
    assert_refused(capsys, [*given, "--offsets", "0.6"], "offsets must leave 100 of 200 rows")
    assert_refused(capsys, [*given[:3], "none.py"], "train must be a Python file")
