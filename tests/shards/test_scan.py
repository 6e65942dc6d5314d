from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from prunesampler.errors import CorruptFileError, UnsupportedError
from prunesampler.shards.scan import scan_shard
from prunesampler.shards.store import SCHEMA, key_digest, row_digest
from tests.helpers.shardfiles import delivered, write_shards, write_tar


def as_delivered(path: str, table: Any) -> list[dict[str, Any]]:
    """What webdataset should deliver, by the table alone."""
    content = Path(path).read_bytes()
    return [
        {
            "__key__": row["key"],
            "__url__": path,
            **{
                member["extension"].lower(): content[member["offset"] : member["offset"] + member["size"]]
                for member in row["members"]
            },
        }
        for row in table.to_pylist()
    ]


def test_the_samples_are_those_of_webdataset(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [50])
    shard, table = scan_shard(path)
    assert as_delivered(path, table) == delivered(path)
    assert table["label"].to_pylist() == [place % 10 for place in range(50)]
    assert table.schema == SCHEMA
    status = Path(path).stat()
    assert shard[:5] == (path, 50, status.st_size, status.st_mtime_ns, True)
    assert shard[5:] == (key_digest(table), row_digest(table))


def test_odd_samples(tmp_path: Path) -> None:
    files = [("../a.JPG", b"1"), ("../a.cls", b"1"), ("/b.seg.png", b""), ("README", b""), ("__meta__/c.txt", b"")]
    files += [("é/d.txt", b"d"), ("e.cls", b"-1"), ("e.txt", b""), (".hidden", b""), ("f.x.y.Z", b"f"), ("f.x.y", b"")]
    path = write_tar(tmp_path / "a.tar", files)
    _, table = scan_shard(path)
    assert as_delivered(path, table) == delivered(path)
    assert table["key"].to_pylist() == ["../a", "/b", "é/d", "e", "f"]
    assert table["label"].to_pylist() == [1, None, None, None, None]


def test_a_compressed_shard_has_the_same_rows(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [20])
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(Path(path).read_bytes()))
    (plain, rows), (shard, other) = scan_shard(path), scan_shard(str(packed))
    assert other.equals(rows)
    assert (plain.seekable, shard.seekable) == (True, False)
    assert (shard.keys, shard.digest) == (plain.keys, plain.digest)


@pytest.mark.parametrize("files", [[], [("README", b"?")]])
def test_no_samples(tmp_path: Path, files: list[tuple[str, bytes]]) -> None:
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
def test_what_webdataset_would_not_read_as_one_sample(tmp_path: Path, names: list[str], message: str) -> None:
    path = write_tar(tmp_path / "a.tar", [(name, b"1") for name in names])
    with pytest.raises(UnsupportedError, match=message):
        scan_shard(path)


def test_labels(tmp_path: Path) -> None:
    files = [("a.jpg", b"1"), ("a.CLS", b"7\n"), ("b.jpg", b"2"), ("b.class.txt", b"8"), ("c.cls", b"x" * 40)]
    path = write_tar(tmp_path / "a.tar", files[:4])
    assert scan_shard(path)[1]["label"].to_pylist() == [7, None]
    assert scan_shard(path, "class.txt")[1]["label"].to_pylist() == [None, 8]
    assert scan_shard(path, None)[1]["label"].to_pylist() == [None, None]
    assert scan_shard(path, lambda key, files: int(files["jpg"]))[1]["label"].to_pylist() == [1, 2]
    with pytest.raises(UnsupportedError, match="the label of sample 'c' must be an int"):
        scan_shard(write_tar(tmp_path / "b.tar", files))


def test_damage_names_the_shard(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [5])
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptFileError, match=r"000000.tar is cut short"):
        scan_shard(path)
