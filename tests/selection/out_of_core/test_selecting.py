from __future__ import annotations

import itertools
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from prunesampler.errors import ArgumentError, CorruptFileError, PruneSamplerWarning
from prunesampler.selection.out_of_core import cuts, merging, plan, selecting
from prunesampler.selection.select import Selection
from prunesampler.tables import parquet as files
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.score_table import ScoreTable
from tests.helpers.blockfiles import THREADS, saved, table

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
    *({**each, "seed": number % 3, "strata": (50, 3)[number % 2]} for number, each in enumerate(EACH[::11])),
    *({"keep": 0.5, "method": "window", "offset": offset} for offset in (0.29, 20, 100)),
    *({"keep": 0.3, "class_balanced": True, "offset": offset} for offset in (0.0, 40)),
    *({"keep": "auto", "threshold": 0.3, "min_per_class": floor} for floor in (None, 4, 40)),
]


def outcome(selection: Selection, whole: ScoreTable) -> tuple[Coreset | None, str | None]:
    try:
        return selection(whole), None
    except ArgumentError as error:
        return None, str(error)


@pytest.mark.parametrize("held", [-1000, 20, 10**6])
def test_the_file_is_that_of_the_whole_table(held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (files, merging):
        monkeypatch.setattr(module, "ROW_GROUP", 97)
    monkeypatch.setattr(plan, "_SLICE", 31)
    monkeypatch.setattr(cuts, "HELD", held)
    whole = table(0)
    (path,) = saved(tmp_path, whole)
    selected = refused = 0
    for options in OPTIONS[(-1000, 20, 10**6).index(held) :: 3]:
        selection = Selection(**options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PruneSamplerWarning)
            coreset, error = outcome(selection, whole)
            if error is not None:
                with pytest.raises(ArgumentError, match=f"^{re.escape(error)}$"):
                    selecting.select(THREADS, path, tmp_path / "none.parquet", selection)
                refused += 1
                continue
            assert coreset is not None
            coreset.save(tmp_path / "whole.parquet")
            header, classes = selecting.select(THREADS, path, tmp_path / "blocks.parquet", selection)
        assert whole.labels is not None
        kept = np.isin(whole.rows, coreset.rows)
        assert classes == {
            label: (int((whole.labels == label).sum()), int((whole.labels[kept] == label).sum()))
            for label in (-1, 0, 1, 2, 5)
        }
        assert header.metadata["selection"] == coreset.selection, options
        assert (tmp_path / "blocks.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes(), options
        selected += 1
    assert selected > 5
    assert refused > 0
    assert not (tmp_path / "none.parquet").exists()


@pytest.mark.parametrize(
    "options",
    [{"keep": 0.5, "by": "loss"}, {"keep": "auto", "threshold": 1e-9, "by": "margin"}, {"keep": 301}],
)
def test_what_select_refuses(options: dict[str, Any], tmp_path: Path) -> None:
    whole = table(0)
    (path,) = saved(tmp_path, whole)
    with pytest.raises(ArgumentError) as raised:
        selecting.select(THREADS, path, tmp_path / "out.parquet", Selection(**options))
    with pytest.raises(ArgumentError) as expected:
        Selection(**options)(whole)
    assert raised.value.argument == expected.value.argument


def test_labels_that_are_missing_and_scores_that_none_has(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, ScoreTable({"el2n": [float("nan")] * 4}))
    with pytest.raises(ArgumentError, match="class_balanced needs a table with labels"):
        selecting.select(THREADS, path, tmp_path / "out.parquet", Selection(0.5, class_balanced=True))
    with pytest.warns(PruneSamplerWarning, match="none of the 2 kept rows has a score"):
        selecting.select(THREADS, path, tmp_path / "out.parquet", Selection(0.5))


@pytest.mark.parametrize("name", ["presentations", "el2n"])
def test_an_edited_file_is_refused_and_nothing_written(name: str, tmp_path: Path) -> None:
    (path,) = saved(tmp_path, table(0))
    whole = pq.read_table(path)
    edited = pc.multiply(whole[name], 2).cast(whole.schema.field(name).type)
    pq.write_table(whole.set_column(whole.schema.get_field_index(name), name, edited), path)
    for selection in (Selection(0.5), Selection(0.5, by="loss")):
        with pytest.raises(CorruptFileError, match="edited"):
            selecting.select(THREADS, path, tmp_path / "out.parquet", selection)
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name]
