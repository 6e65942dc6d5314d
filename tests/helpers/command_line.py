"""What the tests of commands share: running one, and tables to run it on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prunesampler
from prunesampler.cli.app import main
from prunesampler.tables.score_table import ScoreTable

ONLINE = {"kind": "online", "epochs": 5, "reduction": "mean", "runs": 1}


def assert_refused(capsys: pytest.CaptureFixture[str], args: list[str], message: str) -> None:
    """Exit code 2, one line on stderr that holds ``message``, and no file of the folder is changed."""
    before = _files()
    assert main(args) == 2
    assert _files() == before
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("prunesampler: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


def _files() -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


def run_module(*args: str) -> subprocess.CompletedProcess[str]:
    """``python -m prunesampler`` in a process of its own, in the current folder."""
    environment = {**os.environ, "PYTHONPATH": str(Path(prunesampler.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-m", "prunesampler", *args], capture_output=True, text=True, env=environment
    )


def score_table(seed: int = 0, rows: int = 200, **options: Any) -> ScoreTable:
    """Scores of a run: row i is the harder, the higher i; ten classes; the first row has no score."""
    generator = np.random.default_rng(seed)
    hardness = np.linspace(0, 1, rows) ** 2
    el2n = np.abs(hardness + 0.1 * generator.standard_normal(rows))
    el2n[0] = np.nan
    given: dict[str, Any] = {
        "scores": {"el2n": el2n, "el2n_spread": 0.1 * el2n, "margin": -3 * el2n},
        "labels": np.arange(rows) % 10,
        "forgetting_events": generator.poisson(3 * hardness),
        "learned": generator.random(rows) > hardness / 3,
        "presentations": np.full(rows, 5),
        "fingerprint": f"size:{rows}",
        "protocols": {
            **dict.fromkeys(("el2n", "margin", "forgetting"), ONLINE),
            "el2n_spread": {**ONLINE, "spread_of": "el2n"},
        },
        "provenance": {"seed": seed},
    }
    return ScoreTable(**(given | options))
