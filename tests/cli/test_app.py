from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from prunesampler._version import __version__
from prunesampler.cli.app import app, main
from prunesampler.tables.score_table import ScoreTable
from tests.helpers.command_line import assert_refused, run_module


@pytest.mark.parametrize(
    ("args", "message"), [(["demo", "--colour"], "--colour"), (["demo", "--keep"], "--keep"), (["prune"], "prune")]
)
def test_misuse_is_refused_in_one_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, args, message)


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


def test_help_and_version_wait_for_nothing_heavy() -> None:
    code = (
        "import sys; from prunesampler.cli.app import main; main(['-h']); main(['select', '-h']); main(['-V']); "
        "sys.exit(str({'torch', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "set()"
    assert done.stdout.count("Usage: prunesampler") == 2
    assert done.stdout.endswith(f"prunesampler {__version__}\n")


COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_examples_of_a_command_are_read_by_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "-h"]) == 0
    shown = capsys.readouterr().out
    assert "--json" in shown or name == "report"
    examples = shown.split("Examples:")[1].strip().splitlines()
    assert examples
    for line in examples:
        program, command, *args = shlex.split(line)
        assert (program, command) == ("prunesampler", name)
        COMMANDS[name].make_context(name, args)  # refuses what it does not know


def test_an_interrupt_is_no_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prunesampler.cli.training.load_digits", interrupted)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err.strip() == "prunesampler: interrupted"


def test_as_a_module() -> None:
    ScoreTable({"el2n": [0.1, 0.2, 0.3, 0.4]}).save("scores.parquet")
    done = run_module("select", "scores.parquet", "-o", "coreset.parquet", "--keep", "2.5")
    rule = "keep must be a float in (0, 1], the fraction, or an int >= 2, the number of rows, got 2.5"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"prunesampler: {rule}\n")
    done = run_module("select", "scores.parquet", "-o", "coreset.parquet", "--keep", "0.5")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("kept 2 of 4 rows (50 %): stratified by el2n\n")
