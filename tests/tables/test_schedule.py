from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import prunesampler as ps
from prunesampler.tables.parquet import write_columns

EPOCHS = st.lists(st.lists(st.integers(0, 30), min_size=1, unique=True), min_size=1, max_size=5)


@given(EPOCHS)
def test_what_is_saved_is_loaded_in_its_order(epochs: Any) -> None:
    schedule = ps.Schedule(epochs, num_rows=31, fingerprint="f")
    with tempfile.TemporaryDirectory() as folder:
        schedule.save(f"{folder}/s.parquet")
        loaded = ps.Schedule.load(f"{folder}/s.parquet", fingerprint="f")
        table = pq.read_table(f"{folder}/s.parquet")
    assert [rows.tolist() for rows in loaded.epochs] == epochs
    assert loaded == schedule
    pairs = [(epoch, row) for epoch, rows in enumerate(epochs) for row in rows]
    assert list(zip(table["epoch"].to_pylist(), table["row"].to_pylist(), strict=True)) == pairs


@pytest.mark.parametrize("epochs", [[], [[]], [[0], []], [[0, 0]], [[3]], [[-1]], [[0.5]]])
def test_epochs_that_cannot_be_are_refused(epochs: Any) -> None:
    with pytest.raises(ps.ArgumentError, match=r"^epochs must"):
        ps.Schedule(epochs, num_rows=3)


def test_another_kind_and_another_dataset_are_refused(tmp_path: Path) -> None:
    ps.Coreset([0], num_rows=2).save(tmp_path / "c.parquet")
    ps.Schedule([[0]], num_rows=2, fingerprint="a").save(tmp_path / "s.parquet")
    with pytest.raises(ps.MismatchError):
        ps.Schedule.load(tmp_path / "c.parquet")
    with pytest.raises(ps.MismatchError):
        ps.Schedule.load(tmp_path / "s.parquet", fingerprint="b")


@pytest.mark.parametrize("claimed", [1, 3, 2**40, -2, "2"])
def test_a_file_that_says_another_number_of_epochs_is_refused(claimed: Any, tmp_path: Path) -> None:
    schedule = ps.Schedule([[0, 1], [1]], num_rows=2)
    metadata, columns = schedule._metadata(), schedule._columns()
    write_columns(tmp_path / "s.parquet", {**metadata, "num_epochs": claimed}, columns)
    with pytest.raises(ps.CorruptFileError):
        ps.Schedule.load(tmp_path / "s.parquet")
