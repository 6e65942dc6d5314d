from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunesampler.errors import ArgumentError
from prunesampler.shards import build_index
from prunesampler.shards.repack_plan import Layout, shard_number, split_pattern
from prunesampler.tables.score_table import Coreset
from tests.helpers.shardfiles import write_tar


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ("a/b/{shard}.tar", ("a/b", "{shard}.tar")),
        ("{shard:06d}.tar", (".", "{shard:06d}.tar")),
        ("/{shard:6}.tar", ("/", "{shard:6}.tar")),
        ("memory://x/train-{shard:03d}-b.tar", ("memory://x", "train-{shard:03d}-b.tar")),
        ("memory://{shard:d}.tar", ("memory://", "{shard:d}.tar")),
    ],
)
def test_patterns(out: str, expected: tuple[str, str]) -> None:
    assert split_pattern(out) == expected


@pytest.mark.parametrize("out", ["", "a.tar", "{shard}", "{n}.tar", "{shard!r}.tar", "{shard:,}.tar", "{shard:06d}/"])
def test_other_patterns_are_refused(out: str) -> None:
    with pytest.raises(ArgumentError, match="out must be like"):
        split_pattern(out)


@given(
    st.integers(0, 10**8), st.sampled_from(["{shard}.tar", "{shard:06d}.tar", "a1-{shard:6}2.tar", "{shard:03}.tar"])
)
def test_numbers_are_found_in_names(number: int, name: str) -> None:
    assert shard_number(name, name.format(shard=number)) == number
    for other in ("index.parquet", "a1-.tar", "x.tar", "-1.tar", "٣.tar", name.format(shard=number) + "x"):
        assert shard_number(name, other) is None


@pytest.mark.parametrize("rename", [False, True])
@pytest.mark.parametrize("maxsize", [1, 4096, 5000, 10**6])
def test_sizes_and_shards_by_counting(maxsize: int, rename: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = [
        (f"{'k' * int(rng.integers(1, 140))}{row}.{extension}", bytes(int(rng.integers(0, 1500))))
        for row in range(40)
        for extension in ("jpg", "Seg.png")[: 1 + row % 2]
    ]
    index = build_index(write_tar(tmp_path / "a.tar", files, format=1), label=None, progress=False)
    coreset = Coreset(range(0, 40, 3), num_rows=40)
    layout = Layout(index, coreset, maxsize, False, 0, rename)
    shards: list[list[int]] = []
    for row in coreset.rows.tolist():
        size = 0
        for member in index.members(row):
            name = len(f"{row:02d}.{member.extension}" if rename else f"{index.key(row)}.{member.extension}")
            size += 512 + (512 + -(-(name + 1) // 512) * 512) * (name > 100) + -(-member.size // 512) * 512
        if not shards or sum(shards[-1]) + size + 1024 > maxsize:
            shards.append([])
        shards[-1].append(size)
    assert layout.sizes.tolist() == [sum(shard) + 1024 for shard in shards]
    assert np.diff(layout.first).tolist() == [len(shard) for shard in shards]
    assert len(layout) == len(shards)
    assert layout.content_sizes.tolist() == [sum(m.size for m in index.members(row)) for row in coreset.rows.tolist()]


def test_a_run_is_recognised_by_all_that_matters(tmp_path: Path) -> None:
    index = build_index(write_tar(tmp_path / "a.tar", [(f"{i}.txt", b"") for i in range(9)]), progress=False)
    kept = Coreset([1, 2], num_rows=9)
    first = (index, kept, 100, False, 0, False)
    changed = [
        (index, None, 100, False, 0, False),
        (index, Coreset([1, 3], num_rows=9), 100, False, 0, False),
        (index, kept, 101, False, 0, False),
        (index, kept, 100, True, 0, False),
        (index, kept, 100, False, 1, False),
        (index, kept, 100, False, 0, True),
    ]
    digests = [Layout(*each).digest("a") for each in (first, *changed)] + [Layout(*first).digest("b")]
    assert len(set(digests)) == len(digests)
    again = Layout(index, Coreset([2, 1], num_rows=9, selection={"by": "hand"}), *first[2:])
    assert again.digest("a") == digests[0]
