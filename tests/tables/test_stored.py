"""What ScoreTable and Coreset have in common: columns by row, a digest, and a file."""

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
from hypothesis import given

from prunesampler.errors import ArgumentError, CorruptFileError, MismatchError
from prunesampler.selection.select import Selection, select_file
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.parquet import Stored, read_header, verify, write_columns
from prunesampler.tables.score_table import ScoreTable

DATA = Path(__file__).parent / "data"
COUNTS = ("labels", "forgetting_events", "learned", "presentations")
RESERVED = ("row", "key", "shard", "weight", "forgetting", "label", *COUNTS[1:])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(
    lambda name: name not in RESERVED
)
JSON = st.none() | st.dictionaries(TEXTS, st.booleans() | st.integers() | st.lists(TEXTS) | st.none())


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


def kept() -> Coreset:
    return Coreset([7, 3], num_rows=9, weights=[0.5, 2], keys=["g", "c"], fingerprint="size:9", selection={"a": 1})


@st.composite
def stored(draw: st.DrawFn) -> Stored:
    num_rows = draw(st.integers(1, 2**40))
    rows = draw(st.lists(st.integers(0, num_rows - 1), min_size=1, max_size=40, unique=True))

    def column(values: st.SearchStrategy[Any]) -> Any:
        return st.lists(values, min_size=len(rows), max_size=len(rows))

    options = {
        "rows": rows,
        "num_rows": num_rows,
        "keys": draw(st.none() | column(TEXTS) | column(st.integers(-(2**63), 2**63 - 1))),
        "shards": draw(st.none() | column(TEXTS)),
        "fingerprint": draw(st.none() | TEXTS.filter(bool)),
    }
    if draw(st.booleans()):
        weights = draw(st.none() | column(st.floats(0, 2.0**100, exclude_min=True, width=32)))
        return Coreset(**options, weights=weights, selection=draw(JSON))
    names = draw(st.lists(NAMES, max_size=3, unique=True))
    counts = column(st.integers(-1, 2**31 - 1))
    return ScoreTable(
        {name: draw(column(st.floats(allow_infinity=False, width=32))) for name in names},
        **options,
        labels=draw(st.none() | counts),
        forgetting_events=draw(st.none() | counts if names else counts),
        learned=draw(st.none() | column(st.booleans())),
        presentations=draw(st.none() | column(st.integers(0, 2**31 - 1))),
        directions=dict.fromkeys(names, draw(st.sampled_from(["higher", "lower"]))),
        protocols={name: draw(st.dictionaries(TEXTS, st.integers() | TEXTS | st.none())) for name in names},
        provenance=draw(JSON),
    )


@given(thing=stored())
def test_what_is_saved_is_loaded(thing: Stored, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("t") / "stored.parquet"
    thing.save(path)
    loaded = type(thing).load(path)
    assert loaded == thing
    verify(read_header(path, thing._kind))
    names = ("num_rows", "fingerprint", "keys", "directions", "protocols", "provenance", "selection", "scores_digest")
    for name in names:
        assert getattr(loaded, name, None) == getattr(thing, name, None)
    assert list(getattr(loaded, "scores", ())) == list(getattr(thing, "scores", ()))
    found, expected = ({**vars(each), **getattr(each, "scores", {})} for each in (loaded, thing))
    for name in ("rows", "weights", *COUNTS, *getattr(thing, "scores", ())):
        left, right = found.get(name), expected.get(name)
        assert (left is None) == (right is None)
        if left is not None:
            assert left.dtype == right.dtype
            assert left.tobytes() == right.tobytes()
            assert not left.flags.writeable
    loaded.save(path)
    assert type(thing).load(path) == thing


def test_rows_in_any_order_carry_their_columns() -> None:
    table = ScoreTable({"el2n": [0.9, 0.2]}, num_rows=10, rows=[9, 2], labels=[9, 2], keys=[90, 20], shards=["z", "b"])
    assert (table.rows.tolist(), table.keys) == ([2, 9], [20, 90])
    assert table == ScoreTable(
        {"el2n": [0.2, 0.9]}, num_rows=10, rows=[2, 9], labels=[2, 9], keys=[20, 90], shards=["b", "z"]
    )
    coreset = Coreset([9, 2, 5], num_rows=10, weights=[0.9, 0.2, 0.5], keys=["9", "2", "5"])
    assert coreset == Coreset([2, 5, 9], num_rows=10, weights=[0.2, 0.5, 0.9], keys=["2", "5", "9"])
    assert (coreset.rows.tolist(), coreset.keys, len(coreset), coreset.keep) == ([2, 5, 9], ["2", "5", "9"], 3, 0.3)
    assert coreset.rows.dtype == np.int64
    assert coreset.weights is not None
    assert coreset.weights.tolist() == pytest.approx([0.2, 0.5, 0.9])


def test_copies_and_pickles_are_equal() -> None:
    for thing in (full(), kept()):
        assert pickle.loads(pickle.dumps(thing)) == thing == copy.deepcopy(thing)
        assert thing != "something else"
    assert Coreset([0], num_rows=2) != ScoreTable({"el2n": [0.5]})


def test_arrays_are_read_only() -> None:
    for array in (kept().rows, kept().weights, full().scores["el2n"], full().labels):
        assert array is not None
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 3


def test_weights_of_one_are_none() -> None:
    assert Coreset([0, 1], num_rows=3, weights=[1, 1]).weights is None
    assert Coreset([0, 1], num_rows=3, weights=[1, 1]) == Coreset([0, 1], num_rows=3)
    assert Coreset([0, 1], num_rows=3, weights=[2, 2]).weights is not None


def test_a_coreset_says_how_it_was_selected() -> None:
    selection = {"options": {"method": "top"}}
    assert repr(Coreset([0], num_rows=2, selection=selection)) == "Coreset(kept=1, of=2, method='top')"
    assert repr(Coreset([0], num_rows=2)) == "Coreset(kept=1, of=2, method=None)"


def test_the_digest_covers_everything() -> None:
    names = ("scores", "rows", "num_rows", *COUNTS, "keys", "fingerprint", "directions", "protocols", "provenance")
    changes: list[dict[str, Any]] = [
        {},
        {"scores": {"el2n": [0.25, np.nan, 1.5], "margin": [3.0, np.nan, -1.0]}},
        {"scores": {"loss": [0.25, np.nan, 1.0], "margin": [3.0, np.nan, -1.0]}, "directions": {}},
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
    ]
    table = {name: getattr(full(), name) for name in names}
    assert len({ScoreTable(**(table | changed)).digest for changed in changes}) == len(changes)
    coreset: dict[str, Any] = {"rows": [0, 1], "num_rows": 3}
    changes = [{}, {"rows": [0, 2]}, {"num_rows": 4}, {"weights": [1, 2]}, {"keys": [0, 1]}]
    changes += [{"fingerprint": "size:3"}, {"scores_digest": "sha256:00"}, {"selection": {"a": 1}}]
    assert len({Coreset(**(coreset | changed)).digest for changed in changes}) == len(changes)


@pytest.mark.parametrize(
    ("argument", "wrong"),
    [
        ("scores", [{"scores": {name: [1.0]}} for name in ("row", "forgetting", "", 3)]),
        ("scores", [{"scores": {}}]),
        ("scores['loss']", [{"scores": {"el2n": [1.0], "loss": [1.0, 2.0]}}]),
        ("scores['el2n']", [{"scores": {"el2n": [np.inf]}}, {"rows": [0, 1], "num_rows": 3}]),
        ("num_rows", [{"scores": {"el2n": []}}, {"rows": [0]}]),
        ("rows", [{"num_rows": 2}, {"rows": [3], "num_rows": 3}]),
        ("labels", [{"labels": [0, 1]}, {"labels": [-2]}]),
        ("forgetting_events", [{"forgetting_events": [1.5]}]),
        ("learned", [{"learned": [1]}]),
        ("presentations", [{"presentations": [-1]}]),
        ("keys", [{"keys": [None]}]),
        ("directions", [{"directions": {"loss": "higher"}}, {"directions": {"el2n": "up"}}]),
        ("protocols", [{"protocols": {"el2n": np.arange(3)}}]),
        ("provenance", [{"provenance": 3}]),
        ("fingerprint", [{"fingerprint": 3}]),
    ],
)
def test_a_table_refuses(argument: str, wrong: list[dict[str, Any]]) -> None:
    for options in wrong:
        with pytest.raises(ArgumentError) as caught:
            ScoreTable(**({"scores": {"el2n": [1.0]}} | options))
        assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("rows", [[], [1, 1], [5], [-1], [0.0]]),
        ("num_rows", [0, None, True]),
        ("weights", [[1], [1, 0], [1, float("nan")], [1, float("inf")]]),
        ("keys", [["a"]]),
        ("shards", [["a"]]),
        ("fingerprint", [3]),
        ("scores_digest", [3]),
        ("selection", [{"a": object()}]),
    ],
)
def test_a_coreset_refuses(argument: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ArgumentError) as caught:
            Coreset(**{"rows": [0, 1], "num_rows": 5, argument: value})  # type: ignore[arg-type]
        assert caught.value.argument == argument


# -- files --------------------------------------------------------------------------------------------------------


def test_files_as_others_read_them(tmp_path: Path) -> None:
    full().save(tmp_path / "scores")
    kept().save(tmp_path / "coreset")
    rows = [
        (0, 1, 0.25, 3.0, 2, True, 5, "a"),
        (1, None, None, None, 0, False, 0, "b"),
        (2, 0, 1.0, -1.0, 0, False, 5, "c"),
    ]
    names = ["row", "label", "el2n", "margin", "forgetting_events", "learned", "presentations", "key"]
    types = ["int64", "int32", "float", "float", "int32", "bool", "int32", "large_string"]
    assert pq.read_schema(tmp_path / "scores").names == names
    assert [str(field.type) for field in pq.read_schema(tmp_path / "scores")] == types
    assert pq.read_schema(tmp_path / "coreset").names == ["row", "weight", "key"]
    for name, expected in (("scores", rows), ("coreset", [(3, 2.0, "c"), (7, 0.5, "g")])):
        assert duckdb.sql(f"from read_parquet('{tmp_path / name}')").fetchall() == expected
        assert pl.read_parquet(tmp_path / name).rows() == expected
        frame = pd.read_parquet(tmp_path / name)
        assert frame.astype(object).where(frame.notna(), None).values.tolist() == [list(row) for row in expected]


ROW, EL2N = np.arange(3), np.ones(3, np.float32)
TABLE = {"num_rows": 3, "fingerprint": None, "directions": {}, "protocols": {}, "provenance": {}}
CORESET = {"num_rows": 5, "fingerprint": None, "scores_digest": None, "selection": {}}


@pytest.mark.parametrize(
    ("kind", "metadata", "columns", "bad"),
    [
        (
            ScoreTable,
            TABLE,
            {"row": ROW, "el2n": EL2N},
            [
                ({}, {"row": None}),
                ({}, {"el2n": None}),
                ({}, {"row": np.array([0, 1, 1])}),
                ({}, {"row": np.array([0, 1, 3])}),
                ({}, {"el2n": np.ones(3, np.int32) > 0}),
                ({}, {"el2n": EL2N * np.float32(np.inf)}),
                ({}, {"label": np.array([-5, 0, 0], np.int32)}),
                ({}, {"learned": np.ones(3, np.int32)}),
                *(({"directions": wrong}, {}) for wrong in ({"loss": "higher"}, {"el2n": 3}, [1], 3)),
                ({"protocols": 3}, {}),
                ({"num_rows": 2}, {}),
            ],
        ),
        (
            Coreset,
            CORESET,
            {"row": ROW},
            [
                ({}, {"row": None, "rows": ROW}),
                *(({}, {"row": np.array(wrong)}) for wrong in ([1, 1], [1, 5], [-1, 2])),
                ({}, {"row": np.array([0.5, 1], np.float32)}),
                ({}, {"row": np.arange(0)}),
                ({}, {"weight": np.array([1, -1, 1], np.float32)}),
                *(({"num_rows": wrong}, {}) for wrong in ("5", None)),
                *(({"selection": wrong}, {}) for wrong in ([1], 3)),
            ],
        ),
    ],
)
def test_intact_files_with_wrong_content_are_refused(
    kind: type[Stored], metadata: dict[str, Any], columns: dict[str, Any], bad: list[Any], tmp_path: Path
) -> None:
    def load(metadata: dict[str, Any], columns: dict[str, Any]) -> Stored:
        held = {name: column for name, column in columns.items() if column is not None}
        write_columns(tmp_path / "a", {"kind": kind._kind, **metadata}, held)
        return kind.load(tmp_path / "a")

    assert len(load(metadata, columns)) == 3
    for changed, others in bad:
        with pytest.raises(CorruptFileError):
            load(metadata | changed, columns | others)
    for name in metadata:
        with pytest.raises(CorruptFileError):
            load({key: value for key, value in metadata.items() if key != name}, columns)


def test_another_kind_and_another_dataset_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    full().save(path)
    with pytest.raises(MismatchError, match="holds 'scores', not 'coreset'"):
        Coreset.load(path)
    assert len(ScoreTable.load(path, "size:3")) == len(ScoreTable.load(path)) == 3
    with pytest.raises(MismatchError, match="fingerprint size:3, this one has size:4: its samples"):
        ScoreTable.load(path, fingerprint="size:4")
    Coreset([0], num_rows=2).save(path)
    assert len(Coreset.load(path, "size:3")) == 1
    with pytest.raises(FileNotFoundError):
        ScoreTable.load(tmp_path / "none")


# -- files of the first release, in data/ -------------------------------------------------------------------------

ROWS = np.array([row for row in range(40) if row % 7 != 3])


def test_a_table_of_the_first_release_loads() -> None:
    expected = ScoreTable(
        {"el2n": np.where(ROWS % 5 == 0, np.nan, ROWS / 64), "margin": ROWS * 37 % 19 / 8 - 1},
        num_rows=40,
        rows=ROWS,
        labels=np.where(ROWS % 11 == 0, -1, ROWS % 3),
        forgetting_events=ROWS % 4,
        learned=ROWS % 6 != 1,
        presentations=np.where(ROWS % 9 == 4, 0, 5),
        keys=[f"images/é{row:02d}.jpg" for row in ROWS],
        shards=[f"train-{row // 20:04d}.tar" for row in ROWS],
        fingerprint="sha256:00",
        protocols={"el2n": {"kind": "online", "epochs": 5, "reduction": "mean", "runs": 1}},
        provenance={"seed": 3},
    )
    loaded = ScoreTable.load(DATA / "scores.parquet", "sha256:00")
    assert loaded == expected
    assert loaded.digest == "sha256:3c020b30959eeb04eee83a2e593dbab22d2b7131966b30e5dcdc8c3abfcc5eed"
    np.testing.assert_array_equal(loaded.scores["el2n"], expected.scores["el2n"])
    assert loaded.keys == expected.keys
    verify(read_header(DATA / "scores.parquet", "scores"))


def test_coresets_of_the_first_release_load() -> None:
    rows = ROWS[::-3]
    loaded = Coreset.load(DATA / "coreset.parquet")
    assert loaded == Coreset(
        rows,
        num_rows=40,
        weights=rows / 8 + 0.5,
        keys=[f"images/é{row:02d}.jpg" for row in rows],
        shards=[f"train-{row // 20:04d}.tar" for row in rows],
        fingerprint="sha256:00",
        scores_digest="sha256:3c020b30959eeb04eee83a2e593dbab22d2b7131966b30e5dcdc8c3abfcc5eed",
        selection={"options": {"method": "top", "keep": 0.3}},
    )
    assert loaded.weights is not None
    assert (loaded.rows / 8 + 0.5).tolist() == loaded.weights.tolist()
    with pytest.raises(MismatchError, match="sha256:01"):
        Coreset.load(DATA / "coreset.parquet", "sha256:01")
    loaded = Coreset.load(DATA / "coreset_int_keys.parquet")
    assert (loaded.rows.tolist(), loaded.keys) == ([1, 5, 9], [10, 50, 90])


@pytest.mark.parametrize("options", ["by hand, see notes", 5, None, ["top"], {"method": "mine"}])
def test_a_coreset_of_any_making_shows_itself(options: Any) -> None:
    coreset = Coreset([0, 2], num_rows=4, selection={"options": options})
    assert coreset.options == (options if isinstance(options, dict) else {})
    assert repr(coreset).startswith("Coreset(kept=2, of=4, method=")


@pytest.mark.parametrize("levels", [101, 900, 100_000])
def test_json_is_nested_to_a_bound(levels: int) -> None:
    inner: dict[str, Any] = {}
    for _ in range(levels - 1):
        inner = {"a": inner}
    with pytest.raises(ArgumentError, match="selection must be nested at most 100 deep"):
        Coreset([0], num_rows=2, selection=inner)
    for _ in range(levels - 100):
        inner = inner["a"]
    Coreset([0], num_rows=2, selection=inner)


def test_a_file_whose_metadata_has_names_of_methods_is_a_table_all_the_same(tmp_path: Path) -> None:
    table = ScoreTable({"el2n": [0.5, 0.25]}, labels=[0, 1])
    metadata = {**table._metadata(), "column": "x", "scores": 5, "rows": []}
    write_columns(tmp_path / "a", metadata, table._columns())
    coreset = select_file(map, tmp_path / "a", tmp_path / "b", Selection(keep=0.5, method="top"))[0]
    assert coreset["kept"] == 1
