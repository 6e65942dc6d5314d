from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from prunesampler.errors import CorruptFileError, MismatchError
from prunesampler.selection.out_of_core import reading
from prunesampler.tables import parquet as files
from prunesampler.tables.coreset import Coreset
from tests.helpers.blockfiles import THREADS, saved, table


def test_parts_of_a_file_are_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ROW_GROUP", 64)
    monkeypatch.setattr(reading, "BLOCK", 50)
    whole = table(0)
    (path,) = saved(tmp_path, whole)
    assert pq.ParquetFile(path).num_row_groups == 5
    (header,) = reading.headers(THREADS, [path])
    assert (header.digest, len(header), header.num_rows) == (whole.digest, 280, 300)
    assert (header.directions, header.protocols, header.provenance) == (
        whole.directions,
        whole.protocols,
        whole.provenance,
    )
    assert header.learned
    assert header.labels
    rows = []
    for start, end in reading.ranges(300):
        part = reading.table_of(header, (start, end))
        assert part is not None
        assert part.rows.tolist() == [row for row in whole.rows.tolist() if start <= row < end]
        at = np.searchsorted(whole.rows, part.rows)
        np.testing.assert_array_equal(part.column("forgetting"), whole.column("forgetting")[at])
        np.testing.assert_array_equal(part.scores["el2n"], whole.scores["el2n"][at])
        assert part.keys == [whole.keys[place] for place in at]  # type: ignore[index]
        rows += part.rows.tolist()
    assert rows == whole.rows.tolist()
    assert reading.table_of(header, (299, 299)) is None


@pytest.mark.parametrize("at", [0.1, 0.5, 0.8])
def test_damage_is_found(tmp_path: Path, at: float) -> None:
    (path,) = saved(tmp_path, table(0))
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 8
    path.write_bytes(content)
    with pytest.raises(CorruptFileError):
        reading.headers(THREADS, [path])


def test_rows_out_of_order_and_foreign_values_are_found(tmp_path: Path) -> None:
    whole = table(0)
    for columns in (
        {"row": whole.rows[::-1].copy(), "el2n": whole.scores["el2n"]},
        {"row": whole.rows, "el2n": np.full(280, np.inf, np.float32)},
    ):
        files.write_columns(tmp_path / "a.parquet", whole._metadata(), columns)
        with pytest.raises(CorruptFileError):
            reading.headers(THREADS, [tmp_path / "a.parquet"])


def test_other_files(tmp_path: Path) -> None:
    Coreset([1], num_rows=2).save(tmp_path / "coreset.parquet")
    with pytest.raises(MismatchError, match="holds 'coreset', not 'scores'"):
        reading.headers(THREADS, [tmp_path / "coreset.parquet"])
    with pytest.raises(FileNotFoundError):
        reading.headers(THREADS, [tmp_path / "none.parquet"])
