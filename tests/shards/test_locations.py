from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunesampler.errors import ArgumentError
from prunesampler.shards import build_index
from prunesampler.shards.locations import Locations
from tests.helpers.shardfiles import write_tar

FILES = [("a.jpg", b"1"), ("a.CLS", b"22"), ("b.jpg", b"333"), ("c.txt", b"4444"), ("c.jpg", b""), ("c.cls", b"6")]


@pytest.mark.parametrize("rows", [None, [0, 3], [1], [2, 5]])
def test_they_are_what_the_index_says(rows: list[int] | None, tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / f"{shard}.tar", FILES) for shard in range(2)]
    index = build_index(paths, label=None, repeated_keys=True, progress=False)
    held = Locations(index, None if rows is None else np.array(rows))
    kept = list(range(6)) if rows is None else rows
    assert held.rows.tolist() == kept
    assert held.places(np.array(kept[::-1])).tolist() == list(range(len(kept)))[::-1]
    for place, row in enumerate(kept):
        files = held.files(place)
        assert held.shards[place] == index.shard_of(row)
        assert held.keys[place].as_py() == index.key(row)
        expected = [(f"{index.key(row)}.{each.extension}", each.offset, each.size) for each in index.members(row)]
        assert [(held.name(place, file), held.offsets[file], held.sizes[file]) for file in files] == expected
    if rows is not None:
        for row in set(range(6)) - set(rows):
            with pytest.raises(ArgumentError, match=f"row must be of the coreset.*got {row}"):
                held.places(np.array([row, kept[0]]))
