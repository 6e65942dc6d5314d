from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from prunesampler.errors import MismatchError
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.merge import common_dataset
from prunesampler.tables.score_table import ScoreTable

N = 8


@st.composite
def files(draw: st.DrawFn) -> ScoreTable | Coreset:
    """Files of one dataset: row i has label i % 3 and the key k<i>, where they are known."""
    rows = draw(st.lists(st.integers(0, N - 1), min_size=1, unique=True))
    keys = draw(st.sampled_from([None, [f"k{row}" for row in rows]]))
    fingerprint = draw(st.sampled_from([None, "size:8"]))
    if draw(st.booleans()):
        return Coreset(rows, num_rows=N, keys=keys, fingerprint=fingerprint)
    known = draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    labels = [row % 3 if has else -1 for row, has in zip(rows, known, strict=True)]
    labels = draw(st.sampled_from([None, labels]))
    return ScoreTable(
        {"el2n": np.zeros(len(rows))}, rows=rows, num_rows=N, keys=keys, labels=labels, fingerprint=fingerprint
    )


@given(files=st.lists(files(), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_what_any_of_them_knows(files: list[ScoreTable | Coreset]) -> None:
    labels, keys, rows = {}, {}, set()
    for file in files:
        rows |= set(file.rows.tolist())
        keys.update(zip(file.rows.tolist(), file.keys or [], strict=False))
        given = getattr(file, "labels", None)
        pairs = zip(file.rows.tolist(), [] if given is None else given.tolist(), strict=False)
        labels.update({row: label for row, label in pairs if label >= 0})
    found = common_dataset(files)
    assert found["num_rows"] == N
    assert found["rows"].tolist() == sorted(rows)
    if found["labels"] is None:
        assert not any(getattr(file, "labels", None) is not None for file in files)
    else:
        assert found["labels"].tolist() == [labels.get(row, -1) for row in sorted(rows)]
    if set(keys) == rows:
        assert found["keys"].to_pylist() == [keys[row] for row in sorted(rows)]
    else:
        assert found["keys"] is None
    assert found["fingerprint"] == next((file.fingerprint for file in files if file.fingerprint), None)


def table(**options: Any) -> ScoreTable:
    return ScoreTable({"el2n": [0.1, 0.2, 0.3]}, **options)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({}, {"rows": [0, 1, 2], "num_rows": 9}, "number 1 has 3 rows, number 2 has 9"),
        ({"fingerprint": "a"}, {"fingerprint": "b"}, "number 2 has the fingerprint b, an earlier one a"),
        ({"labels": [0, 1, 2]}, {"labels": [-1, 1, 1]}, "row 2 has the label 1 in number 2, 2 in an earlier one"),
        ({"keys": ["a", "b", "c"]}, {"keys": ["a", "c", "b"]}, "row 1 has the key 'c' in number 2, 'b' in"),
        ({"keys": [1, 2, 3]}, {"keys": [1, 2, 4]}, "row 2 has the key 4 in number 2, 3 in"),
        ({"keys": [1, 2, 3]}, {"keys": ["1", "2", "3"]}, "keys are int64 in one, large_string in number 2"),
        ({"shards": ["a", "a", "b"]}, {"shards": ["a", "b", "b"]}, "row 1 has the shard 'b'"),
    ],
)
def test_other_datasets(first: dict[str, Any], second: dict[str, Any], message: str) -> None:
    with pytest.raises(MismatchError) as caught:
        common_dataset([table(**first), table(**second)])
    assert str(caught.value).startswith("different datasets: ")
    assert message in str(caught.value)
    assert common_dataset([table(**first), table(**first)])["num_rows"] == 3


def test_every_file_is_compared_with_all_before_it() -> None:
    with pytest.raises(MismatchError, match="number 3 has the fingerprint b, an earlier one a"):
        common_dataset([table(), table(fingerprint="a"), table(fingerprint="b")])
    with pytest.raises(MismatchError, match="row 1 has the label 0 in number 3, 1 in an earlier one"):
        common_dataset([table(), table(labels=[-1, 1, -1]), table(labels=[0, 0, 0])])


def test_rows_are_compared_by_their_numbers() -> None:
    first = ScoreTable({"el2n": [0.1, 0.2]}, rows=[0, 2], num_rows=4, keys=["a", "c"])
    second = ScoreTable({"el2n": [0.1, 0.2]}, rows=[2, 3], num_rows=4, keys=["c", "d"])
    assert common_dataset([first, second])["keys"].to_pylist() == ["a", "c", "d"]
