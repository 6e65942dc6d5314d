from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunesampler.errors import ArgumentError
from prunesampler.shards import build_index
from prunesampler.shards.repack_plan import RepackPlan, header_sizes, is_shard_name, split_pattern
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


NO_PATTERNS = [
    *("", "a.tar", "{shard}", "{n}.tar", "{shard!r}.tar", "{shard:,}.tar", "{shard:06d}/", "out/a.tar", "out/{}.tar"),
    *("{shard}/a.tar", "{shard}/{shard}.tar", "out/{shard}{shard}.tar", "out/{shard:/>6}.tar", "out/{shard:x}.tar"),
    *("out/{shard.__class__}.tar", "out/.{shard}.tar", "out/{shard}.tar.gz"),
]


@pytest.mark.parametrize("out", NO_PATTERNS)
def test_other_patterns_are_refused(out: str) -> None:
    with pytest.raises(ArgumentError, match="out must be like"):
        split_pattern(out)


@given(
    st.integers(0, 10**8), st.sampled_from(["{shard}.tar", "{shard:06d}.tar", "a1-{shard:6}2.tar", "{shard:03}.tar"])
)
def test_a_shard_is_told_by_its_name(number: int, name: str) -> None:
    assert is_shard_name(name.format(shard=number), name)
    for other in ("index.parquet", "a1-.tar", "x.tar", "-1.tar", "٣.tar", name.format(shard=number) + "x"):
        assert not is_shard_name(other, name)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=300))
def test_headers_are_as_long_as_tarfile_makes_them(name: str) -> None:
    header = tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")
    assert header_sizes(np.array([len(name.encode())])).tolist() == [len(header)]


@pytest.mark.parametrize("rename", [False, True])
@pytest.mark.parametrize("maxsize", [1, 4096, 5000, 10**6])
def test_shards_are_filled_one_after_the_other(maxsize: int, rename: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = [
        (f"{'k' * int(rng.integers(1, 140))}{row}.{extension}", bytes(int(rng.integers(0, 1500))))
        for row in range(40)
        for extension in ("jpg", "Seg.png")[: 1 + row % 2]
    ]
    index = build_index(write_tar(tmp_path / "a.tar", files, format=1), label=None, progress=False)
    coreset = Coreset(range(0, 40, 3), num_rows=40)
    plan = RepackPlan(index, coreset, "{shard}.tar", maxsize=maxsize, rename=rename)
    shards: list[list[int]] = []
    for row in coreset.rows.tolist():
        size = 0
        for member in index.members(row):
            name = len(f"{row:02d}.{member.extension}" if rename else f"{index.key(row)}.{member.extension}")
            size += 512 + (512 + -(-(name + 1) // 512) * 512) * (name > 100) + -(-member.size // 512) * 512
        if not shards or sum(shards[-1]) + size + 1024 > maxsize:
            shards.append([])
        shards[-1].append(size)
    assert plan.sizes.tolist() == [sum(shard) + 1024 for shard in shards]
    assert np.diff(plan.first).tolist() == [len(shard) for shard in shards]
    assert len(plan) == len(shards)


def test_a_run_is_recognised_by_all_that_matters(tmp_path: Path) -> None:
    index = build_index(write_tar(tmp_path / "a.tar", [(f"{i}.txt", b"") for i in range(9)]), progress=False)
    kept, again = Coreset([1, 2], num_rows=9), Coreset([2, 1], num_rows=9, selection={"by": "hand"})
    options: dict[str, Any] = {"maxsize": 100, "shuffle": False, "seed": 0, "rename": False}
    changes = [{}, {"maxsize": 101}, {"shuffle": True}, {"seed": 1}, {"rename": True}]
    digests = [RepackPlan(index, kept, "{shard}.tar", **(options | change)).digest for change in changes]
    for rows, name in ((None, "{shard}.tar"), (Coreset([1, 3], num_rows=9), "{shard}.tar"), (kept, "a{shard}.tar")):
        digests.append(RepackPlan(index, rows, name, **options).digest)
    assert len(set(digests)) == len(digests)
    assert RepackPlan(index, again, "{shard}.tar", **options).digest == digests[0]
