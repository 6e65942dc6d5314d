from __future__ import annotations

import json
import math

import pytest
from rich.text import Text

from prunesampler.cli.formatting import as_json, plain_table, write


def test_json_is_strict_and_keeps_what_it_can() -> None:
    value = {"a": [1, 2.5, math.inf, -math.inf, math.nan], "b": ({"c": None, "d": True},), "e": "ü"}
    text = as_json(value)
    assert "ü" in text
    found = json.loads(text, parse_constant=pytest.fail)
    assert found == {"a": [1, 2.5, "inf", "-inf", None], "b": [{"c": None, "d": True}], "e": "ü"}
    assert float(found["a"][2]) == math.inf


def test_tables_texts_and_lines(capsys: pytest.CaptureFixture[str]) -> None:
    word = "word " * 30
    write([plain_table(["name", "n"], [["[bold]x", "1"], ["y", "23"]]), Text(word), word.strip(), ""])
    lines = capsys.readouterr().out.split("\n")
    assert lines[0].split() == ["name", "n"]
    assert lines[2:4] == ["[bold]x   1", "y        23"]
    assert all(line == line.rstrip() for line in lines)
    assert all(len(line) <= 80 for line in lines[4:6])
    assert word.strip() in lines
