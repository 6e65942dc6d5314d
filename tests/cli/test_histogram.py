from __future__ import annotations

import pytest

from prunesampler.cli.histogram import histogram


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
