from __future__ import annotations

import copy
import pickle
from pathlib import Path

import duckdb
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from prunesampler.errors import ArgumentError, CorruptFileError, MismatchError
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.parquet import write_columns
from prunesampler.tables.score_table import ScoreTable


@st.composite
def coresets(draw: st.DrawFn) -> Coreset:
    num_rows = draw(st.integers(1, 2**40))
    rows = draw(st.lists(st.integers(0, num_rows - 1), min_size=1, max_size=40, unique=True))
    n = len(rows)
    weight = st.floats(0, 2.0**100, exclude_min=True, width=32)
    return Coreset(
        rows,
        num_rows=num_rows,
        weights=draw(st.none() | st.lists(weight, min_size=n, max_size=n)),
        keys=draw(
            st.none()
            | st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=n, max_size=n)
            | st.lists(st.integers(-(2**63), 2**63 - 1), min_size=n, max_size=n)
        ),
        shards=draw(st.none() | st.lists(st.sampled_from(["a.tar", "b.tar"]), min_size=n, max_size=n)),
        fingerprint=draw(st.none() | st.text(min_size=1)),
        selection=draw(
            st.none() | st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False))
        ),
    )


@given(coreset=coresets())
@settings(max_examples=50, deadline=None)
def test_round_trip(coreset: Coreset, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("c") / "coreset.parquet"
    coreset.save(path)
    loaded = Coreset.load(path)
    assert loaded == coreset
    assert loaded.digest == coreset.digest
    assert loaded.rows.tolist() == coreset.rows.tolist()
    assert loaded.keys == coreset.keys
    assert loaded.selection == coreset.selection
    assert (loaded.num_rows, loaded.fingerprint) == (coreset.num_rows, coreset.fingerprint)
    np.testing.assert_array_equal(loaded.weights, coreset.weights)  # type: ignore[arg-type]
    loaded.save(path)
    assert Coreset.load(path) == coreset


def test_rows_in_any_order_carry_their_columns() -> None:
    coreset = Coreset([9, 2, 5], num_rows=10, weights=[0.9, 0.2, 0.5], keys=["9", "2", "5"])
    assert coreset.rows.tolist() == [2, 5, 9]
    assert coreset.rows.dtype == np.int64
    assert coreset.weights is not None
    assert coreset.weights.tolist() == pytest.approx([0.2, 0.5, 0.9])
    assert coreset.keys == ["2", "5", "9"]
    assert len(coreset) == 3
    assert coreset.keep == 0.3
    assert coreset == Coreset([2, 5, 9], num_rows=10, weights=[0.2, 0.5, 0.9], keys=["2", "5", "9"])


def test_weights_of_one_are_none() -> None:
    assert Coreset([0, 1], num_rows=3, weights=[1, 1]).weights is None
    assert Coreset([0, 1], num_rows=3, weights=[1, 1]) == Coreset([0, 1], num_rows=3)
    assert Coreset([0, 1], num_rows=3, weights=[2, 2]).weights is not None


def test_what_makes_two_differ() -> None:
    base = Coreset([0, 1], num_rows=3)
    for other in (
        Coreset([0, 2], num_rows=3),
        Coreset([0, 1], num_rows=4),
        Coreset([0, 1], num_rows=3, weights=[1, 2]),
        Coreset([0, 1], num_rows=3, keys=[0, 1]),
        Coreset([0, 1], num_rows=3, fingerprint="size:3"),
        Coreset([0, 1], num_rows=3, scores_digest="sha256:00"),
        Coreset([0, 1], num_rows=3, selection={"a": 1}),
    ):
        assert other != base
    assert base != "coreset"


def test_copies_and_pickles_are_equal() -> None:
    coreset = Coreset([4, 1], num_rows=5, keys=["d", "a"], weights=[1, 2])
    assert pickle.loads(pickle.dumps(coreset)) == coreset == copy.deepcopy(coreset)


def test_arrays_are_read_only() -> None:
    coreset = Coreset([4, 1], num_rows=5, weights=[1, 2])
    with pytest.raises(ValueError, match="read-only"):
        coreset.rows[0] = 3
    with pytest.raises(ValueError, match="read-only"):
        coreset.weights[0] = 3  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"rows": []}, "rows"),
        ({"rows": [1, 1]}, "rows"),
        ({"rows": [5]}, "rows"),
        ({"rows": [-1]}, "rows"),
        ({"rows": [0.0]}, "rows"),
        ({"num_rows": 0}, "num_rows"),
        ({"num_rows": None}, "num_rows"),
        ({"weights": [1]}, "weights"),
        ({"weights": [1, 0]}, "weights"),
        ({"weights": [1, float("nan")]}, "weights"),
        ({"weights": [1, float("inf")]}, "weights"),
        ({"keys": ["a"]}, "keys"),
        ({"shards": ["a"]}, "shards"),
        ({"fingerprint": 3}, "fingerprint"),
        ({"scores_digest": 3}, "scores_digest"),
        ({"selection": {"a": object()}}, "selection"),
    ],
)
def test_what_is_refused(options: dict[str, object], argument: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Coreset(**{"rows": [0, 1], "num_rows": 5} | options)  # type: ignore[arg-type]
    assert caught.value.argument == argument


def test_the_file_as_others_read_it(tmp_path: Path) -> None:
    path = tmp_path / "coreset.parquet"
    Coreset([7, 3], num_rows=9, weights=[0.5, 2], keys=["g", "c"]).save(path)
    expected = [(3, 2.0, "c"), (7, 0.5, "g")]
    assert duckdb.sql(f"from '{path}'").fetchall() == expected
    assert pl.read_parquet(path).rows() == expected
    assert list(pd.read_parquet(path).itertuples(index=False, name=None)) == expected
    assert pq.read_schema(path).names == ["row", "weight", "key"]
    Coreset([7, 3], num_rows=9, weights=[1, 1]).save(path)
    assert pq.read_schema(path).names == ["row"]


def test_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "coreset.parquet"
    metadata = {"kind": "coreset", "num_rows": 5, "fingerprint": None, "scores_digest": None, "selection": {}}
    for changed, columns in (
        ({}, {"rows": np.arange(2)}),
        ({}, {"row": np.array([1, 1])}),
        ({}, {"row": np.array([1, 5])}),
        ({}, {"row": np.array([-1, 2])}),
        ({}, {"row": np.array([0.5, 1], np.float32)}),
        ({}, {"row": np.arange(0)}),
        ({}, {"row": np.arange(2), "weight": np.array([1, -1], np.float32)}),
        ({"num_rows": "5"}, {"row": np.arange(2)}),
        ({"num_rows": None}, {"row": np.arange(2)}),
        ({"selection": [1]}, {"row": np.arange(2)}),
        ({"selection": 3}, {"row": np.arange(2)}),
    ):
        write_columns(path, metadata | changed, columns)
        with pytest.raises(CorruptFileError):
            Coreset.load(path)
    for name in ("num_rows", "scores_digest", "selection", "fingerprint"):
        write_columns(path, {k: v for k, v in metadata.items() if k != name}, {"row": np.arange(2)})
        with pytest.raises(CorruptFileError):
            Coreset.load(path)
    ScoreTable({"el2n": [0.5]}).save(path)
    with pytest.raises(MismatchError, match="holds 'scores', not 'coreset'"):
        Coreset.load(path)


def test_fingerprints_are_compared_where_both_are_known(tmp_path: Path) -> None:
    path = tmp_path / "coreset.parquet"
    Coreset([0], num_rows=2, fingerprint="size:2").save(path)
    assert len(Coreset.load(path, "size:2")) == 1
    with pytest.raises(MismatchError, match="size:3"):
        Coreset.load(path, fingerprint="size:3")
    Coreset([0], num_rows=2).save(path)
    assert len(Coreset.load(path, "size:3")) == 1


def test_repr() -> None:
    selection = {"options": {"method": "top"}}
    assert repr(Coreset([0], num_rows=2, selection=selection)) == "Coreset(kept=1, of=2, method='top')"
    assert repr(Coreset([0], num_rows=2)) == "Coreset(kept=1, of=2, method=None)"
