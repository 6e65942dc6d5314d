from __future__ import annotations

from pathlib import Path

import pytest

from prunesampler.errors import CorruptFileError
from prunesampler.shards import build_index
from prunesampler.shards.repack_plan import Layout
from prunesampler.shards.verify import verified
from prunesampler.tables.score_table import Coreset
from tests.helpers.shardfiles import write_tar

FILES = [("a.txt", b"one"), ("b.txt", b"two"), ("b.cls", b"4"), ("c.txt", b"three"), ("d.txt", b"")]


def test_what_was_planned_and_what_was_not(tmp_path: Path) -> None:
    index = build_index(write_tar(tmp_path / "a.tar", FILES), progress=False)
    layout = Layout(index, Coreset([0, 1, 2], num_rows=4), 10**6, False, 0, False)
    shard, table = verified(layout, 0, write_tar(tmp_path / "new.tar", FILES[:4]))
    assert (shard.rows, table["label"].to_pylist()) == (3, [None, 4, None])
    for files in (
        FILES,  # one too many
        FILES[:3],  # one too few
        [*FILES[:2], ("b.cl", b"4"), FILES[3]],  # another extension
        [*FILES[:2], FILES[3]],  # a file of a sample is missing
        [("x.txt", b"one"), *FILES[1:4]],  # another key
        [("a.txt", b"once"), *FILES[1:4]],  # another size
        [FILES[0], FILES[2], FILES[1], FILES[3]],  # another order
    ):
        with pytest.raises(CorruptFileError, match=r"new\.tar does not hold what was written"):
            verified(layout, 0, write_tar(tmp_path / "new.tar", files))
