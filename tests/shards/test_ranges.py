from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunesampler.errors import CorruptFileError
from prunesampler.shards import build_index, handles
from prunesampler.shards.locations import Locations
from prunesampler.shards.ranges import RangeReader, merged_ranges
from tests.helpers.shardfiles import write_shards

WANTED = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 300), st.integers(0, 60)), max_size=30)


@given(WANTED, st.integers(0, 40), st.integers(1, 200))
def test_ranges_cover_what_is_wanted_and_nothing_could_be_joined(
    wanted: list[tuple[int, int, int]], gap: int, longest: int
) -> None:
    shards, firsts, sizes = (
        np.array(column, np.int64) for column in (zip(*wanted, strict=True) if wanted else [[]] * 3)
    )
    found = merged_ranges(shards, firsts, firsts + sizes, gap, longest)
    assert sorted(place for each in found for place in each.wanted) == list(range(len(wanted)))
    for each in found:
        mine = [wanted[place] for place in each.wanted]
        assert {shard for shard, _, _ in mine} == {each.shard}
        assert min(first for _, first, _ in mine) == each.first
        assert max(first + size for _, first, size in mine) == each.end
        assert len(mine) == 1 or each.end - each.first <= longest
    for left, right in itertools.pairwise(found):
        assert (left.shard, left.first) <= (right.shard, right.first)
        if left.shard == right.shard and right.first <= left.end + gap:
            first_of_right = wanted[right.wanted[0]]
            assert max(left.end, first_of_right[1] + first_of_right[2]) - left.first > longest


def test_neighbours_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = build_index(write_shards(tmp_path, [50, 3]), progress=False)
    locations = Locations(index)
    reads = []

    def pread(file: int, count: int, offset: int) -> bytes:
        reads.append((count, offset))
        return real(file, count, offset)

    real = os.pread
    monkeypatch.setattr(os, "pread", pread)
    reader = RangeReader(index, 2)
    reader.fetch(locations, np.array([52, 3, 1, 2, 40]))
    assert len(reads) == 3
    reader.close()


def test_a_shard_that_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = build_index(write_shards(tmp_path, [3]), progress=False)
    monkeypatch.setattr(handles, "check_size", lambda *args: None)
    os.truncate(tmp_path / "000000.tar", 2000)
    with pytest.raises(CorruptFileError, match="is cut short"):
        RangeReader(index, 2).fetch(Locations(index), np.array([2]))
