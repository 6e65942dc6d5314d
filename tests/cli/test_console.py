from __future__ import annotations

import pytest
from rich.text import Text

from prunesampler.cli.console import PlainTable, write


def test_tables_texts_and_lines(capsys: pytest.CaptureFixture[str]) -> None:
    word = "word " * 30
    write([PlainTable(["name", "n"], [["[bold]x", "1"], ["y", "23"]]), Text(word), word.strip(), ""])
    lines = capsys.readouterr().out.split("\n")
    assert lines[0].split() == ["name", "n"]
    assert lines[2:4] == ["[bold]x   1", "y        23"]
    assert all(line == line.rstrip() for line in lines)
    assert all(len(line) <= 80 for line in lines[4:6])
    assert word.strip() in lines


def test_columns_that_do_not_fit_follow_below(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    headings = [f"number\n{place}" for place in range(12)]
    write([PlainTable(["score", *headings], [[name, *[f"{7:07}"] * 12] for name in ("el2n", "margin")])])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert [line.split()[0] for line in lines if "0000007" in line] == ["el2n", "margin"] * 3
    assert sum(line.count("0000007") for line in lines) == 24
