from __future__ import annotations

import json
import math

import pytest

from prunesampler._format import counted, number, percent, printable
from prunesampler.analysis.format import as_json, histogram


def test_numbers_keep_three_digits_and_whole_ones_all() -> None:
    values = (0.0, -1.0834, 12.34, 1e-5, 1234567, math.nan, None, -math.inf, math.inf, 1e20)
    shown = ["0", "-1.083", "12.3", "1e-05", "1,234,567", "–", "–", "-∞", "∞", "1e+20"]
    assert list(map(number, values)) == shown


def test_one_thing_is_no_plural() -> None:
    assert [counted(count, "row") for count in (0, 1, 1000)] == ["0 rows", "1 row", "1,000 rows"]
    assert counted(2, "class", "classes") == "2 classes"


def test_what_is_not_none_or_all_does_not_look_so() -> None:
    shown = ["0 %", "100 %", "50 %", "1 %", "0.9 %", "0.05 %", "99.99 %", "–"]
    assert list(map(percent, (0.0, 1.0, 0.5, 0.011, 0.0094, 0.00047, 0.9999, None))) == shown


def test_what_could_steer_a_terminal_is_escaped() -> None:
    assert printable("a\x1b[31m\n\u202eb é 漢") == "a\\x1b[31m\\n\\u202eb é 漢"


def test_json_is_strict_and_keeps_what_it_can() -> None:
    value = {"a": [1, 2.5, math.inf, -math.inf, math.nan], "b": ({"c": None, "d": True},), "e": "ü"}
    text = as_json(value)
    assert "ü" in text
    found = json.loads(text, parse_constant=pytest.fail)
    assert found == {"a": [1, 2.5, "inf", "-inf", None], "b": [{"c": None, "d": True}], "e": "ü"}
    assert float(found["a"][2]) == math.inf


@pytest.mark.parametrize("counts", [[1], [0, 1000, 1], [5] * 64, list(range(40))])
def test_columns_are_as_high_as_their_counts(counts: list[int]) -> None:
    *lines, axis = histogram(counts, "low", "high", height=4, width=64)
    width = 64 // len(counts)
    assert len(lines) == 4
    for place, count in enumerate(counts):
        column = {
            "".join(line.ljust(64)[column] for line in lines) for column in range(place * width, place * width + width)
        }
        (drawn,) = column
        eighths = sum(" ▁▂▃▄▅▆▇█".index(character) for character in drawn)
        assert eighths == pytest.approx(32 * count / max(counts), abs=1)
        assert (eighths > 0) == (count > 0)
        assert drawn == "".join(sorted(drawn))
    assert axis.startswith("low")
    assert axis.endswith("high")
    assert max(map(len, (*lines, axis))) <= 64


def test_nothing_is_drawn_of_nothing() -> None:
    assert list(histogram([], "", "")) == []
