"""In memory and by row groups of a file: the same rows, and those of plain Python."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from prunesampler.analysis.audit import audit
from prunesampler.errors import ArgumentError, CorruptFileError, PruneSamplerWarning
from prunesampler.selection import candidates, radix_select
from prunesampler.selection.choose import Classes
from prunesampler.selection.select import Selection, select_file
from prunesampler.tables import parquet
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.score_table import ScoreTable
from tests.helpers.blockfiles import THREADS, saved, table
from tests.helpers.plain_selection import PlainSelection

Selected = tuple[Coreset, Classes | None]
NAMES = ("method", "keep", "by", "class_balanced", "min_per_class", "unscored")
VALUES = (
    ("stratified", "top", "bottom", "window", "random"),
    (0.5, 7, 0.93),
    ("el2n", "margin", "forgetting", "nothing"),
    (False, True),
    (None, 3),
    ("keep", "drop"),
)
EACH = [dict(zip(NAMES, each, strict=True)) for each in itertools.product(*VALUES)]
OPTIONS: list[dict[str, Any]] = [
    *({**each, "seed": number % 3, "strata": (50, 3)[number % 2]} for number, each in enumerate(EACH[::7])),
    *({"keep": 0.5, "method": "window", "offset": offset} for offset in (0.29, 20, 100)),
    *({"keep": 0.3, "class_balanced": True, "offset": offset} for offset in (0.0, 40)),
]
AUTO = [{"keep": "auto", "threshold": 0.3, "min_per_class": floor} for floor in (None, 4, 40)]


@pytest.fixture(params=["memory", "file"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[ScoreTable, Selection], Selected]:
    """A selection from one source."""
    if request.param == "memory":
        return lambda whole, selection: (selection(whole), None)

    def from_file(whole: ScoreTable, selection: Selection) -> Selected:
        (path,) = saved(tmp_path, whole)
        out = tmp_path / "coreset.parquet"
        out.unlink(missing_ok=True)
        try:
            _, classes = select_file(THREADS.map, path, out, selection)
        except ArgumentError:
            assert not out.exists()
            raise
        return Coreset.load(out), classes

    return from_file


def test_every_source_keeps_the_rows_of_plain_python(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP", 97)
    monkeypatch.setattr(candidates, "_SLICE", 31)
    whole, seen = table(0), {"kept": 0, "refused": 0}
    for number, options in enumerate(OPTIONS):
        monkeypatch.setattr(radix_select, "HELD", (-1000, 20, 10**6)[number % 3])
        expected = PlainSelection(whole, **options).select()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PruneSamplerWarning)
            if isinstance(expected, str):
                with pytest.raises(ArgumentError) as caught:
                    source(whole, Selection(**options))
                assert caught.value.argument == expected, options
                seen["refused"] += 1
                continue
            coreset, classes = source(whole, Selection(**options))
            if number % 9 == 0:
                assert coreset == Selection(**options)(whole)  # keys, shards and all that is said of them
        assert set(coreset.rows.tolist()) == expected, options
        check_counts(whole, coreset, classes)
        seen["kept"] += 1
    assert seen["kept"] >= 3
    assert seen["refused"]


@pytest.mark.parametrize("options", AUTO)
@pytest.mark.parametrize("source", ["memory", "file"], indirect=True)
def test_auto_is_the_same_from_every_source(source: Any, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP", 97)
    whole = table(0)
    coreset, classes = source(whole, Selection(**options))
    assert coreset == Selection(**options)(whole)
    check_counts(whole, coreset, classes)


@pytest.mark.parametrize("floor", [None, 30])
@pytest.mark.parametrize("source", ["memory", "file", "ray"], indirect=True)
def test_clean_leaves_out_what_the_audit_flags_from_every_source(
    source: Any, floor: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP", 97)
    rng = np.random.default_rng(0)
    answers = {"suggested_label": rng.integers(-1, 6, 280), "signed_confidence": rng.uniform(-1, 1, 280)}
    whole = table(0, **answers)
    coreset, classes = source(whole, Selection("clean", min_per_class=floor))
    issues = audit(whole, by="el2n")
    left_out = np.setdiff1d(whole.rows, coreset.rows)
    check_counts(whole, coreset, classes)
    assert coreset.selection["wrong"] == len(issues) > 10
    assert coreset.selection["noise_rate"] == [issues.noise_rate.rate, issues.noise_rate.low, issues.noise_rate.high]
    if floor is None:
        assert left_out.tolist() == sorted(issues.rows)
        return
    assert set(left_out) < set(issues.rows.tolist())
    probability = dict(zip(issues.rows.tolist(), issues.probabilities, strict=True))
    for label in (0, 1, 2, 5):
        of_class = whole.rows[whole.labels == label]
        gone = [probability[row] for row in of_class if row in left_out]
        stayed = [probability[row] for row in of_class if row in probability and row not in left_out]
        assert len(of_class) - len(gone) >= min(floor, len(of_class))
        assert not stayed or len(of_class) - len(gone) == min(floor, len(of_class))
        assert max(stayed, default=0) <= min(gone, default=1)


def check_counts(whole: ScoreTable, coreset: Coreset, classes: Classes | None) -> None:
    assert whole.labels is not None
    kept = np.isin(whole.rows, coreset.rows)
    said, score = coreset.selection, whole.scores.get(coreset.selection["options"]["by"])
    assert (said["eligible"], said["kept"]) == (len(whole), len(coreset))
    if score is not None and said["options"]["method"] != "random":
        assert said["unscored"] == np.isnan(score[kept]).sum()
        found = score[kept & np.isfinite(score)]
        assert said["threshold"] == ([found.min(), found.max()] if len(found) else None)
    labels = np.unique(whole.labels).tolist()
    counts = {each: (int((whole.labels == each).sum()), int((whole.labels[kept] == each).sum())) for each in labels}
    assert classes is None or classes == counts


@pytest.mark.parametrize(
    "options",
    [{"keep": 0.5, "by": "loss"}, {"keep": "auto", "threshold": 1e-9, "by": "margin"}, {"keep": 301}],
)
@pytest.mark.parametrize("source", ["memory", "file"], indirect=True)
def test_every_source_refuses_the_same(source: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError) as raised:
        source(table(0), Selection(**options))
    with pytest.raises(ArgumentError) as expected:
        Selection(**options)(table(0))
    assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize("source", ["memory", "file"], indirect=True)
def test_missing_labels_are_refused_and_missing_scores_warned_about(source: Any) -> None:
    nothing = ScoreTable({"el2n": [float("nan")] * 4})
    with pytest.raises(ArgumentError, match="class_balanced needs a table with labels"):
        source(nothing, Selection(0.5, class_balanced=True))
    with pytest.warns(PruneSamplerWarning, match="none of the 2 kept rows has a score"):
        source(nothing, Selection(0.5))


@pytest.mark.parametrize("name", ["presentations", "el2n"])
def test_an_edited_file_is_refused_and_nothing_written(name: str, tmp_path: Path) -> None:
    (path,) = saved(tmp_path, table(0))
    whole = pq.read_table(path)
    edited = pc.multiply(whole[name], 2).cast(whole.schema.field(name).type)
    pq.write_table(whole.set_column(whole.schema.get_field_index(name), name, edited), path)
    for selection in (Selection(0.5), Selection(0.5, by="loss")):
        with pytest.raises(CorruptFileError, match="edited"):
            select_file(THREADS.map, path, tmp_path / "out.parquet", selection)
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name]


# -- the engine ---------------------------------------------------------------------------------------------------


def test_results_come_in_order_and_not_far_ahead() -> None:
    begun: list[int] = []

    def square(number: int) -> int:
        begun.append(number)
        return number * number

    results = THREADS.map(square, range(100))
    assert next(results) == 0
    assert len(begun) < 20
    assert list(results) == [number * number for number in range(1, 100)]
    assert sorted(begun) == list(range(100))
    assert list(THREADS.map(square, [])) == []


def test_work_begins_before_anybody_reads() -> None:
    begun: list[Any] = []
    results = THREADS.map(begun.append, [1])
    THREADS.__enter__()._pool.submit(int).result()  # whatever was handed in before is begun by now
    assert begun == [1]
    assert list(results) == [None]


def test_what_a_thread_raises_is_raised_where_it_is_read() -> None:
    results = THREADS.map(lambda number: 1 // number, [1, 0])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
