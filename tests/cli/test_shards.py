from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from prunesampler.cli.app import main
from prunesampler.shards import ShardIndex, build_index, repack
from prunesampler.tables.score_table import Coreset
from tests.helpers.command_line import assert_refused
from tests.helpers.shardfiles import write_shards, write_tar

ARGS = ["repack", "index.parquet", "coreset.parquet"]
OUT = "out/{shard:06d}.tar"


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> list[str]:
    assert main(["index", *arguments, "-o", "index.parquet", "--quiet"]) == code
    captured = capsys.readouterr()
    found, other = (captured.err, captured.out) if code else (captured.out, captured.err)
    assert other == ""
    return found.splitlines()


def test_shards_become_an_index_that_grows(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(here / "shards", [20, 13])
    found = run(capsys, "shards/{000000..000001}.tar")
    assert [line.split() for line in found[2:3]] == [["new", "2", "33", "0", "0"]]
    assert found[3:] == ["labels: 33 of 33, 10 classes", "33 rows, written to index.parquet"]
    expected = build_index("shards/{000000..000001}.tar", progress=False)
    assert ShardIndex.load("index.parquet").fingerprint == expected.fingerprint

    (path,) = write_shards(here / "shards", [2], first_shard=2, first_key=33)
    Path(path).write_bytes(gzip.compress(Path(path).read_bytes()))
    write_tar(here / "shards/0.tar", [("README", b"")])
    found = run(capsys, "shards/*.tar")
    assert [line.split() for line in found[2:4]] == [["known", "2", "33", "0", "0"], ["new", "2", "2", "0", "1"]]
    assert found[4:] == [
        "labels: 35 of 35, 10 classes",
        "without a sample: shards/0.tar",
        "35 rows, written to index.parquet",
    ]
    index = ShardIndex.load("index.parquet")
    assert index.shards == [f"shards/{name}.tar" for name in ("000000", "000001", "0", "000002")]

    before = Path("index.parquet").stat().st_mtime_ns
    assert run(capsys, "shards/*.tar") == ["nothing new: 35 samples in 4 shards"]
    assert Path("index.parquet").stat().st_mtime_ns == before
    assert run(capsys, "shards/*.tar", "--rebuild")[-1] == "35 rows, written to index.parquet"
    assert ShardIndex.load("index.parquet").shards[0] == "shards/0.tar"


def test_labels(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(here / "a.tar", [("a.cls", b"7"), ("a.fine", b"3"), ("b.cls", b"cat"), ("c.fine", b"4")])
    (line,) = run(capsys, "a.tar", code=2)
    assert line.startswith("prunesampler: a.tar: the label of sample 'b' must be an int in [0, 2**31), got b'cat'")
    assert run(capsys, "a.tar", "--label", "fine")[-2] == "labels: 2 of 3, 2 classes"
    assert run(capsys, "a.tar", "--label", "", "--rebuild")[-2] == "labels: 0 of 3"


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        (["none.tar"], "No such file or directory: 'none.tar'"),
        (["*.tar.gz"], "urls must match at least one file, got '*.tar.gz'"),
        (["a.tar", "a.tar"], "urls must name each shard once, got 'a.tar'"),
        (["cut.tar"], "cut.tar is cut short: it has 1700 bytes"),
        (["a.tar", "b.tar"], "key '000000' is in both a.tar and b.tar: rename samples, or allow repeated keys"),
        (["apart.tar"], "apart.tar: the files of sample 'a' are not neighbours"),
    ],
)
def test_refusals(here: Path, capsys: pytest.CaptureFixture[str], shards: list[str], message: str) -> None:
    for name in ("a.tar", "b.tar"):
        Path(write_shards(here, [2])[0]).rename(name)
    Path("cut.tar").write_bytes(Path("a.tar").read_bytes()[:1700])
    write_tar(here / "apart.tar", [("a.jpg", b""), ("b.jpg", b""), ("a.cls", b"1")])
    before = sorted(here.iterdir())
    (line,) = run(capsys, *shards, code=2)
    assert line.startswith("prunesampler: ")
    assert message in line
    assert sorted(here.iterdir()) == before


def test_repeated_keys(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(here / "a", [2])
    write_shards(here / "b", [2])
    assert run(capsys, "{a,b}/000000.tar", "--repeated-keys")[-1] == "4 rows, written to index.parquet"


def test_the_output_is_neither_a_shard_nor_another_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(here, [2])
    for rebuild in ([], ["--rebuild"]):
        assert main(["index", "000000.tar", "-o", "000000.tar", "--quiet", *rebuild]) == 2
    Coreset([1], num_rows=2).save("index.parquet")
    assert "holds 'coreset', not 'shards'" in run(capsys, "000000.tar", code=2)[-1]
    assert main(["index", "000000.tar", "-o", "none/index.parquet"]) == 2
    assert Path("000000.tar").stat().st_size > 2000


def test_a_damaged_index_is_refused_until_it_is_rebuilt(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(here, [2])
    Path("index.parquet").write_bytes(b"PAR1")
    assert "is damaged or cut short" in run(capsys, "000000.tar", code=2)[0]
    assert run(capsys, "000000.tar", "--rebuild")[-1] == "2 rows, written to index.parquet"


def test_progress(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(here, [2])
    assert main(["index", "000000.tar", "-o", "index.parquet"]) == 0
    assert "1/1" in capsys.readouterr().err


@pytest.fixture
def indexed(here: Path) -> Path:
    """Two shards of eight samples, their index, and a coreset of every second one."""
    index = build_index(write_shards(Path("shards"), [8, 8]), progress=False)
    index.save("index.parquet")
    Coreset(range(0, 16, 2), num_rows=16, fingerprint=index.fingerprint).save("coreset.parquet")
    return here


def test_the_shards_are_what_repack_gives(indexed: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
        (["repack", "index.parquet", "other", OUT], "is of 9 rows, and this dataset has 16"),
        (["repack", "index.parquet", "coreset.parquet"], "Missing argument"),
    ],
)
def test_misuse_of_repack_is_refused_in_one_line(
    args: list[str], message: str, indexed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Coreset([1], num_rows=9).save("other")
    Path("full").mkdir()
    Path("full/3.tar").touch()
    assert_refused(capsys, args, message)


def test_shards_of_another_plan_are_only_overwritten_on_demand(indexed: Path) -> None:
    assert main([*ARGS, OUT]) == 0
    assert main([*ARGS, OUT, "--rename"]) == 2
    assert main([*ARGS, OUT, "--rename", "--overwrite"]) == 0
    assert ShardIndex.load("out/index.parquet").key(7) == "14"


def test_commands_run_only_where_they_are_allowed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(here, [3])
    assert "allow_commands" in run(capsys, "pipe:cat 000000.tar", code=2)[0]
    assert run(capsys, "pipe:cat 000000.tar", "--allow-commands")[-1] == "3 rows, written to index.parquet"
    Coreset([0], num_rows=3).save("coreset.parquet")
    assert_refused(capsys, [*ARGS, OUT], "--allow-commands")
    assert main([*ARGS, OUT, "--allow-commands"]) == 0
