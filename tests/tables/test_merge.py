from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
from hypothesis import given

from prunesampler.errors import ArgumentError, MismatchError
from prunesampler.tables import agreement, parquet
from prunesampler.tables import merge as merging
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.merge import common_dataset, merge, merge_files
from prunesampler.tables.score_table import ScoreTable
from tests.helpers.blockfiles import THREADS, saved, table

NAN, INF = math.nan, math.inf
ONLINE = {"kind": "online", "epochs": 5, "reduction": "mean", "runs": 1}


@st.composite
def runs(draw: st.DrawFn) -> list[dict[int, dict[str, Any]]]:
    """For each run, what it measured of each of its rows."""
    value = st.none() | st.integers(0, 100).map(lambda number: number / 64)
    measured = st.fixed_dictionaries(
        {
            "el2n": value,
            "el2n_spread": value,
            "events": st.integers(0, 4),
            "learned": st.booleans(),
            "presentations": st.integers(0, 3),
            "suggested": st.integers(-1, 2),
            "sure": st.none() | st.sampled_from([-0.75, -0.5, 0.25, 0.5, 1.0]),
        }
    )
    return draw(st.lists(st.dictionaries(st.integers(0, 11), measured, min_size=1), min_size=2, max_size=4))


def as_table(run: dict[int, dict[str, Any]], seed: int) -> ScoreTable:
    def column(name: str, missing: Any = None) -> list[Any]:
        return [missing if of[name] is None else of[name] for of in run.values()]

    return ScoreTable(
        {name: column(name, NAN) for name in ("el2n_spread", "el2n")},
        rows=list(run),
        num_rows=12,
        labels=[row % 3 for row in run],
        forgetting_events=column("events"),
        learned=column("learned"),
        presentations=column("presentations"),
        suggested_label=column("suggested"),
        signed_confidence=column("sure", NAN),
        protocols={"el2n": ONLINE, "el2n_spread": {**ONLINE, "spread_of": "el2n"}, "forgetting": ONLINE},
        provenance={"seed": seed},
    )


@given(runs=runs())
def test_against_plain_python(runs: list[dict[int, dict[str, Any]]]) -> None:
    merged = merge([as_table(run, seed) for seed, run in enumerate(runs)])
    rows = sorted(set().union(*runs))
    assert merged.rows.tolist() == rows
    assert list(merged.scores) == ["el2n_spread", "el2n"]
    assert merged.labels is not None
    assert merged.labels.tolist() == [row % 3 for row in rows]
    forgetting = merged.column("forgetting")
    for place, row in enumerate(rows):
        seen = [run[row] for run in runs if row in run]
        for name, combine in (("el2n", lambda of: sum(of) / len(of)), ("el2n_spread", max)):
            values = [of[name] for of in seen if of[name] is not None]
            expected = combine(values) if values else NAN
            assert merged.scores[name][place] == pytest.approx(expected, nan_ok=True), (name, row)
        presented = [of for of in seen if of["presentations"]]
        if not presented:
            assert math.isnan(forgetting[place])
        elif not any(of["learned"] for of in seen):
            assert forgetting[place] == INF
        else:
            assert forgetting[place] == sum(of["events"] for of in presented)
        assert merged.presentations is not None
        assert merged.presentations[place] == sum(of["presentations"] for of in seen)
        suggested = [of["suggested"] for of in seen if of["suggested"] >= 0] or [-1]
        assert merged.suggested_label is not None
        assert merged.suggested_label[place] == max(suggested, key=suggested.count)
        sure = [of["sure"] for of in seen if of["sure"] is not None]
        assert merged.signed_confidence is not None
        size = math.copysign(sum(map(abs, sure)) / len(sure), sum(sure)) if sure else NAN
        assert merged.signed_confidence[place] == pytest.approx(size, nan_ok=True)


def run(seed: int, **options: Any) -> ScoreTable:
    generator = np.random.default_rng(seed)
    hardness = np.linspace(0, 1, 40) + 0.3 * generator.random(40)
    given: dict[str, Any] = {
        "scores": {"el2n": hardness, "margin": -hardness, "mine": -hardness},
        "labels": np.arange(40) % 4,
        "forgetting_events": generator.poisson(2 * hardness),
        "learned": generator.random(40) < 0.9,
        "presentations": np.full(40, 5),
        "keys": [f"k{row}" for row in range(40)],
        "fingerprint": "size:40",
        "directions": {"mine": "lower"},
        "protocols": {name: {**ONLINE, "split_half": 0.5 + seed / 10} for name in ("el2n", "margin")},
        "provenance": {"seed": seed},
    }
    return ScoreTable(**(given | options))


def test_what_the_result_says_of_itself(tmp_path: Path) -> None:
    tables = [run(0), run(1), run(2, protocols={"el2n": {**ONLINE, "epochs": 7}, "margin": ONLINE})]
    merged = merge(tables)
    pairs = list(itertools.combinations(tables, 2))
    between = {
        name: sum(scipy.stats.spearmanr(a.column(name), b.column(name)).statistic for a, b in pairs) / 3
        for name in ("el2n", "margin", "forgetting")
    }
    for name, value in between.items():
        assert merged.protocols[name].pop("between_runs") == pytest.approx(value), name
    assert merged.protocols["el2n"] == {
        **{"kind": "online", "reduction": "mean", "runs": 3},
        "split_half": pytest.approx(0.55),
    }
    assert merged.protocols["margin"] == {**ONLINE, "runs": 3, "split_half": pytest.approx(0.55)}
    assert merged.protocols["forgetting"] == {"runs": 3}
    assert merged.directions["mine"] == "lower"
    assert merged.provenance == {
        "merged_from": [{"digest": table.digest, "provenance": {"seed": i}} for i, table in enumerate(tables)]
    }
    assert merged.directions == tables[0].directions
    assert merged.fingerprint == "size:40"
    assert merged.keys == tables[0].keys
    merged.save(tmp_path / "merged")
    assert ScoreTable.load(tmp_path / "merged") == merged


def test_the_protocol_of_a_spread_is_that_of_its_score() -> None:
    tables = [
        ScoreTable(
            {"el2n_spread": values, "el2n": values},
            protocols={"el2n": ONLINE, "el2n_spread": {**ONLINE, "spread_of": "el2n"}},
        )
        for values in ([0.1, 0.2, 0.3], [0.1, 0.3, 0.2])
    ]
    protocols = merge(tables).protocols
    assert protocols["el2n"] == {**ONLINE, "runs": 2, "between_runs": 0.5}
    assert protocols["el2n_spread"] == {**protocols["el2n"], "spread_of": "el2n"}


def test_a_merged_table_counts_as_often_as_it_has_runs() -> None:
    a, b, c = run(0), run(1), run(2)
    at_once, in_turn = merge([a, b, c]), merge([merge([a, b]), c])
    for name in ("el2n", "margin"):
        np.testing.assert_allclose(in_turn.scores[name], at_once.scores[name], rtol=1e-6)
    for name in ("forgetting", "margin"):
        np.testing.assert_allclose(in_turn.column(name), at_once.column(name), rtol=1e-6)
        assert in_turn.protocols[name]["runs"] == 3


def test_the_order_of_the_runs_does_not_matter() -> None:
    tables = [run(0), run(1), run(2)]
    forth, back = merge(tables), merge(tables[::-1])
    for name in forth.directions:
        np.testing.assert_allclose(forth.column(name), back.column(name), rtol=1e-6)
        for what in ("between_runs", "split_half"):
            assert forth.protocols[name].get(what) == pytest.approx(back.protocols[name].get(what))


def test_constant_scores_have_no_correlation_to_tell() -> None:
    merged = merge([ScoreTable({"el2n": [0.5, 0.5]}), ScoreTable({"el2n": [0.5, 0.25]})])
    assert merged.protocols == {"el2n": {"runs": 2}}
    assert merged.forgetting_events is None
    assert merged.learned is None
    assert merged.presentations is None


def test_more_than_int32_holds_is_refused() -> None:
    with pytest.raises(ArgumentError, match="presentations must be integers"):
        merge([ScoreTable({"el2n": [0.5]}, presentations=[2**31 - 1], provenance={"seed": i}) for i in range(2)])


def test_the_same_run_twice() -> None:
    with pytest.raises(ArgumentError, match="tables must not hold a run twice, got 'one as number 3 that came before'"):
        merge([run(0), run(1), run(0)])
    for again in ([merge([run(0), run(1)]), run(1)], [merge([run(0), run(1)]), merge([run(2), run(0)])]):
        with pytest.raises(ArgumentError, match="a run twice"):
            merge(again)
    with pytest.raises(ArgumentError, match="a run twice"):
        merge([merge([merge([run(0), run(1)]), run(2)]), run(0)])


@pytest.mark.parametrize("tables", [[], [run(0)], run(0), None, [run(0), "scores.parquet"]])
def test_what_is_not_two_tables(tables: Any) -> None:
    with pytest.raises(ArgumentError, match="tables must be at least two ScoreTables"):
        merge(tables)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scores": {"el2n": np.ones(40)}, "directions": {}},
            "scores and directions, got 'margin: lower in number 1, None in number 2'",
        ),
        ({"directions": {"el2n": "lower"}}, "el2n: higher in number 1, lower in number 2"),
        ({"forgetting_events": None}, "forgetting: higher in number 1, None in number 2"),
        ({"learned": None}, "learned: held in number 1, None in number 2"),
        ({"presentations": None}, "presentations: held"),
        ({"protocols": {"el2n": {**ONLINE, "kind": "rescored"}, "margin": ONLINE}}, 'kinds of protocol, got "el2n'),
        ({"protocols": {"el2n": ONLINE, "margin": {**ONLINE, "reduction": "last"}}}, 'kinds of protocol, got "margin'),
        ({"protocols": {}}, "kinds of protocol"),
    ],
)
def test_other_measurements(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        merge([run(0), run(1, **options)])
    assert message in str(caught.value)
    assert caught.value.argument == "tables"


def test_other_datasets_are_not_merged() -> None:
    with pytest.raises(MismatchError, match="different datasets"):
        merge([run(0), run(1, fingerprint="size:41")])


# -- from files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", [10**6, 100])
@pytest.mark.parametrize(
    "tables",
    [
        [table(0), table(1), table(2)],
        [
            table(seed, suggested_label=np.arange(280) % 4 - 1, signed_confidence=np.linspace(-1, seed / 2, 280))
            for seed in range(3)
        ],
        [table(0, rows=3), table(1, rows=290)],  # most ranges have no row of the first
        [table(0, keys=None), table(1, rows=300)],  # keys of every row, in the second
        [table(0, rows=40), table(1, rows=30, shards=None)],  # rows that none has, shards of some rows only
        [table(0, keys=None, shards=None), table(1, keys=None, shards=None, fingerprint="size:300")],
    ],
    ids=["three", "suggestions", "sparse", "keys", "gaps", "plain"],
)
def test_the_file_is_that_of_the_whole_tables(
    tables: list[ScoreTable], sample: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "RANGE", 37)
    monkeypatch.setattr(parquet, "ROW_GROUP", 64)
    monkeypatch.setattr(agreement, "SAMPLE", sample)
    expected = merge(tables)
    file = merge_files(THREADS.map, saved(tmp_path, *tables), tmp_path / "out.parquet")
    assert (file.digest, len(file), file.num_blocks) == (expected.digest, len(expected), -(-len(expected) // 64))
    assert ScoreTable.load(tmp_path / "out.parquet") == expected


@pytest.mark.parametrize(
    ("tables", "error", "match"),
    [
        ([table(0)], ArgumentError, "at least two"),
        ([table(0), table(0)], ArgumentError, "twice"),
        ([table(0), table(1, num_rows=301)], MismatchError, "number 2 has 301"),
        ([table(0, keys=None), table(1), table(2, keys=np.arange(280))], MismatchError, "keys are large_string"),
        ([table(0, fingerprint="a"), table(1, fingerprint="b")], MismatchError, "fingerprint"),
        ([table(0), ScoreTable({"el2n": np.zeros(300)})], ArgumentError, "same scores"),
        ([table(0), table(1, keys=[f"other {row}" for row in range(280)])], MismatchError, "has the key"),
    ],
)
def test_files_that_are_refused(tables: Any, error: type[Exception], match: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=match):
        merge_files(THREADS.map, saved(tmp_path, *tables), tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
    with pytest.raises(error):
        merge(tables)


# -- the dataset -------------------------------------------------------------------------------------------------

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


def small(**options: Any) -> ScoreTable:
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
def test_what_differs_between_datasets_is_named(first: dict[str, Any], second: dict[str, Any], message: str) -> None:
    with pytest.raises(MismatchError) as caught:
        common_dataset([small(**first), small(**second)])
    assert str(caught.value).startswith("different datasets: ")
    assert message in str(caught.value)
    assert common_dataset([small(**first), small(**first)])["num_rows"] == 3


def test_every_file_is_compared_with_all_before_it() -> None:
    with pytest.raises(MismatchError, match="number 3 has the fingerprint b, an earlier one a"):
        common_dataset([small(), small(fingerprint="a"), small(fingerprint="b")])
    with pytest.raises(MismatchError, match="row 1 has the label 0 in number 3, 1 in an earlier one"):
        common_dataset([small(), small(labels=[-1, 1, -1]), small(labels=[0, 0, 0])])


def test_rows_are_compared_by_their_numbers() -> None:
    first = ScoreTable({"el2n": [0.1, 0.2]}, rows=[0, 2], num_rows=4, keys=["a", "c"])
    second = ScoreTable({"el2n": [0.1, 0.2]}, rows=[2, 3], num_rows=4, keys=["c", "d"])
    assert common_dataset([first, second])["keys"].to_pylist() == ["a", "c", "d"]


@pytest.mark.parametrize(
    "provenance",
    [{"merged_from": each} for each in ("a tool", 5, {"a": 1}, ["x", None], [{}], [{"digest": 1, "provenance": "b"}])],
    ids=str,
)
def test_provenance_of_another_form_is_carried_along(provenance: dict[str, Any], tmp_path: Path) -> None:
    tables = [ScoreTable({"el2n": [0.1, 0.2 + i]}, provenance=provenance) for i in range(2)]
    merged = merge(tables)
    assert merged.provenance["merged_from"][0]["provenance"] == provenance
    merge_files(THREADS.map, saved(tmp_path, *tables), tmp_path / "out")
    assert ScoreTable.load(tmp_path / "out") == merged


@pytest.mark.parametrize("wrong", [{"runs": runs} for runs in ("three", 0, -1, 1.5, True, None, [2], 2**40)], ids=str)
def test_protocols_that_cannot_be_merged_are_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    for protocol in (wrong, {"spread_of": ["el2n"]}):
        tables = [ScoreTable({"el2n": [0.1, 0.2 + i]}, protocols={"el2n": protocol}) for i in range(2)]
        with pytest.raises(ArgumentError, match=r"tables must .* in protocols\['el2n'\]"):
            merge(tables)
        with pytest.raises(ArgumentError, match=r"tables must .* in protocols\['el2n'\]"):
            merge_files(THREADS.map, saved(tmp_path, *tables), tmp_path / "out")
    for other in ("by hand", 3, [1], {"split_half": "high"}, {"split_half": None}):
        tables = [ScoreTable({"el2n": [0.1, 0.2 + i]}, protocols={"el2n": other}) for i in range(2)]
        assert merge(tables).protocols["el2n"]["runs"] == 2
