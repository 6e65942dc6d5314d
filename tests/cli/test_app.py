from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import prunesampler
from prunesampler._version import __version__
from prunesampler.cli.app import main
from tests.helpers.command_line import assert_refused

QUICK = ["--seeds", "1", "--epochs", "2", "--score-epochs", "1", "--quiet"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["demo", "--colour"], "--colour"),
        (["demo", "--keep"], "--keep"),
        (["prune"], "prune"),
    ],
)
def test_misuse_is_one_line_and_writes_nothing(
    args: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(capsys, args, message)
    assert list(here.iterdir()) == []


def test_what_a_message_quotes_cannot_steer_the_terminal(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "\x1b[2Jscores\nparquet"]) == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert error.count("\n") == 1


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"prunesampler {__version__}\n"
    assert main([]) == main(["--help"]) == 0
    assert "demo" in capsys.readouterr().out
    assert main(["demo", "--help"]) == 0
    assert "--score-epochs" in capsys.readouterr().out


def test_an_interrupt_is_no_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prunesampler.cli.training.load_digits", interrupted)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err.strip() == "prunesampler: interrupted"


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "prunesampler", "demo", "--keep", "2.5"]
    environment = {**os.environ, "PYTHONPATH": str(Path(prunesampler.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert (
        done.stderr
        == "prunesampler: keep must be a float in (0, 1], the fraction, or an int >= 2, the number of rows, got 2.5\n"
    )
