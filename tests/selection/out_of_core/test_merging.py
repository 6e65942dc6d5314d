from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunesampler.errors import ArgumentError, MismatchError
from prunesampler.selection.out_of_core import merging, reading
from prunesampler.tables import parquet as files
from prunesampler.tables.merge import merge
from prunesampler.tables.score_table import ScoreTable
from tests.helpers.blockfiles import THREADS, saved, table


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK", 37)


@pytest.mark.parametrize(
    "tables",
    [
        [table(0), table(1), table(2)],
        [table(0, rows=3), table(1, rows=290)],  # most blocks have no row of the first
        [table(0, keys=None), table(1, rows=300)],  # keys of every row, in the second
        [table(0, rows=40), table(1, rows=30, shards=None)],  # rows that none has, shards of some rows only
        [table(0, keys=None, shards=None), table(1, keys=None, shards=None, fingerprint="size:300")],
    ],
    ids=["three", "sparse", "keys", "gaps", "plain"],
)
def test_the_file_is_that_of_the_whole_tables(tables: list[ScoreTable], tmp_path: Path) -> None:
    expected = merge(tables)
    expected.save(tmp_path / "whole.parquet")
    header = merging.merge(THREADS, saved(tmp_path, *tables), tmp_path / "blocks.parquet")
    assert (header.digest, len(header), header.protocols) == (expected.digest, len(expected), expected.protocols)
    assert (tmp_path / "blocks.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_row_groups_are_those_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (files, merging):
        monkeypatch.setattr(module, "ROW_GROUP", 64)
    tables = [table(0), table(1)]
    merge(tables).save(tmp_path / "whole.parquet")
    merging.merge(THREADS, saved(tmp_path, *tables), tmp_path / "blocks.parquet")
    assert (tmp_path / "blocks.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


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
def test_what_merge_refuses(tables: list[ScoreTable], error: type[Exception], match: str, tmp_path: Path) -> None:
    paths = saved(tmp_path, *tables)
    with pytest.raises(error, match=match):
        merging.merge(THREADS, paths, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
    with pytest.raises(error):
        merge(tables)
