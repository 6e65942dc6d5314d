from __future__ import annotations

from pathlib import Path

import pytest

from prunesampler.cli.app import main
from prunesampler.cli.repack import byte_count
from prunesampler.errors import ArgumentError
from prunesampler.shards import ShardIndex, build_index, repack
from prunesampler.tables.score_table import Coreset
from tests.helpers.command_line import assert_refused, run_module
from tests.helpers.shardfiles import write_shards

ARGS = ["repack", "index.parquet", "coreset.parquet"]
OUT = "out/{shard:06d}.tar"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    index = build_index(write_shards(Path("shards"), [8, 8]), progress=False)
    index.save("index.parquet")
    Coreset(range(0, 16, 2), num_rows=16, fingerprint=index.fingerprint).save("coreset.parquet")
    return tmp_path


def test_the_shards_are_what_repack_gives(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--maxsize", "20kB", "--shuffle", "--seed", "3", "--workers", "2"]
    assert main([*ARGS, OUT, *options]) == 0
    expected = repack(
        "index.parquet", "coreset.parquet", "b/{shard:06d}.tar", maxsize=20_000, shuffle=True, seed=3, progress=False
    )
    names = [Path(path).name for path in expected.shards]
    assert len(names) > 1
    for name in names:
        assert Path("out", name).read_bytes() == Path("b", name).read_bytes()
    captured = capsys.readouterr()
    size = sum(Path("out", name).stat().st_size for name in names)
    assert captured.out.splitlines() == [
        f"8 samples in {len(names)} shards, {size:,} bytes",
        "written to out/000000.tar …, with index.parquet beside",
    ]
    assert "repacking" in captured.err  # the bar
    assert len(ShardIndex.load("out/index.parquet")) == 8


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([*ARGS, "out.tar"], "out must be like 'folder/{shard:06d}.tar'"),
        ([*ARGS, OUT, "--maxsize", "1XB"], "maxsize must be a number of bytes such as 1GB"),
        ([*ARGS, OUT, "--workers", "0"], "workers must be an int >= 1"),
        ([*ARGS, "shards/{shard}.tar", "--overwrite"], "out must be another folder than that of"),
        ([*ARGS, "full/{shard}.tar"], "full: 3.tar is there already: write to another folder, or overwrite"),
        (["repack", "none", "coreset.parquet", OUT], "No such file or directory: 'none'"),
        (["repack", "coreset.parquet", "coreset.parquet", OUT], "holds 'coreset', not 'shards'"),
        (["repack", "index.parquet", "other", OUT], "the coreset is of 9 rows, the index has 16"),
        (["repack", "index.parquet", "coreset.parquet"], "Missing argument"),
    ],
)
def test_misuse_is_one_line_and_writes_nothing(
    args: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Coreset([1], num_rows=9).save("other")
    Path("full").mkdir()
    Path("full/3.tar").touch()
    before = {path: path.is_file() and path.read_bytes() for path in here.rglob("*")}
    assert_refused(capsys, args, message)
    assert {path: path.is_file() and path.read_bytes() for path in here.rglob("*")} == before


def test_as_a_process() -> None:
    done = run_module(*ARGS, OUT)
    assert done.returncode == 0
    assert done.stdout.splitlines()[1] == "written to out/000000.tar, with index.parquet beside"
    done = run_module(*ARGS, OUT, "--rename")
    assert (done.returncode, done.stdout) == (2, "")
    done = run_module(*ARGS, OUT, "--rename", "--overwrite")
    assert done.returncode == 0
    assert ShardIndex.load("out/index.parquet").key(7) == "14"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("7", 7), ("1GB", 10**9), ("1gib", 2**30), ("0.5 MB", 500_000), ("2k", 2000), ("3TiB", 3 << 40), ("9B", 9)],
)
def test_sizes(text: str, expected: int) -> None:
    assert byte_count(text) == expected


@pytest.mark.parametrize("text", ["", "0", "0.1", "-1GB", "1e9", "GB", "1 G B", "1iB", "nan"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ArgumentError, match="maxsize must be a number of bytes"):
        byte_count(text)
