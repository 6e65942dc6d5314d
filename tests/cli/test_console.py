from __future__ import annotations

import pytest
from rich.text import Text

from prunesampler.cli.console import plain_table, write


def test_tables_texts_and_lines(capsys: pytest.CaptureFixture[str]) -> None:
    word = "word " * 30
    write([plain_table(["name", "n"], [["[bold]x", "1"], ["y", "23"]]), Text(word), word.strip(), ""])
    lines = capsys.readouterr().out.split("\n")
    assert lines[0].split() == ["name", "n"]
    assert lines[2:4] == ["[bold]x   1", "y        23"]
    assert all(line == line.rstrip() for line in lines)
    assert all(len(line) <= 80 for line in lines[4:6])
    assert word.strip() in lines
