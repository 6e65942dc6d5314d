from __future__ import annotations

import gzip
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunesampler import PruneSamplerWarning
from prunesampler.errors import ArgumentError, CorruptFileError, MismatchError, StateError, UnsupportedError
from prunesampler.shards import ShardIndex, build, build_index
from prunesampler.shards.build import scan_shard, scan_shards
from prunesampler.shards.index_file import SCHEMA, key_digest, row_digest
from tests.helpers.shardfiles import delivered, write_shards, write_tar


def build_quietly(urls: Any, **options: Any) -> ShardIndex:
    return build_index(urls, progress=False, **options)


def content(index: ShardIndex) -> list[tuple[Any, ...]]:
    table = index.take(np.arange(len(index)))
    return [(index.shards[row["shard"]], row["key"], str(row["members"]), row["label"]) for row in table.to_pylist()]


@pytest.mark.parametrize("workers", [1, 2, None])
def test_rows_are_in_the_order_of_the_shards(tmp_path: Path, workers: int | None) -> None:
    paths = write_shards(tmp_path, [3, 8, 1, 2, 5])
    for urls in (f"{tmp_path}/{{000000..000004}}.tar", f"{tmp_path}/*.tar", paths, paths[::-1]):
        index = build_quietly(urls, workers=workers)
        order = urls if isinstance(urls, list) else paths
        assert [entry[1] for entry in content(index)] == [sample["__key__"] for sample in delivered(order)]


def test_new_shards_come_last_and_alone_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = write_shards(tmp_path, [3, 4])
    old[1] = str(Path(old[1]).rename(tmp_path / "000005.tar"))
    before = build_quietly(old)
    before.save(tmp_path / "index.parquet")
    new = write_shards(tmp_path, [2, 6], first_shard=2, first_key=100)
    read: list[str] = []

    def scan_and_note(urls: list[str], *options: Any) -> Any:
        read.extend(urls)
        return [scan_shard(url) for url in urls]

    monkeypatch.setattr(build, "scan_shards", scan_and_note)
    for older in (before, ShardIndex.load(tmp_path / "index.parquet")):
        read.clear()
        index = build_quietly(f"{tmp_path}/*.tar", index=older)
        assert read == new
        assert index.shards == [*old, *new]
        assert content(index)[:7] == content(before)
        assert [entry[1] for entry in content(index)[7:]] == [f"{key:06d}" for key in range(100, 108)]
        assert index.labels is not None
        assert index.labels.tolist() == [*range(7), *(key % 10 for key in range(8))]
        assert index.fingerprint != before.fingerprint
        assert index.fingerprint == build_quietly([*old, *new]).fingerprint
    index.save(tmp_path / "index.parquet")
    same = build_quietly(f"{tmp_path}/*.tar", index=ShardIndex.load(tmp_path / "index.parquet"))
    assert (content(same), same.fingerprint) == (content(index), index.fingerprint)


def test_a_shard_that_changed_is_refused(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [3, 4], mtime=1.5)
    index = build_quietly(paths)
    os.utime(paths[1])
    assert content(build_quietly(paths, index=index)) == content(index)  # newer, and the same
    Path(paths[1]).write_bytes(Path(paths[1]).read_bytes().replace(b"000005.cls", b"00000x.cls"))
    with pytest.raises((MismatchError, CorruptFileError)):
        build_quietly(paths, index=index)
    write_shards(tmp_path, [4], first_shard=1, first_key=13, mtime=1.5)
    with pytest.raises(MismatchError, match=r"000001.tar has changed since it was indexed.*start a new one"):
        build_quietly(paths, index=index)
    write_shards(tmp_path, [5], first_shard=1, first_key=3)
    with pytest.raises(MismatchError, match=r"000001.tar has changed since"):
        build_quietly(paths, index=index)
    os.utime(paths[1], ns=(0, index.records[1].modified))
    with pytest.raises(MismatchError, match=r"000001.tar has changed since"):
        build_quietly(paths, index=index)
    os.unlink(paths[1])
    with pytest.raises(FileNotFoundError, match="000001"):
        build_quietly(paths, index=index)
    assert content(build_quietly(paths[:1], index=index)) == content(index)  # and its own shards stay


def test_a_key_in_two_shards_is_refused_unless_allowed(tmp_path: Path) -> None:
    first = write_shards(tmp_path / "a", [3, 3])
    second = write_shards(tmp_path / "b", [2, 2], first_key=4)
    message = r"key '000004' is in both .*a/000001.tar and .*b/000000.tar"
    with pytest.raises(UnsupportedError, match=message):
        build_quietly([*first, *second])
    with pytest.raises(UnsupportedError, match=message):
        build_quietly(second, index=build_quietly(first))
    index = build_quietly([*first, *second], repeated_keys=True)
    assert [index.row(url, "000005") for url in (first[1], second[0])] == [5, 7]
    assert len(build_quietly([*first, *second], index=index)) == 10


def test_keys_of_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "hash", lambda key: len(key), raising=False)
    assert len(build_quietly(write_shards(tmp_path, [3, 3]))) == 6


def test_empty_shards_are_kept_and_reported(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [0, 2, 0])
    with pytest.warns(PruneSamplerWarning, match=r"2 of 3 shards hold no sample: .*000000.tar, .*000002.tar"):
        index = build_quietly(paths)
    assert index.first_rows.tolist() == [0, 0, 2, 2]
    with pytest.raises(UnsupportedError, match="no sample in any of 2 shards"):
        build_quietly([paths[0], paths[2]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "CLS"}, "label must be an extension in lower case"),
        ({"label": ""}, "label must be"),
        ({"label": 3}, "label must be"),
        *(({"workers": workers}, "workers must be an int >= 1") for workers in (0, True, 1.5)),
        ({"urls": []}, "urls must name at least one shard"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        build_quietly(**{"urls": str(tmp_path / "none.tar"), **options})


def test_progress_is_shown_unless_it_is_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_index(write_shards(tmp_path, [1, 1]))
    assert "2/2" in capsys.readouterr().err
    build_index(str(tmp_path / "*.tar"), progress=False)
    assert capsys.readouterr() == ("", "")


def test_hostile_names_are_only_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    names = ["../../out.jpg", "/etc/out.jpg", "a/../../b.jpg", "é/ü.jpg", "a.b/c.d.jpg", "-rf.jpg", "$(id).jpg"]
    path = write_tar(folder / "a.tar", [(name, name.encode()) for name in names])
    index = build_quietly(path)
    index.save("index.parquet")
    assert [index.key(row) + "." + index.members(row)[0].extension for row in range(len(names))] == names
    assert sorted(os.listdir(folder)) == ["a.tar", "index.parquet"]
    assert os.listdir(tmp_path) == ["folder"]


def as_delivered(path: str, table: Any) -> list[dict[str, Any]]:
    """What webdataset should deliver, by the table alone."""
    content, samples = Path(path).read_bytes(), []
    for row in table.to_pylist():
        files = {m["extension"].lower(): content[m["offset"] :][: m["size"]] for m in row["members"]}
        samples.append({"__key__": row["key"], "__url__": path, **files})
    return samples


def test_the_samples_are_those_of_webdataset(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [50])
    shard, table = scan_shard(path)
    assert as_delivered(path, table) == delivered(path)
    assert table["label"].to_pylist() == [place % 10 for place in range(50)]
    assert table.schema == SCHEMA
    status = Path(path).stat()
    assert shard == (path, 50, status.st_size, status.st_mtime_ns, True, key_digest(table), row_digest(table))
    Path(path).write_bytes(gzip.compress(Path(path).read_bytes()))
    compressed, rows = scan_shard(path)
    assert rows.equals(table)
    assert (compressed.seekable, compressed.keys, compressed.digest) == (False, shard.keys, shard.digest)


def test_odd_names_make_the_samples_of_webdataset(tmp_path: Path) -> None:
    files = [("../a.JPG", b"1"), ("../a.cls", b"1"), ("/b.seg.png", b""), ("README", b""), ("__meta__/c.txt", b"")]
    files += [("é/d.txt", b"d"), ("e.cls", b"-1"), ("e.txt", b""), (".hidden", b""), ("f.x.y.Z", b"f"), ("f.x.y", b"")]
    path = write_tar(tmp_path / "a.tar", files)
    _, table = scan_shard(path)
    assert as_delivered(path, table) == delivered(path)
    assert table["key"].to_pylist() == ["../a", "/b", "é/d", "e", "f"]
    assert table["label"].to_pylist() == [1, None, None, None, None]


@pytest.mark.parametrize("files", [[], [("README", b"?")]])
def test_a_shard_without_samples_has_no_rows(tmp_path: Path, files: list[tuple[str, bytes]]) -> None:
    shard, table = scan_shard(write_tar(tmp_path / "a.tar", files))
    assert (shard.rows, len(table)) == (0, 0)
    assert table.schema == SCHEMA


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.jpg", "b.jpg", "a.cls"], r"a.tar: the files of sample 'a' are not neighbours"),
        (["a.jpg", "a.JPG"], r"a.tar: sample 'a' has two files with the extension '(jpg|JPG)'"),
        (["a.jpg", "b.jpg", "b.cls", "b.jpg"], r"a.tar: sample 'b' has two files with the extension 'jpg'"),
    ],
)
def test_files_that_are_not_one_sample_to_webdataset_are_refused(
    tmp_path: Path, names: list[str], message: str
) -> None:
    path = write_tar(tmp_path / "a.tar", [(name, b"1") for name in names])
    with pytest.raises(UnsupportedError, match=message):
        scan_shard(path)


def test_labels_are_the_content_of_the_named_file(tmp_path: Path) -> None:
    files = [("a.jpg", b"1"), ("a.CLS", b" 7\n"), ("b.jpg", b"2"), ("b.class.txt", b"8"), ("c.cls", b"-1")]
    path = write_tar(tmp_path / "a.tar", files)
    for label, expected in (("cls", [7, None, None]), ("class.txt", [None, 8, None]), (None, [None] * 3)):
        assert scan_shard(path, label)[1]["label"].to_pylist() == expected


@pytest.mark.parametrize("value", [b"1.5", b"cat", b"", b"-2", b"2147483648", b"1" * 40, 1.0, "1.0", -2, 2**31])
def test_a_label_that_is_no_class_index_is_refused(tmp_path: Path, value: Any) -> None:
    path = write_tar(tmp_path / "a.tar", [("6.cls", b"0"), ("7.cls", value if isinstance(value, bytes) else b"0")])
    for label in ["cls"] * isinstance(value, bytes) + [lambda key, files: value if key == "7" else 0]:
        with pytest.raises(UnsupportedError, match=r"a.tar: the label of sample '7' must be an int in \[0, 2\*\*31\)"):
            scan_shard(path, label)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_label_function_sees_every_sample_once(tmp_path: Path, compressed: bool) -> None:
    big = b"p" * 3_000_000
    files = [("a.PNG", big), ("a.json", b"1"), ("README", b"?"), ("b.png", b"q" * 700), ("c.json", b"3")]
    path = Path(write_tar(tmp_path / "a.tar", files))
    if compressed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    seen = []

    def label(key: str, files: Mapping[str, bytes]) -> int | None:
        seen.append((key, dict(files)))
        assert "jpg" not in files
        return {"1": np.int64(1), "3": "3"}[files["json"].decode()] if "json" in files else None

    assert scan_shard(str(path), label)[1]["label"].to_pylist() == [1, None, 3]
    assert seen == [("a", {"png": big, "json": b"1"}), ("b", {"png": b"q" * 700}), ("c", {"json": b"3"})]


@pytest.fixture
def forking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_WORTH_FORKING", -1)


def test_little_work_needs_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_shards(tmp_path, [1, 1, 1])
    for worth, processes in ((-1, 3), (1e9, 1)):
        monkeypatch.setattr(build, "_WORTH_FORKING", worth)
        scanned = scan_shards(paths, lambda key, files: os.getpid(), 3)
        assert len({table["label"].to_pylist()[0] for _, table in scanned}) == processes


@pytest.mark.usefixtures("forking")
@pytest.mark.parametrize("workers", [1, 2, 3, 9])
def test_every_shard_is_scanned_once(tmp_path: Path, workers: int) -> None:
    paths = write_shards(tmp_path, [3, 0, 5, 1, 2])
    found = scan_shards(paths, "cls", workers)
    assert [(shard, table.to_pydict()) for shard, table in found] == [
        (shard, table.to_pydict()) for shard, table in map(scan_shard, paths)
    ]
    assert not multiprocessing.active_children()


def busy(key: str, files: Mapping[str, bytes]) -> int:
    """A label function that fails or dies at once in one process, while the others have much to do."""
    if key == "000002":
        raise ValueError("this one")
    if key == "000006":
        os.kill(os.getpid(), signal.SIGKILL)
    if int(key) in (3, 4):
        time.sleep(1000)
    return 0


@pytest.mark.usefixtures("forking")
def test_a_failure_ends_processes_with_much_to_do_and_a_kill_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this one"):
        scan_shards(write_shards(tmp_path, [2, 1, 1, 1]), busy, 3)
    assert not multiprocessing.active_children()
    with pytest.raises(StateError, match=r"was killed; 1 of 3 are not read"):
        scan_shards(write_shards(tmp_path, [1, 1, 2], first_key=5), busy, 2)
    paths = write_shards(tmp_path, [2] * 3)
    Path(paths[2]).write_bytes(b"")
    with pytest.raises(CorruptFileError, match=r"000002.tar is empty"):
        scan_shards(paths, "cls", 1)


def test_a_caller_that_stops_early_leaves_no_process(tmp_path: Path) -> None:
    results = build._scan_in_processes(write_shards(tmp_path, [2] * 6), range(6), "cls", 2)
    next(results)
    results.close()
    assert not multiprocessing.active_children()


KILLED = """
import os, sys, time
from prunesampler.shards import build_index
if sys.argv[3] == "writing":
    write = os.replace
    def wait(*paths):
        print("ready", flush=True)
        time.sleep(3600)
    os.replace = wait
else:
    from prunesampler.shards import build
    scan = build._scan_in_processes
    def slow(*options):
        for result in scan(*options):
            print("ready", flush=True)
            yield result
            time.sleep(3600)
    build._scan_in_processes, build._WORTH_FORKING = slow, -1
def label(key, members):
    return 0
build_index(sys.argv[1], label=label, workers=2, progress=False).save(sys.argv[2])
"""


@pytest.mark.parametrize("moment", ["reading", "writing"])
def test_a_kill_leaves_what_was_there(tmp_path: Path, moment: str) -> None:
    write_shards(tmp_path / "shards", [50] * 4)
    pattern, out = f"{tmp_path}/shards/*.tar", tmp_path / "index.parquet"
    build_quietly(f"{tmp_path}/shards/000000.tar").save(out)
    before = out.read_bytes()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, pattern, str(out), moment], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGKILL)
    assert out.read_bytes() == before
    assert len(ShardIndex.load(out)) == 50
    while any(running(child) for child in children):  # not for ever, by the timeout of a test
        time.sleep(0.05)
    assert len(build_quietly(pattern, index=ShardIndex.load(out))) == 200


def running(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("held", [10, 1 << 20])
def test_a_label_function_gets_the_bytes_of_a_stream_when_it_asks_for_them(
    tmp_path: Path, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_HELD_BYTES", held)
    monkeypatch.setattr(build, "_COPIED_BYTES", 7)
    plain = write_tar(tmp_path / "a.tar", [(f"{i}.{e}", e.encode() * (i + 3)) for i in range(5) for e in ("x", "yy")])
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(Path(plain).read_bytes()))
    looked: list[tuple[str, bytes, bytes]] = []

    def label(key: str, files: Mapping[str, bytes]) -> int:
        looked.append((key, files["yy"], files["x"]))
        return int(key)

    assert build_quietly(str(path), label=label).labels.tolist() == list(range(5))
    assert looked == [(str(i), b"yy" * (i + 3), b"x" * (i + 3)) for i in range(5)]


def test_a_shard_that_was_relabelled_in_place_is_noticed(tmp_path: Path) -> None:
    def written(first: int) -> str:
        return write_tar(tmp_path / "a.tar", [(f"{i}.cls", b"%d" % (i + first)) for i in range(4)])

    path = written(0)
    old = build_quietly(path)
    os.utime(written(0), ns=(1, 1))
    assert build_quietly(path, index=old).labels.tolist() == [0, 1, 2, 3]
    os.utime(written(3), ns=(2, 2))
    for label in ("cls", lambda key, files: int(key) + 3):
        with pytest.raises(MismatchError, match="other labels than when it was indexed: start a new index"):
            build_quietly(path, index=old, label=label)
    assert build_quietly(path, index=None).labels.tolist() == [3, 4, 5, 6]
    assert build_quietly(path, index=old, label=None).labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("extension", ["__key__", "__url__", "__local_path__"])
def test_a_file_under_a_name_of_webdatasets_own_is_refused(tmp_path: Path, extension: str) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.txt", b"x"), (f"b.{extension}", b"a")])
    with pytest.raises(UnsupportedError, match=f"extension '{extension}', which webdataset uses itself: rename it"):
        build_quietly(path)


def test_a_pipe_in_place_of_a_shard_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.tar")
    with pytest.raises(UnsupportedError, match=r"0\.tar is a pipe or a device, not a file"):
        build_quietly(tmp_path / "0.tar")


def test_a_pax_size_of_many_digits_is_refused(tmp_path: Path) -> None:
    body = b"size=" + b"9" * 5000 + b"\n"
    body = b"%d " % (len(body) + 5) + body
    pax, file = tarfile.TarInfo("x"), tarfile.TarInfo("a.txt")
    pax.type, pax.size = tarfile.XHDTYPE, len(body)
    (tmp_path / "a.tar").write_bytes(pax.tobuf() + body + bytes(-len(body) % 512) + file.tobuf() + bytes(1024))
    with pytest.raises(CorruptFileError):
        build_quietly(tmp_path / "a.tar")
