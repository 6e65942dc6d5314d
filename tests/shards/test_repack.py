from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from prunesampler.errors import (
    ArgumentError,
    CorruptFileError,
    MismatchError,
    StateError,
    UnsupportedError,
    WriteError,
)
from prunesampler.shards import IndexedShards, ShardIndex, build_index, keep, repack
from prunesampler.shards.output_folder import OutputFolder
from prunesampler.tables.coreset import Coreset
from tests.helpers.shardfiles import LEFT_OPEN, delivered, write_shards, write_tar

pytestmark = LEFT_OPEN

ROWS = 22
KEPT = [0, 3, 7, 8, 11, 20, 21]
NAMED = ["index.parquet", "repack.json", "rows.parquet"]
HALVES = [slice(0, 8), slice(8, None)]
repacking = sys.modules["prunesampler.shards.repack"]  # the package has a function of this name


def kept(index: ShardIndex, rows: list[int] = KEPT, **options: Any) -> Coreset:
    return Coreset(rows, num_rows=len(index), fingerprint=index.fingerprint, **options)


def out(path: Path, name: str = "{shard:06d}.tar") -> str:
    return str(path / "out" / name)


def contents(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in sample.items() if name not in ("__url__", "__local_path__")}
        for sample in samples
    ]


def digests(path: Path) -> dict[str, str]:
    return {
        each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in path.iterdir() if each.suffix == ".tar"
    }


def source_rows(path: Path) -> list[int]:
    table = pq.read_table(path / "out" / "rows.parquet")
    assert table["row"].to_pylist() == list(range(len(table)))
    rows: list[int] = table["source_row"].to_pylist()
    return rows


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("maxsize", [1, 20_000, 10**9])
def test_the_same_samples_through_stage_reader_and_new_shards(
    maxsize: int, shuffle: bool, paths: list[str], index: ShardIndex, tmp_path: Path
) -> None:
    coreset = kept(index)
    old = contents(delivered(paths))
    fresh = repack(index, coreset, out(tmp_path), maxsize=maxsize, shuffle=shuffle, seed=1, progress=False)
    rows = source_rows(tmp_path)
    assert sorted(rows) == KEPT
    assert (rows == KEPT) is not shuffle
    expected = [old[row] for row in rows]
    assert contents(delivered(fresh.shards)) == expected
    assert contents(list(IndexedShards(fresh).__getitems__(range(len(fresh))))) == expected
    assert contents(IndexedShards(index, coreset).__getitems__(rows)) == expected
    stage = keep(coreset, index)
    for reading in ([webdataset.tarfile_to_samples(), stage], [stage.samples]):
        pipeline = webdataset.DataPipeline(webdataset.SimpleShardList(paths), *reading)
        assert contents(list(pipeline)) == [old[row] for row in KEPT]
    assert fresh.labels.tolist() == index.labels[rows].tolist()
    sizes = [os.path.getsize(path) for path in fresh.shards]
    assert all(size <= maxsize or len(fresh.rows_of(path)) == 1 for size, path in zip(sizes, fresh.shards, strict=True))
    if maxsize == 20_000:  # no shard could have held the first sample of the next
        for number, path in enumerate(fresh.shards[1:], 1):
            last = fresh.members(fresh.rows_of(path).start)[-1]
            assert sizes[number - 1] + last.offset + -(-last.size // 512) * 512 > maxsize


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("most", [(1, 1024), (3000, 1024), (1 << 20, 2)])
def test_new_shards_are_the_old_bytes_of_their_samples(
    format: int, most: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repacking, "_BATCH_BYTES", most[0])
    monkeypatch.setattr(repacking, "_BATCH_SAMPLES", most[1])
    names = [f"{row}.{extension}" for row in range(9) for extension in ("jpg", "Seg.png")]
    names += ["x" * 60 + "/" + "y" * 60 + ".txt", "é.txt", "empty.txt"]
    files = [(name, name.encode() * 60 * (place % 7)) for place, name in enumerate(names)]
    (tmp_path / "in").mkdir()
    paths = [write_tar(tmp_path / "in" / f"{n}.tar", files[part], format) for n, part in enumerate(HALVES)]
    expected = []
    for path in paths:
        content = Path(path).read_bytes()
        with tarfile.open(path) as tar:
            for _, group in itertools.groupby(tar, lambda info: info.name.partition(".")[0]):
                infos = list(group)
                size = -(-infos[-1].size // 512) * 512
                expected.append(content[infos[0].offset : infos[-1].offset_data + size])
    index = build_index(paths, label=None, progress=False)
    fresh = repack(index, kept(index, [1, 2, 4, 8, 9, 11]), out(tmp_path), shuffle=True, progress=False)
    assert Path(fresh.shards[0]).read_bytes() == b"".join(expected[row] for row in source_rows(tmp_path)) + bytes(1024)
    listed = subprocess.run(["tar", "tf", fresh.shards[0]], capture_output=True, text=True, check=True)
    assert listed.stderr == ""


def test_folders_and_links_before_a_sample_come_along(tmp_path: Path) -> None:
    folder, link = tarfile.TarInfo("b"), tarfile.TarInfo("b/link.txt")
    folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "y" * 120
    (tmp_path / "in").mkdir()
    files = [("a/1.txt", b"1"), folder, link, ("b/2.txt", b"2"), ("b/3.txt", b"3"), link]
    index = build_index(write_tar(tmp_path / "in" / "a.tar", files, tarfile.GNU_FORMAT), progress=False)
    fresh = repack(index, kept(index, [1, 2]), out(tmp_path), progress=False)
    with tarfile.open(fresh.shards[0]) as tar:
        assert tar.getnames() == ["b", "b/link.txt", "b/2.txt", "b/3.txt"]
    assert [sample["txt"] for sample in delivered(fresh.shards)] == [b"2", b"3"]


def test_the_index_beside_is_that_of_the_new_shards(index: ShardIndex, tmp_path: Path) -> None:
    fresh = repack(index, kept(index), out(tmp_path), maxsize=20_000, progress=False)
    again = build_index(sorted(map(str, (tmp_path / "out").glob("*.tar"))), progress=False)
    loaded = ShardIndex.load(tmp_path / "out" / "index.parquet")
    for other in (again, loaded):
        assert other.shards == fresh.shards
        assert other.fingerprint == fresh.fingerprint
        assert other.records == fresh.records
        assert all(other.table(shard).equals(fresh.table(shard)) for shard in fresh.shards)
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [
        *(f"{number:06d}.tar" for number in range(len(fresh.shards))),
        *NAMED,
    ]


def test_labels_and_weights_are_carried_over_and_paths_do(paths: list[str], tmp_path: Path) -> None:
    index = build_index(paths, label=lambda key, files: int(key) % 3 - 1, progress=False)
    index.save(tmp_path / "index.parquet")
    kept(index, weights=np.arange(1, len(KEPT) + 1)).save(tmp_path / "coreset.parquet")
    args = tmp_path / "index.parquet", tmp_path / "coreset.parquet", out(tmp_path)
    fresh = repack(*args, shuffle=True, progress=False)
    rows = source_rows(tmp_path)
    assert [fresh.key(row) for row in range(len(fresh))] == [f"{row:06d}" for row in rows]
    assert fresh.labels.tolist() == [row % 3 - 1 for row in rows]
    weights = pq.read_table(tmp_path / "out" / "rows.parquet")["weight"].to_pylist()
    assert weights == [1 + KEPT.index(row) for row in rows]
    everything = repack(tmp_path / "index.parquet", None, out(tmp_path / "b"), progress=False)
    assert contents(delivered(everything.shards)) == contents(delivered(paths))


def test_the_bytes_depend_on_nothing_else(index: ShardIndex, tmp_path: Path) -> None:
    options: dict[str, Any] = {"maxsize": 20_000, "shuffle": True, "progress": False}
    for name, workers, seed in (("a", 1, 0), ("b", 3, 0), ("c", 1, 1)):
        repack(index, kept(index), out(tmp_path / name), seed=seed, workers=workers, **options)
    a, b, c = (digests(tmp_path / name / "out") for name in "abc")
    assert a == b
    assert a != c


def test_names_of_all_kinds_stay_in_the_tar(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    names = ["../up.txt", "/abs.txt", "döt.JPG", "a.b/c.seg.png", "x" * 150 + ".txt", "empty.bin", "é" * 60 + ".txt"]
    files: list[Any] = [(name, name.encode() * (name != "empty.bin")) for name in names]
    link = tarfile.TarInfo("link.txt")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    path = write_tar(tmp_path / "in" / "a.tar", [*files, link], tarfile.PAX_FORMAT)
    index = build_index(path, progress=False)
    fresh = repack(index, None, out(tmp_path), progress=False)
    assert contents(delivered(fresh.shards)) == contents(delivered(path))
    assert {each.name for each in tmp_path.rglob("*")} == {"in", "a.tar", "out", "000000.tar", *NAMED}
    renamed = repack(index, None, out(tmp_path / "named"), rename=True, progress=False)
    assert [renamed.key(row) for row in range(7)] == [str(row) for row in range(7)]
    assert [sample[next(reversed(sample))] for sample in contents(delivered(renamed.shards))] == [
        content for _, content in files
    ]
    assert build_index(renamed.shards, progress=False).records == renamed.records
    with tarfile.open(renamed.shards[0], errorlevel=2) as tar:
        assert {(info.mtime, info.uid, info.mode, info.isreg()) for info in tar} == {(0, 0, 0o444, True)}


def test_repeated_keys(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    paths = [write_tar(tmp_path / "in" / f"{n}.tar", [("a.txt", b"%d" % n), (f"{n}.txt", b"")]) for n in range(12)]
    index = build_index(paths, repeated_keys=True, progress=False)
    with pytest.raises(
        UnsupportedError, match=r"key 'a' is in both .*0\.tar and .*1\.tar, .* \(rename=True, --rename\)"
    ):
        repack(index, None, out(tmp_path), progress=False)
    assert not (tmp_path / "out").exists()
    fresh = repack(index, kept(index, [0, 2, 23]), out(tmp_path), rename=True, progress=False)
    renamed = [("00", b"0"), ("02", b"1"), ("23", b"")]
    assert [(sample["__key__"], sample["txt"]) for sample in delivered(fresh.shards)] == renamed


@pytest.mark.parametrize("codec", ["gz", "zst", "pipe"])
def test_shards_that_must_be_streamed(codec: str, tmp_path: Path) -> None:
    import pyarrow as pa

    plain = write_shards(tmp_path / "in", [5, 4, 3])
    urls = list(plain)
    if codec == "pipe":
        urls[1] = f"pipe:cat {plain[1]}"
    else:
        urls[1] += f".{codec}"
        with pa.CompressedOutputStream(urls[1], {"gz": "gzip", "zst": "zstd"}[codec]) as file:
            file.write(Path(plain[1]).read_bytes())
    index = build_index(urls, allow_commands=codec == "pipe", progress=False)
    rows = [1, 4, 5, 7, 8, 10]
    fresh = repack(index, kept(index, rows), out(tmp_path), maxsize=9000, workers=3, progress=False)
    assert len(fresh.shards) > 3
    expected = contents(delivered(plain))
    assert contents(delivered(fresh.shards)) == [expected[row] for row in rows]
    with pytest.raises(UnsupportedError, match="repack without shuffling first"):
        repack(index, kept(index, rows), out(tmp_path / "b"), shuffle=True, progress=False)


def test_it_writes_to_an_object_store(index: ShardIndex, paths: list[str], tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    try:
        pattern = "memory://repacked/out/{shard:06d}.tar"
        local = repack(index, kept(index), out(tmp_path), maxsize=20_000, progress=False)
        fresh = repack(index, kept(index), pattern, maxsize=20_000, progress=False)
        names = [f"{number:06d}.tar" for number in range(len(fresh.shards))]
        assert fresh.shards == [f"memory://repacked/out/{name}" for name in names]
        assert sorted(name.rpartition("/")[2] for name in memory.ls("/repacked/out", detail=False)) == [*names, *NAMED]
        for name, path in zip(names, local.shards, strict=True):
            assert memory.cat_file(f"/repacked/out/{name}") == Path(path).read_bytes()
        old = contents(delivered(paths))
        assert contents(IndexedShards(fresh).__getitems__(range(7))) == [old[row] for row in KEPT]
        memory.rm_file("/repacked/out/000001.tar")
        memory.rm_file("/repacked/out/index.parquet")
        again = repack(index, kept(index), pattern, maxsize=20_000, progress=False)
        assert memory.cat_file("/repacked/out/000001.tar") == Path(local.shards[1]).read_bytes()
        assert again.fingerprint == fresh.fingerprint
        with pytest.raises(StateError, match="overwrite"):
            repack(index, kept(index), pattern, progress=False)
    finally:
        memory.rm("/repacked", recursive=True)


def test_what_is_there_is_not_written_over(index: ShardIndex, tmp_path: Path) -> None:
    options: dict[str, Any] = {"maxsize": 20_000, "progress": False}
    repack(index, kept(index), out(tmp_path), **options)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    before = {each.name: each.read_bytes() for each in (tmp_path / "out").iterdir()}
    other = kept(index, [1, 2])
    with pytest.raises(StateError, match=r"000000\.tar is there already: .* \(overwrite=True, --overwrite\)"):
        repack(index, other, out(tmp_path), **options)
    assert {each.name: each.read_bytes() for each in (tmp_path / "out").iterdir()} == before
    fresh = repack(index, other, out(tmp_path), overwrite=True, **options)
    assert [fresh.key(row) for row in range(2)] == ["000001", "000002"]
    assert {each.name for each in (tmp_path / "out").iterdir()} == {"000000.tar", "notes.txt", *NAMED}


@pytest.mark.parametrize("name", ["000007.tar", "index.parquet", "rows.parquet", "repack.json"])
def test_files_of_others_are_not_written_over(name: str, index: ShardIndex, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(StateError, match=f"{name} is there already"):
        repack(index, kept(index), out(tmp_path), progress=False)
    assert (tmp_path / "out" / name).read_text() == "mine"


def test_repeating_it_writes_no_shard_again(index: ShardIndex, tmp_path: Path) -> None:
    options: dict[str, Any] = {"maxsize": 20_000, "progress": False}
    fresh = repack(index, kept(index), out(tmp_path), **options)
    before = {path: os.stat(path) for path in fresh.shards}
    repack(index, kept(index), out(tmp_path), **options)
    assert {path: os.stat(path).st_ino for path in fresh.shards} == {path: each.st_ino for path, each in before.items()}
    Path(fresh.shards[1]).write_bytes(b"cut")
    with pytest.raises(StateError, match=r"000001\.tar has 3 bytes, not \d+"):
        repack(index, kept(index), out(tmp_path), **options)
    content = bytearray(Path(fresh.shards[0]).read_bytes())
    content[fresh.members(0)[0].offset - 512] ^= 1
    repack(index, kept(index), out(tmp_path), overwrite=True, **options)
    Path(fresh.shards[0]).write_bytes(content)
    with pytest.raises(CorruptFileError):  # as long as it should be, but its headers tell
        repack(index, kept(index), out(tmp_path), **options)


def test_a_failure_leaves_complete_shards_and_nothing_else(
    index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"maxsize": 20_000, "workers": 1, "progress": False}
    repack(index, kept(index), out(tmp_path / "whole"), **options)
    check, checked = repacking.check_header, []

    def fail(*args: Any) -> None:
        checked.append(args)
        if len(checked) == 8:
            raise OSError(28, "No space left on device")
        check(*args)

    monkeypatch.setattr(repacking, "check_header", fail)
    with pytest.raises(OSError, match="No space left"):
        repack(index, kept(index), out(tmp_path), **options)
    monkeypatch.undo()
    left = digests(tmp_path / "out")
    assert 0 < len(left) < len(digests(tmp_path / "whole" / "out"))
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [*sorted(left), "repack.json"]
    repack(index, kept(index), out(tmp_path), **options)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole" / "out")


def repacked_until(headers: int, stuck: Any, *args: Any) -> None:
    check, count = repacking.check_header, itertools.count(1)

    def checked(*given: Any) -> None:
        check(*given)
        if next(count) >= headers:
            stuck.set()
            time.sleep(3600)

    repacking.check_header, repacking._BATCH_BYTES = checked, 1  # type: ignore[attr-defined]
    repack(*args, maxsize=12_000, shuffle=True, workers=2, progress=False)


def test_killed_at_any_moment_it_ends_in_the_same_bytes(index: ShardIndex, tmp_path: Path) -> None:
    index.save(tmp_path / "index.parquet")
    kept(index, list(range(1, ROWS))).save(tmp_path / "coreset.parquet")
    args = [tmp_path / "index.parquet", tmp_path / "coreset.parquet"]
    options: dict[str, Any] = {"maxsize": 12_000, "shuffle": True, "progress": False}
    repack(*args, out(tmp_path / "whole"), **options)
    whole = digests(tmp_path / "whole" / "out")
    complete, context = 0, multiprocessing.get_context("fork")
    for headers in (9, 10, 11):
        stuck = context.Event()
        child = context.Process(target=repacked_until, args=(headers, stuck, *args, out(tmp_path)))
        child.start()
        while child.is_alive() and not stuck.wait(0.1):
            pass
        child.kill()
        child.join()
        found = digests(tmp_path / "out")
        assert complete < len(found) < len(whole)
        assert found.items() <= whole.items()
        assert any(each.suffix == ".part" for each in (tmp_path / "out").iterdir())
        assert not (tmp_path / "out" / "index.parquet").exists()
        complete = len(found)
    fresh = repack(*args, out(tmp_path), **options)
    assert digests(tmp_path / "out") == whole
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [*sorted(whole), *NAMED]
    assert sorted(source_rows(tmp_path)) == list(range(1, ROWS))
    assert len(fresh) == ROWS - 1


def test_it_never_writes_where_it_reads(index: ShardIndex, paths: list[str], tmp_path: Path) -> None:
    before = {path: Path(path).read_bytes() for path in paths}
    shutil.copytree(tmp_path / "shards", tmp_path / "copy")
    os.symlink(tmp_path / "shards", tmp_path / "link")
    index.save(tmp_path / "index.parquet")
    for given, pattern in (
        (index, tmp_path / "shards" / "{shard:06d}.tar"),
        (index, f"file://{tmp_path}/shards/{{shard:06d}}.tar"),
        (index, tmp_path / "link" / "new-{shard}.tar"),
        (tmp_path / "index.parquet", tmp_path / "{shard}.tar"),
    ):
        with pytest.raises(ArgumentError, match="out must be another folder than that of"):
            repack(given, None, pattern, overwrite=True, progress=False)
    assert {path: Path(path).read_bytes() for path in paths} == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["copy", "index.parquet", "link", "shards"]


def test_a_source_that_has_changed(index: ShardIndex, paths: list[str], tmp_path: Path) -> None:
    content = bytearray(Path(paths[0]).read_bytes())
    name = index.members(0)[0].offset - 512
    content[name : name + 6] = b"zzzzzz"
    Path(paths[0]).write_bytes(content)
    with pytest.raises(MismatchError, match=r"000000\.tar has changed since it was indexed: '000000\.cls'"):
        repack(index, kept(index), out(tmp_path), progress=False)
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["repack.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "out/{shard:/>6}.tar"}, "out must be like"),
        ({"maxsize": 0}, "maxsize must be an int >= 1"),
        ({"maxsize": 1e9}, "maxsize must be an int >= 1"),
        ({"workers": 0}, "workers must be an int >= 1"),
        ({"seed": 0.5}, "seed must be an int"),
    ],
)
def test_arguments(
    options: dict[str, Any], message: str, index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ArgumentError, match=message):
        repack(**({"index": index, "coreset": None, "out": "out/{shard}.tar", "progress": False} | options))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_coreset_of_other_shards_and_two_runs_at_once(index: ShardIndex, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="of 5 rows"):
        repack(index, Coreset([1], num_rows=5), out(tmp_path), progress=False)
    assert not (tmp_path / "out").exists()
    with OutputFolder(str(tmp_path / "out")).locked(), pytest.raises(StateError, match="another process is writing"):
        repack(index, kept(index), out(tmp_path), progress=False)


def test_into_the_current_folder(index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert repack(index, kept(index), "{shard}.tar", progress=False).shards == ["0.tar"]


def test_overwriting_deletes_nothing_that_is_read_under_another_name(tmp_path: Path) -> None:
    for name in ("store", "links", "hard"):
        (tmp_path / name).mkdir()
    stored = write_tar(tmp_path / "store" / "x.tar", [(f"{i}.txt", b"x") for i in range(4)])
    linked, hard = tmp_path / "links" / "0.tar", tmp_path / "hard" / "0.tar"
    linked.symlink_to(stored)
    hard.hardlink_to(stored)
    of_links, of_store = (build_index(path, progress=False) for path in (str(linked), stored))
    of_store.save(tmp_path / "i.parquet")
    (tmp_path / "hard" / "index.parquet").hardlink_to(tmp_path / "i.parquet")
    for index, folder in ((of_links, "links"), (of_links, "store"), (of_store, "links"), (of_store, "hard")):
        for url in (f"{tmp_path}/{folder}", f"file://{tmp_path}/{folder}", f"local://{tmp_path}/{folder}"):
            with pytest.raises(ArgumentError, match="which is read"):
                repack(index, None, url + "/{shard}.tar", overwrite=True, progress=False)
    hard.unlink()
    with pytest.raises(ArgumentError, match=r"without index\.parquet, which is read"):
        repack(tmp_path / "i.parquet", None, f"{tmp_path}/hard/{{shard}}.tar", overwrite=True, progress=False)
    assert linked.is_symlink()
    assert Path(stored).is_file()
    coreset = tmp_path / "hard" / "coreset.parquet"
    kept(of_store, [1]).save(coreset)
    (tmp_path / "hard" / "index.parquet").unlink()
    assert len(repack(of_store, coreset, f"{tmp_path}/hard/{{shard}}.tar", overwrite=True, progress=False)) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_named(index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: OutputFolder, part: str) -> Any:
        return open("/dev/full", "wb") if part.endswith(".tar.part") else created(folder, part)

    created = OutputFolder._create
    monkeypatch.setattr(OutputFolder, "_create", full)
    with pytest.raises(WriteError, match=r"out/000000\.tar cannot be written: No space left on device"):
        repack(index, None, out(tmp_path), progress=False)


def test_a_source_that_is_gone_is_not_called_a_failure_to_write(
    index: ShardIndex, paths: list[str], tmp_path: Path
) -> None:
    os.unlink(paths[1])
    with pytest.raises(FileNotFoundError) as caught:
        repack(index, None, out(tmp_path), progress=False)
    assert not isinstance(caught.value, WriteError)
