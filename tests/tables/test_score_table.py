from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import duckdb
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from prunesampler.errors import ArgumentError, CorruptFileError, FileError, MismatchError
from prunesampler.tables.parquet import write_columns
from prunesampler.tables.score_table import ScoreTable

NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(
    lambda name: (
        name
        not in ("row", "key", "shard", "weight", "forgetting", "label", "forgetting_events", "learned", "presentations")
    )
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@st.composite
def tables(draw: st.DrawFn) -> ScoreTable:
    num_rows = draw(st.integers(1, 2**40))
    rows = draw(st.lists(st.integers(0, num_rows - 1), min_size=1, max_size=40, unique=True))

    def column(values: st.SearchStrategy[Any]) -> Any:
        return st.lists(values, min_size=len(rows), max_size=len(rows))

    names = draw(st.lists(NAMES, max_size=3, unique=True))
    floats = st.floats(allow_infinity=False, width=32)
    counts = st.integers(-1, 2**31 - 1)
    events = st.none() | column(counts) if names else column(counts)
    return ScoreTable(
        {name: draw(column(floats)) for name in names},
        num_rows=num_rows,
        rows=rows,
        labels=draw(st.none() | column(counts)),
        forgetting_events=draw(events),
        learned=draw(st.none() | column(st.booleans())),
        presentations=draw(st.none() | column(st.integers(0, 2**31 - 1))),
        keys=draw(st.none() | column(TEXTS) | column(st.integers(-(2**63), 2**63 - 1))),
        shards=draw(st.none() | column(TEXTS)),
        fingerprint=draw(st.none() | TEXTS.filter(bool)),
        directions=dict.fromkeys(names, draw(st.sampled_from(["higher", "lower"]))),
        protocols={name: draw(st.dictionaries(TEXTS, st.integers() | TEXTS | st.none())) for name in names},
        provenance=draw(st.none() | st.dictionaries(TEXTS, st.booleans() | st.lists(TEXTS))),
    )


@given(table=tables())
@settings(max_examples=50, deadline=None)
def test_round_trip(table: ScoreTable, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("t") / "scores.parquet"
    table.save(path)
    loaded = ScoreTable.load(path)
    assert loaded == table
    for name in ("rows", "labels", "forgetting_events", "learned", "presentations"):
        left, right = getattr(loaded, name), getattr(table, name)
        assert (left is None) == (right is None)
        if left is not None:
            assert left.dtype == right.dtype
            assert left.tolist() == right.tolist()
            assert not left.flags.writeable
    assert list(loaded.scores) == list(table.scores)
    for name, values in table.scores.items():
        assert loaded.scores[name].tobytes() == values.tobytes()
    for name in ("num_rows", "keys", "fingerprint", "directions", "protocols", "provenance"):
        assert getattr(loaded, name) == getattr(table, name)
    first = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == first


def full() -> ScoreTable:
    return ScoreTable(
        {"el2n": [0.25, np.nan, 1.0], "margin": [3.0, np.nan, -1.0]},
        labels=[1, -1, 0],
        forgetting_events=[2, 0, 0],
        learned=[True, False, False],
        presentations=[5, 0, 5],
        keys=["a", "b", "c"],
        fingerprint="size:3",
        protocols={"el2n": {"kind": "online", "epochs": 5, "reduction": "mean", "runs": 1}},
        provenance={"seed": 3},
    )


def test_what_a_table_holds() -> None:
    table = full()
    assert len(table) == table.num_rows == 3
    assert table.rows.tolist() == [0, 1, 2]
    assert table.directions == {"el2n": "higher", "margin": "lower", "forgetting": "higher"}
    assert table.column("margin").tolist()[::2] == [3.0, -1.0]
    assert table.keys == ["a", "b", "c"]
    assert repr(table) == "ScoreTable(rows=3, of=3, without={'el2n': 1, 'margin': 1, 'forgetting': 1})"


def test_directions_that_are_given() -> None:
    assert ScoreTable({"aum": [1.0]}, directions={"aum": "lower"}).directions == {"aum": "lower"}
    assert ScoreTable({"aum": [1.0]}).directions == {"aum": "higher"}


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


def test_rows_in_any_order_carry_their_columns() -> None:
    table = ScoreTable({"el2n": [0.9, 0.2]}, num_rows=10, rows=[9, 2], labels=[9, 2], keys=[90, 20], shards=["z", "b"])
    ordered = ScoreTable(
        {"el2n": [0.2, 0.9]}, num_rows=10, rows=[2, 9], labels=[2, 9], keys=[20, 90], shards=["b", "z"]
    )
    assert table == ordered
    assert table.rows.tolist() == [2, 9]
    assert table.keys == [20, 90]


def test_the_digest_covers_everything() -> None:
    digests = {full().digest}
    for changed in (
        {"scores": {"el2n": [0.25, np.nan, 1.5], "margin": [3.0, np.nan, -1.0]}},
        {"scores": {"loss": [0.25, np.nan, 1.0], "margin": [3.0, np.nan, -1.0]}},
        {"labels": [1, -1, 1]},
        {"labels": None},
        {"forgetting_events": [2, 0, 1]},
        {"learned": [True, False, True]},
        {"presentations": [5, 0, 4]},
        {"keys": ["a", "b", "d"]},
        {"fingerprint": "size:4"},
        {"fingerprint": None},
        {"directions": {"el2n": "lower"}},
        {"protocols": {}},
        {"provenance": {"seed": 4}},
        {"num_rows": 4, "rows": [0, 1, 2]},
        {"num_rows": 4, "rows": [0, 1, 3]},
    ):
        table = full()
        options: dict[str, Any] = {
            name: getattr(table, name)
            for name in (
                *("scores", "rows", "num_rows", "labels", "forgetting_events", "learned", "presentations", "keys"),
                *("fingerprint", "directions", "protocols", "provenance"),
            )
        }
        if "loss" in changed.get("scores", {}):
            options["directions"] = {}
        digests.add(ScoreTable(**(options | changed)).digest)
    assert len(digests) == 16


def test_copies_and_pickles_are_equal() -> None:
    assert pickle.loads(pickle.dumps(full())) == full() == copy.deepcopy(full())
    assert full() != "table"


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"scores": {}}, "scores"),
        ({"scores": {"row": [1.0]}}, "scores"),
        ({"scores": {"forgetting": [1.0]}}, "scores"),
        ({"scores": {"": [1.0]}}, "scores"),
        ({"scores": {3: [1.0]}}, "scores"),
        ({"scores": {"el2n": [1.0], "loss": [1.0, 2.0]}}, "scores['loss']"),
        ({"scores": {"el2n": [np.inf]}}, "scores['el2n']"),
        ({"scores": {"el2n": []}}, "num_rows"),
        ({"num_rows": 2}, "rows"),
        ({"rows": [0]}, "num_rows"),
        ({"rows": [3], "num_rows": 3}, "rows"),
        ({"rows": [0, 1], "num_rows": 3}, "scores['el2n']"),
        ({"labels": [0, 1]}, "labels"),
        ({"labels": [-2]}, "labels"),
        ({"forgetting_events": [1.5]}, "forgetting_events"),
        ({"learned": [1]}, "learned"),
        ({"presentations": [-1]}, "presentations"),
        ({"keys": [None]}, "keys"),
        ({"directions": {"loss": "higher"}}, "directions"),
        ({"directions": {"el2n": "up"}}, "directions"),
        ({"protocols": {"el2n": np.arange(3)}}, "protocols"),
        ({"provenance": 3}, "provenance"),
        ({"fingerprint": 3}, "fingerprint"),
    ],
)
def test_what_is_refused(options: dict[str, Any], argument: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        ScoreTable(**({"scores": {"el2n": [1.0]}} | options))
    assert caught.value.argument == argument


# -- carrying scores over -----------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=50, deadline=None)
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
    with pytest.raises(ArgumentError, match="only where the table holds keys"):
        ScoreTable({"el2n": [1.0]}).align(["a"])
    with pytest.raises(ArgumentError, match="of the table must not repeat"):
        ScoreTable({"el2n": [1.0, 2.0]}, keys=["a", "a"]).align(["a"])


# -- files --------------------------------------------------------------------------------------------------------


def test_the_file_as_others_read_it(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    full().save(path)
    names = ["row", "label", "el2n", "margin", "forgetting_events", "learned", "presentations", "key"]
    expected = [
        (0, 1, 0.25, 3.0, 2, True, 5, "a"),
        (1, None, None, None, 0, False, 0, "b"),
        (2, 0, 1.0, -1.0, 0, False, 5, "c"),
    ]
    assert pq.read_schema(path).names == names
    assert duckdb.sql(f"from '{path}'").fetchall() == expected
    assert pl.read_parquet(path).rows() == expected
    frame = pd.read_parquet(path)
    assert list(frame.columns) == names
    assert frame["el2n"].isna().tolist() == [False, True, False]
    assert [str(field.type) for field in pq.read_schema(path)][:7] == [
        *("int64", "int32", "float", "float", "int32", "bool", "int32")
    ]


def test_every_flipped_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    table = full()
    table.save(path)
    raw = path.read_bytes()
    refused = 0
    for position in range(0, len(raw), 3):
        damaged = bytearray(raw)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            assert ScoreTable.load(path).digest == table.digest
        except FileError:
            refused += 1
    assert refused > len(raw) / 3 / 2


def test_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    metadata = {
        "kind": "scores",
        "num_rows": 3,
        "fingerprint": None,
        "directions": {},
        "protocols": {},
        "provenance": {},
    }
    row, el2n = np.arange(3), np.ones(3, np.float32)
    write_columns(path, metadata, {"row": row, "el2n": el2n})
    assert len(ScoreTable.load(path)) == 3
    bad: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"el2n": el2n}),
        ({}, {"row": row}),
        ({}, {"row": np.array([0, 1, 1]), "el2n": el2n}),
        ({}, {"row": np.array([0, 1, 3]), "el2n": el2n}),
        ({}, {"row": row, "el2n": np.ones(3, np.int32) > 0}),
        ({}, {"row": row, "el2n": el2n * np.float32(np.inf)}),
        ({}, {"row": row, "el2n": el2n, "label": np.array([-5, 0, 0], np.int32)}),
        ({}, {"row": row, "el2n": el2n, "learned": np.ones(3, np.int32)}),
        ({"directions": {"loss": "higher"}}, {"row": row, "el2n": el2n}),
        ({"directions": {"el2n": 3}}, {"row": row, "el2n": el2n}),
        ({"directions": [1]}, {"row": row, "el2n": el2n}),
        ({"directions": 3}, {"row": row, "el2n": el2n}),
        ({"protocols": 3}, {"row": row, "el2n": el2n}),
        ({"num_rows": 2}, {"row": row, "el2n": el2n}),
    ]
    for changed, columns in bad:
        write_columns(path, metadata | changed, columns)
        with pytest.raises(CorruptFileError):
            ScoreTable.load(path)
    for name in metadata:
        write_columns(path, {k: v for k, v in metadata.items() if k != name}, {"row": row, "el2n": el2n})
        with pytest.raises(FileError):
            ScoreTable.load(path)


def test_fingerprints_are_compared_where_both_are_known(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    full().save(path)
    assert len(ScoreTable.load(path, "size:3")) == 3
    with pytest.raises(MismatchError, match="size:4"):
        ScoreTable.load(path, fingerprint="size:4")
    with pytest.raises(FileNotFoundError):
        ScoreTable.load(tmp_path / "none")
