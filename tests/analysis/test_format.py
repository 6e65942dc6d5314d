from __future__ import annotations

import math

import pytest

from prunesampler.analysis.format import counted, number, percent, printable


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-1.0834, "-1.083"),
        (12.34, "12.3"),
        (1e-5, "1e-05"),
        (float("nan"), "–"),
        (-math.inf, "-∞"),
        (1e20, "1e+20"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_one_thing_is_no_plural() -> None:
    assert [counted(count, "row") for count in (0, 1, 1000)] == ["0 rows", "1 row", "1,000 rows"]


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (1.0, "100 %"), (0.5, "50 %"), (0.011, "1 %"), (0.0094, "0.9 %"), (0.9999, "99.99 %")],
)
def test_what_is_not_none_or_all_does_not_look_so(share: float, text: str) -> None:
    assert percent(share) == text


def test_what_could_steer_a_terminal_is_escaped() -> None:
    assert printable("a\x1b[31m\n\u202eb é 漢") == "a\\x1b[31m\\n\\u202eb é 漢"
