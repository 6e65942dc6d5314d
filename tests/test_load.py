from __future__ import annotations

from pathlib import Path

import pytest

import prunesampler as ps
from prunesampler.errors import CorruptFileError, MismatchError
from prunesampler.tables.parquet import write_columns
from tests.helpers.command_line import score_table
from tests.helpers.shardfiles import LEFT_OPEN, write_shards

pytestmark = LEFT_OPEN


def test_any_file_is_read_as_what_it_is(tmp_path: Path) -> None:
    table = score_table()
    coreset = ps.select(table, keep=0.5)
    index = ps.shards.build_index(write_shards(tmp_path, [3]), label=None)
    files = {"scores": table, "coreset": coreset, "plan": ps.Schedule([[0, 2], [1]], num_rows=3), "index": index}
    for name, what in files.items():
        what.save(tmp_path / f"{name}.parquet")
        found = ps.load(tmp_path / f"{name}.parquet")
        assert type(found) is type(what)
        assert found.fingerprint == what.fingerprint
    assert ps.load(tmp_path) == table == ps.ScoreTable.load(tmp_path)
    assert ps.Coreset.load(tmp_path) == coreset


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    with pytest.raises(FileNotFoundError, match="No such file"):
        ps.load(tmp_path)
    write_columns(path, {"kind": "weights"}, {"row": ps.Coreset([1], num_rows=2).rows})
    with pytest.raises(MismatchError, match="holds 'weights', which this version does not know"):
        ps.load(path)
    with pytest.raises(FileNotFoundError, match=r"did you mean 'scores\.parquet'\?"):
        ps.load(tmp_path / "score.parquet")
    path.write_text("no Parquet")
    with pytest.raises(CorruptFileError):
        ps.load(path)
