from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunesampler.errors import CorruptFileError, MismatchError
from prunesampler.tables import parquet
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.score_file import ScoreFile
from tests.helpers.blockfiles import saved, table


def test_blocks_and_ranges_of_a_file_are_those_of_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP", 64)
    whole = table(0)
    (path,) = saved(tmp_path, whole)
    file = ScoreFile.open(path)
    file.verify()
    assert (file.digest, len(file), file.num_rows, file.num_blocks) == (whole.digest, 280, 300, 5)
    assert file.column_names == whole.column_names
    for name in ("directions", "protocols", "provenance", "fingerprint"):
        assert getattr(file, name) == getattr(whole, name)
    assert list(file.directions) == list(whole.directions)
    ranges = [file.range((start, start + 50), file.column_names[1:]) for start in range(0, 300, 50)]
    blocks = [part for number in range(5) for part in file.block(number, file.column_names[1:], size=33)]
    for parts in (ranges, blocks):
        np.testing.assert_array_equal(np.concatenate([part.rows for part in parts if part]), whole.rows)
        for name in whole.directions:
            column = np.concatenate([part.column(name) for part in parts if part])
            np.testing.assert_array_equal(column, whole.column(name))
        assert [key for part in parts if part for key in part.keys or []] == whole.keys
    assert [part.rows.tolist()[0] >= start for start, part in zip(range(0, 300, 50), ranges, strict=True) if part]
    assert len(file.range((300, 400), ["el2n", "key", "learned"])) == 0


@pytest.mark.parametrize("at", [0.1, 0.5, 0.8])
def test_damage_is_found(tmp_path: Path, at: float) -> None:
    (path,) = saved(tmp_path, table(0))
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 8
    path.write_bytes(content)
    with pytest.raises(CorruptFileError):
        ScoreFile.open(path).verify()


def test_what_is_intact_but_not_a_table_of_scores_is_found(tmp_path: Path) -> None:
    whole = table(0)
    sound = {"row": whole.rows, "el2n": whole.scores["el2n"]}
    for metadata, columns in (
        ({}, {"row": whole.rows[::-1].copy()}),
        ({}, {"el2n": np.full(280, np.inf, np.float32)}),
        ({}, {"presentations": np.full(280, -1, np.int32)}),
        *(({name: 3}, {}) for name in ("directions", "protocols", "provenance", "fingerprint")),
        ({"num_rows": None}, {}),
        ({"directions": {"loss": "higher"}}, {}),
        ({}, {"el2n": None}),
    ):
        held = {name: column for name, column in (sound | columns).items() if column is not None}
        parquet.write_columns(tmp_path / "a.parquet", whole._metadata() | metadata, held)
        with pytest.raises(CorruptFileError):
            ScoreFile.open(tmp_path / "a.parquet").verify()


def test_other_files_are_refused(tmp_path: Path) -> None:
    Coreset([1], num_rows=2).save(tmp_path / "coreset.parquet")
    with pytest.raises(MismatchError, match="holds 'coreset', not 'scores'"):
        ScoreFile.open(tmp_path / "coreset.parquet")
    with pytest.raises(FileNotFoundError):
        ScoreFile.open(tmp_path / "none.parquet")
