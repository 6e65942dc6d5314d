from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from prunesampler.errors import ArgumentError
from prunesampler.tables.score_table import ScoreTable
from tests.tables.test_stored import full


def test_what_a_table_holds() -> None:
    table = full()
    assert len(table) == table.num_rows == 3
    assert table.rows.tolist() == [0, 1, 2]
    assert table.directions == {"el2n": "higher", "margin": "lower", "forgetting": "higher"}
    assert table.column("margin").tolist()[::2] == [3.0, -1.0]
    assert table.keys == ["a", "b", "c"]
    assert repr(table) == "ScoreTable(rows=3, of=3, without={'el2n': 1, 'margin': 1, 'forgetting': 1})"


def test_directions_that_are_given() -> None:
    assert ScoreTable({"mine": [1.0]}, directions={"mine": "lower"}).directions == {"mine": "lower"}
    assert ScoreTable({"mine": [1.0]}).directions == {"mine": "higher"}
    assert ScoreTable({"aum": [1.0]}).directions == {"aum": "lower"}  # as its registry says


def test_forgetting_never_learned_is_highest_and_never_presented_is_none() -> None:
    events = full().column("forgetting")
    assert events.dtype == np.float32
    np.testing.assert_array_equal(events, [2, np.nan, np.inf])
    table = ScoreTable({}, forgetting_events=[0, -1, 3])
    np.testing.assert_array_equal(table.column("forgetting"), [0, np.nan, 3])
    assert table.forgetting_events is not None
    assert table.forgetting_events.tolist() == [0, -1, 3]
    with pytest.raises(ArgumentError, match="must be one of"):
        table.column("el2n")
    with pytest.raises(ArgumentError, match="must be one of"):
        ScoreTable({"el2n": [1.0]}).column("forgetting")


# -- carrying scores over -----------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=50)
def test_align_against_a_dictionary(data: st.DataObject) -> None:
    kind: st.SearchStrategy[Any] = data.draw(st.sampled_from([st.integers(0, 40), st.text("ab", max_size=5)]))
    old = data.draw(st.lists(kind, min_size=1, max_size=20, unique=True))
    new = data.draw(st.lists(kind, min_size=1, max_size=20, unique=True))
    rows = data.draw(st.permutations(range(len(old))))
    table = ScoreTable(
        {"el2n": np.arange(len(old)) + 0.5},
        num_rows=len(old),
        rows=rows,
        labels=np.arange(len(old)),
        forgetting_events=np.arange(len(old)) * 2,
        learned=[True] * len(old),
        presentations=np.arange(len(old)) + 1,
        keys=old,
    )
    where = {key: i for i, key in enumerate(old)}
    if not set(old) & set(new):
        with pytest.raises(ArgumentError, match="at least one key"):
            table.align(new)
        return
    aligned = table.align(new)
    assert aligned.num_rows == len(aligned) == len(new)
    assert aligned.keys == new
    assert aligned.labels is not None
    assert aligned.labels.tolist() == [where.get(key, -1) for key in new]
    expected = [where[key] + 0.5 if key in where else np.nan for key in new]
    np.testing.assert_array_equal(aligned.scores["el2n"], expected)
    expected = [where[key] * 2 if key in where else np.nan for key in new]
    np.testing.assert_array_equal(aligned.column("forgetting"), expected)
    assert aligned.presentations is not None
    assert aligned.presentations.tolist() == [where[key] + 1 if key in where else 0 for key in new]


def test_align_without_counts_of_presentations_gives_new_rows_no_forgetting_score() -> None:
    table = ScoreTable({}, forgetting_events=[0, 4], learned=[False, True], keys=["a", "b"])
    np.testing.assert_array_equal(table.align(["b", "new", "a"]).column("forgetting"), [4, np.nan, np.inf])


def test_align_keeps_provenance_but_not_the_fingerprint() -> None:
    table = full()
    aligned = table.align(["c", "a"], fingerprint="size:2")
    assert aligned.fingerprint == "size:2"
    assert table.align(["c"]).fingerprint is None
    assert aligned.protocols == table.protocols
    assert aligned.directions == table.directions
    assert aligned.provenance == {"seed": 3, "aligned_from": table.digest}


@pytest.mark.parametrize("keys", [["a", "a"], [1, 2], ["x", "y"], [], None, ["a", None]])
def test_align_refuses(keys: Any) -> None:
    with pytest.raises(ArgumentError, match="keys"):
        full().align(keys)


def test_align_refuses_a_table_without_distinct_keys() -> None:
    with pytest.raises(ArgumentError, match="only if the table has keys"):
        ScoreTable({"el2n": [1.0]}).align(["a"])
    with pytest.raises(ArgumentError, match="of the table must not repeat"):
        ScoreTable({"el2n": [1.0, 2.0]}, keys=["a", "a"]).align(["a"])
