from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from prunesampler.errors import ArgumentError
from prunesampler.selection.candidates import Candidates, Reader, TableSource
from prunesampler.selection.radix_select import tie_keys
from prunesampler.selection.select import Selection
from prunesampler.tables.score_table import ScoreTable
from tests.helpers.plain_selection import PlainSelection

quiet = pytest.mark.filterwarnings("ignore::prunesampler.errors.PruneSamplerWarning")
METHODS = ("stratified", "top", "bottom", "window", "random")


@st.composite
def tables(draw: st.DrawFn) -> ScoreTable:
    """Rows with many ties, missing scores, infinite ones (by forgetting), and classes of all sizes."""
    n = draw(st.integers(2, 60))
    score = st.sampled_from([0.0, 0.5, 1.0, np.nan]) | st.floats(-4, 4, width=32)

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=n, max_size=n))

    return ScoreTable(
        {"el2n": column(score), "margin": column(score)},
        rows=draw(st.lists(st.integers(0, 999), min_size=n, max_size=n, unique=True)),
        num_rows=1000,
        labels=column(st.integers(-1, 4)),
        forgetting_events=column(st.integers(-1, 4)),
        learned=column(st.booleans()),
    )


@given(table=tables(), data=st.data())
@settings(max_examples=100, deadline=None)
@quiet
def test_the_rows_are_those_of_plain_python(table: ScoreTable, data: st.DataObject) -> None:
    method = data.draw(st.sampled_from(METHODS))
    offsets = st.integers(0, len(table) - 1) | st.floats(0, 1, exclude_max=True)
    options = {
        "method": method,
        "by": data.draw(st.sampled_from(["el2n", "margin", "forgetting"])),
        "keep": data.draw(st.integers(2, len(table)) | st.floats(0, 1, exclude_min=True)),
        "offset": data.draw(st.none() | offsets) if method in ("stratified", "window") else None,
        "class_balanced": data.draw(st.booleans()),
        "min_per_class": data.draw(st.none() | st.integers(1, 12)),
        "unscored": data.draw(st.sampled_from(["keep", "drop"])) if method != "random" else "keep",
        "strata": data.draw(st.integers(1, 7)),
        "seed": data.draw(st.integers(0, 3)),
    }
    expected = PlainSelection(table, **options).select()
    if isinstance(expected, str):
        with pytest.raises(ArgumentError, match=rf"^{expected} "):
            Selection(**options)(table)
        return
    coreset = Selection(**options)(table)
    assert set(coreset.rows.tolist()) == expected
    free = Selection(**{**options, "min_per_class": None})(table)
    if (floor := options["min_per_class"]) is not None and options["unscored"] == "keep":
        assert table.labels is not None
        for label in set(table.labels.tolist()) - {-1}:
            of_class = table.rows[table.labels == label]
            assert np.isin(coreset.rows, of_class).sum() >= min(floor, len(of_class))
        counts = [np.isin(free.rows, table.rows[table.labels == label]).sum() for label in range(5)]
        if all(count >= min(floor, (table.labels == label).sum()) for label, count in enumerate(counts)):
            np.testing.assert_array_equal(coreset.rows, free.rows)  # a floor that is met anyway costs nothing


@given(table=tables(), data=st.data(), floor=st.none() | st.integers(1, 4))
@settings(max_examples=50, deadline=None)
@quiet
def test_superfluous_rows_stay_only_where_their_class_needs_them(
    table: ScoreTable, data: st.DataObject, floor: int | None
) -> None:
    table = table.replace(scores={"el2n": table.scores["el2n"], "el2n_spread": np.zeros(len(table))})
    assert table.labels is not None
    assert table.learned is not None
    assert table.forgetting_events is not None
    score, key = table.scores["el2n"], tie_keys(0, table.rows)
    gone = table.learned & (table.forgetting_events == 0) & (score <= 0.5)
    expected = set(table.rows[~gone].tolist())
    for label in set(table.labels.tolist()) - {-1} if floor else ():
        assert floor is not None
        of_class = np.flatnonzero(table.labels == label)
        back = sorted((i for i in of_class if gone[i]), key=lambda i: (-score[i], key[i]))
        expected |= set(table.rows[back[: max(0, floor - int((~gone[of_class]).sum()))]].tolist())
    selection = Selection("auto", threshold=0.5, min_per_class=floor)
    if not expected:
        with pytest.raises(ArgumentError, match="threshold must leave one"):
            selection(table)
    else:
        assert set(selection(table).rows.tolist()) == expected


def candidates(hardness: Any) -> Candidates:
    table = ScoreTable({"el2n": np.array(hardness, np.float32)}, labels=np.arange(len(hardness)) % 2)
    reader = Reader(TableSource(table, np.arange(len(table))), ["el2n"], lambda part: part.scores["el2n"], 3)
    return Candidates(map, reader)


def rows_of(these: Candidates) -> list[int]:
    (arrays,) = these.arrays()
    return arrays.rows.tolist()


def test_what_is_taken_and_dropped_and_split_can_be_counted_and_looked_at() -> None:
    every = candidates([0.5, 0.1, 0.9, 0.3, 0.7, 0.2])
    assert every.sizes.tolist() == [6]
    for order, skip, rows in (("hardest", 0, [2, 4]), ("hardest", 1, [0, 4]), ("easiest", 0, [1, 5])):
        assert rows_of(every.take(order, 2, skip)) == rows  # type: ignore[arg-type]
    assert rows_of(every.take("easiest", 2, skip=1)) == [3, 5]
    rest = every.drop("hardest", 2)
    assert (rows_of(rest), rest.sizes.tolist()) == ([0, 1, 3, 5], [4])
    assert rest.split(2).sizes.tolist() == [2, 2, 0]  # 0.1 and 0.2; 0.3 and 0.5; none is infinite
    assert rest.split(2).take("random", [1, 2, 0]).sizes.tolist() == [1, 2, 0]
    assert rows_of(every.take("random", 3)) == sorted(np.argsort(tie_keys(3, np.arange(6)))[:3].tolist())
    (arrays,) = rest.arrays()
    np.testing.assert_array_equal(arrays.ties, tie_keys(3, arrays.rows))
    np.testing.assert_array_equal(arrays.hardness, np.float32([0.5, 0.1, 0.3, 0.2]))
    assert arrays.labels is not None
    assert arrays.labels.tolist() == [0, 1, 1, 1]
    assert arrays.features is None
    assert rows_of(every.take("hardest", 0)) == []


def test_one_value_is_one_stratum_and_extreme_ones_are_told_apart() -> None:
    assert candidates([2.0] * 5).split(50).sizes.tolist() == [5] + [0] * 50
    assert candidates([-3e38, 3e38, 1e-45, 0.0]).split(2).sizes.tolist() == [1, 3, 0]
