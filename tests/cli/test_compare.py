from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunesampler.cli.app import main
from prunesampler.cli.compare import load_function
from tests.helpers.command_line import assert_refused, score_table

SCRIPT = """
import helper
def train(rows, *, seed, share):
    return helper.base + (0.1 if rows is not None and rows.mean() < 80 else 0) + 0.001 * seed * (rows is None)
def flat(rows, *, seed, share):
    return 0.5
limit = 3
if __name__ == "__main__":
    raise SystemExit("it ran as a script")
"""


@pytest.fixture(autouse=True)
def script(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    Path("my_training.py").write_text(SCRIPT)
    Path("helper.py").write_text("base = 0.5\n")
    score_table().save("scores")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield here / "my_training.py"
    for name in ("my_training", "helper"):
        sys.modules.pop(name, None)


def test_the_gate(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["compare", "scores", "--train", "my_training.py", "--keep", "0.5", "--method", "bottom"]
    assert main([*given, "--arms", "shorter", "--scoring", "0.1", "--save-dir", "runs"]) == 0
    told = capsys.readouterr().out
    assert "Equal cost: 0.6 of the full training, 0.1 of it to score." in told
    assert "Beats training shorter on all rows by 9.9 ± 0.2 points at equal cost." in told
    assert len(list(Path("runs").iterdir())) == 6
    assert main([*given, "--train", "my_training.py:flat", "--seeds", "4", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["pays"] is False
    assert {arm: gain["verdict"] for arm, gain in found["gains"].items()} == dict.fromkeys(
        ("random", "shorter"), "does not beat"
    )
    assert len(found["trials"]) == 12


def test_a_script_is_loaded_once_under_its_own_name(script: Path) -> None:
    assert load_function("my_training.py") is load_function(str(script))
    assert sys.modules["my_training"].__name__ == load_function("my_training.py:flat").__module__


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--keep", "0.5"], "Missing option '--train'"),
        (["--train", "nothing.py", "--keep", "0.5"], "train must be a Python file"),
        (["--train", "scores", "--keep", "0.5"], "train must be a Python file"),
        (["--train", "my_training.py:limit", "--keep", "0.5"], "a file with a function limit(rows, *, seed, share)"),
        (["--train", "my_training.py"], "keep must be given"),
        (["--train", "my_training.py", "--keep", "0.5", "--arms", "best"], "arms must be one of"),
        (["--train", "json.py", "--keep", "0.5"], "must not be named as a module that is loaded already"),
    ],
)
def test_misuse_is_refused_in_one_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("json.py").touch()
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        assert_refused(capsys, ["compare", "scores", *args], message)
    finally:
        sys.dont_write_bytecode = before
