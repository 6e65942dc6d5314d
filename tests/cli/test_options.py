from __future__ import annotations

import pytest

from prunesampler.cli.options import keep_option
from prunesampler.errors import ArgumentError


@pytest.mark.parametrize(("text", "keep"), [("0.5", 0.5), ("1.0", 1.0), ("300", 300), ("1", 1), ("1e-3", 0.001)])
def test_a_point_makes_it_a_fraction(text: str, keep: float | int) -> None:
    assert keep_option(text) == keep
    assert type(keep_option(text)) is type(keep)


def test_auto_is_itself() -> None:
    assert keep_option("auto") == "auto"


@pytest.mark.parametrize("text", ["Auto", "", "half", "0,5", "50%"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match="keep must be a fraction in"):
        keep_option(text)
