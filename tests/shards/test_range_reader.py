from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunesampler.errors import ArgumentError, CorruptFileError, MismatchError
from prunesampler.shards import build_index, range_reader
from prunesampler.shards.range_reader import Locations, RangeReader, merged_ranges
from tests.helpers.shardfiles import write_shards, write_tar

WANTED = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 300), st.integers(0, 60)), max_size=30)


@given(WANTED, st.integers(0, 40), st.integers(1, 200))
def test_ranges_cover_what_is_wanted_and_no_two_could_be_joined(
    wanted: list[tuple[int, int, int]], gap: int, longest: int
) -> None:
    shards, firsts, sizes = (
        np.array(column, np.int64) for column in (zip(*wanted, strict=True) if wanted else [[]] * 3)
    )
    found = merged_ranges(shards, firsts, firsts + sizes, np.full(len(wanted), gap), longest)
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
    reader.samples(locations, np.array([52, 3, 1, 2, 40]))
    assert len(reads) == 3
    reader.close()


def test_a_shard_that_ends_early_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = build_index(write_shards(tmp_path, [3]), progress=False)
    os.truncate(tmp_path / "000000.tar", 2000)
    for _ in range(2):
        with pytest.raises(MismatchError, match=r"has changed since it was indexed, from .* to 2000 bytes"):
            RangeReader(index, 2).samples(Locations(index), np.array([2]))
    monkeypatch.setattr(range_reader, "check_size", lambda *args: None)
    with pytest.raises(CorruptFileError, match="is cut short"):
        RangeReader(index, 2).samples(Locations(index), np.array([2]))


def test_few_files_are_open_and_none_is_opened_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_shards(tmp_path, [1, 1, 1])
    index, opened, system_open = build_index(paths, progress=False), [], os.open

    def noted(path: str, flags: int) -> int:
        opened.append((paths.index(path), system_open(path, flags)))
        return opened[-1][1]

    monkeypatch.setattr(os, "open", noted)
    reader, locations = RangeReader(index, 2), Locations(index)
    for number in (0, 1, 0, 2, 0, 1):
        assert reader.samples(locations, np.array([number]))[0]["__url__"] == paths[number]
    assert [number for number, _ in opened] == [0, 1, 2, 1]
    reader.close()
    for _, descriptor in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


FILES = [("a.jpg", b"1"), ("a.CLS", b"22"), ("b.jpg", b"333"), ("c.txt", b"4444"), ("c.jpg", b""), ("c.cls", b"6")]


@pytest.mark.parametrize("rows", [None, [0, 3], [1], [2, 5]])
def test_locations_are_those_of_the_index(rows: list[int] | None, tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / f"{shard}.tar", FILES) for shard in range(2)]
    index = build_index(paths, label=None, repeated_keys=True, progress=False)
    held = Locations(index, None if rows is None else np.array(rows))
    kept = list(range(6)) if rows is None else rows
    assert held.rows.tolist() == kept
    assert held.places(np.array(kept[::-1])).tolist() == list(range(len(kept)))[::-1]
    for place, row in enumerate(kept):
        assert held.shards[place] == index.shard_of(row)
        assert held.keys[place].as_py() == index.key(row)
        _, files = held.files_of(np.array([place]))
        found = [(held.extensions[held.codes[file]], held.offsets[file], held.sizes[file]) for file in files]
        assert found == index.members(row)
    for row in set(range(6)) - set(kept):
        with pytest.raises(ArgumentError, match=f"row must be of the coreset.*got {row}"):
            held.places(np.array([row, kept[0]]))
