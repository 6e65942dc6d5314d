from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prunesampler.errors import CorruptFileError, MismatchError
from prunesampler.shards import index_file
from prunesampler.shards.index_file import SCHEMA, FileRows, MemoryRows, Rows, Shard, key_digest, row_digest
from prunesampler.tables.parquet import seal, write_columns


def shard(url: str, count: int, first: int = 0) -> tuple[Shard, pa.Table]:
    rows = range(first, first + count)
    members, end = [], 0
    for i in rows:
        files = ("cls", end + 512, 1), ("Jpg", end + 1536, i)
        members.append([dict(zip(("extension", "offset", "size"), file, strict=True)) for file in files])
        end += 1536 + -(-i // 512) * 512
    labels = [None if i % 7 == 0 else i % 5 for i in rows]
    table = pa.table({"key": [f"k{i}" for i in rows], "members": members, "label": labels}, SCHEMA)
    return Shard(url, count, end + 1024, 5, count % 2 == 0, key_digest(table), row_digest(table)), table


def several(counts: list[int]) -> MemoryRows:
    firsts = np.cumsum([0, *counts])
    made = [shard(f"{n}.tar", count, int(firsts[n])) for n, count in enumerate(counts)]
    return MemoryRows([each for each, _ in made], [table for _, table in made])


def same(one: Rows, other: Rows) -> None:
    assert list(one.shards) == list(other.shards)
    for number in range(len(one.shards)):
        assert one.read(number).to_pydict() == other.read(number).to_pydict()
        assert one.read(number).schema == other.read(number).schema == SCHEMA
    labels = one.labels(), other.labels()
    np.testing.assert_array_equal(*labels)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(index_file, "_GROUP_ROWS", 10)
    monkeypatch.setattr(index_file, "_CACHED_GROUPS", 2)
    return tmp_path / "index.parquet"


def written(path: Path, rows: Rows) -> FileRows:
    index_file.write_index(path, rows, "sha256:f", rows.labels())
    return FileRows(path)


@pytest.mark.parametrize("counts", [[1], [4, 0, 5, 3, 30, 0, 1, 2], [0, 3], [25]])
def test_a_file_holds_what_memory_held(path: Path, counts: list[int]) -> None:
    rows = several(counts)
    found = written(path, rows)
    same(found, rows)
    for number in np.random.default_rng(0).integers(len(counts), size=40):
        assert found.read(int(number)).to_pydict() == rows.read(int(number)).to_pydict()
    same(pickle.loads(pickle.dumps(found)), rows)
    same(written(path, found), rows)  # over itself


def test_row_groups_hold_whole_shards(path: Path) -> None:
    written(path, several([4, 0, 5, 3, 30, 0, 1, 2]))
    metadata = pq.ParquetFile(path).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [12, 30, 3]


def test_only_the_row_group_of_a_shard_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(path, several([10, 10, 10]))
    groups: list[int] = []
    read = FileRows._read_group
    monkeypatch.setattr(FileRows, "_read_group", lambda self, group: groups.append(group) or read(self, group))
    found = FileRows(path)
    for number in (1, 1, 2, 1, 0, 2):
        found.read(number)
    assert groups == [1, 2, 0, 2]


def test_new_shards_follow_those_of_an_older_index(path: Path) -> None:
    older = written(path, several([4, 12]))
    new = [shard("new.tar", 3, 16), shard("newer.tar", 0, 19)]
    both = MemoryRows([each for each, _ in new], [table for _, table in new], older)
    assert [each.url for each in both.shards] == ["0.tar", "1.tar", "new.tar", "newer.tar"]
    same(both, MemoryRows(both.shards, several([4, 12, 3, 0])._tables))
    same(written(path, both), both)


def test_labels_are_none_where_no_row_has_one(path: Path) -> None:
    assert several([0]).labels() is None
    unlabelled = several([1])
    assert unlabelled.labels() is None
    assert written(path, unlabelled).labels() is None
    labels = written(path, several([3])).labels()
    assert labels is not None
    assert (labels.tolist(), labels.dtype, labels.flags.writeable) == ([-1, 1, 2], np.int32, False)


def test_other_libraries_read_the_file(path: Path) -> None:
    import duckdb
    import pandas
    import polars

    rows = written(path, several([4, 0, 9]))
    frame = pandas.read_parquet(path)
    assert frame["row"].tolist() == list(range(13))
    assert frame["shard"].tolist() == ["0.tar"] * 4 + ["2.tar"] * 9
    assert frame["key"].tolist() == rows.read(0)["key"].to_pylist() + rows.read(2)["key"].to_pylist()
    assert [list(members) for members in frame["members"]][12] == rows.read(2)["members"].to_pylist()[8]
    assert frame["label"].isna().sum() == 2
    query = f"select sum(member.size) from (select unnest(members) member from '{path}')"
    assert duckdb.sql(query).fetchall() == [(sum(range(13)) + 13,)]
    assert polars.read_parquet(path)["members"].list.len().to_list() == [2] * 13


def test_every_flipped_byte_is_noticed(path: Path) -> None:
    rows = several([4, 0, 9, 12])
    written(path, rows)
    content = path.read_bytes()
    unnoticed = 0
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            same(FileRows(path), rows)
            unnoticed += 1  # the values are as they were: statistics, names that only other readers look at
        except CorruptFileError:
            pass
    assert unnoticed < len(content) // 14
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(CorruptFileError):
            FileRows(path)


def test_edited_rows_are_noticed(path: Path) -> None:
    rows = several([4, 9])
    written(path, rows)
    table = pq.read_table(path)
    edited = table.set_column(2, "key", pa.array([f"x{i}" for i in range(13)], pa.large_string()))
    pq.write_table(edited, path)
    with pytest.raises(CorruptFileError, match=r"shard 0.tar is not what was written"):
        FileRows(path).read(1)
    edited = table.set_column(4, "label", pa.array([1] * 13, pa.int32()))
    pq.write_table(edited, path)
    with pytest.raises(CorruptFileError, match="its labels are not what was written"):
        FileRows(path).labels()
    pq.write_table(table.slice(1), path)
    with pytest.raises(CorruptFileError, match="its rows are not those of its shards"):
        FileRows(path)
    pq.write_table(table.drop_columns(["members"]), path)
    with pytest.raises(CorruptFileError):
        FileRows(path).read(0)


def test_what_is_not_an_index_is_refused(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileRows(path)
    path.write_bytes(b"tar")
    with pytest.raises(CorruptFileError):
        FileRows(path)
    write_columns(path, {"kind": "coreset"}, {"row": np.arange(2)})
    with pytest.raises(MismatchError, match="holds 'coreset', not 'shards'"):
        FileRows(path)
    write_columns(path, {"kind": "shards"}, {"row": np.arange(2)})
    with pytest.raises(CorruptFileError):
        FileRows(path)


def test_a_file_that_was_replaced_is_refused(path: Path) -> None:
    found = written(path, several([4, 12]))
    content = pickle.dumps(found)
    written(path, several([4, 12, 2]))
    assert found.read(1).num_rows == 12
    with pytest.raises(MismatchError, match="was written anew since this index was opened"):
        pickle.loads(content)


def test_digests_are_those_of_older_versions() -> None:
    members = [
        [{"extension": "cls", "offset": 512, "size": 1}, {"extension": "Jpg", "offset": 1536 + i, "size": i}]
        for i in range(3)
    ]
    columns = {"key": [f"k{i}" for i in range(3)], "members": members, "label": [None, 1, 2]}
    table = pa.table(columns, SCHEMA)
    assert key_digest(table).startswith("sha256:ff95ea2e086bb")
    assert row_digest(table).startswith("sha256:4dbe72bdcbc0e")


def test_a_file_that_is_cut_short_while_it_is_open_is_refused(path: Path) -> None:
    found = written(path, several([12, 3000]))
    with open(path, "r+b") as file:
        file.truncate(4)  # as another process does that copies a new one there
    with pytest.raises(CorruptFileError, match="damaged or cut short"):
        found.read(0)


def forged(path: Path, member: dict[str, Any] | None = None, drop: str = "", **said: Any) -> None:
    """A file with other content under digests that fit it."""
    rows = several([4])
    table = fits = rows.read(0)
    if member:
        members = table["members"].to_pylist()
        members[1][0].update(member)
        table = table.set_column(1, "members", pa.array(members, SCHEMA.field("members").type))
        fits = fits if None in (member.get("offset", 0), member.get("size", 0)) else table  # those have no digest
    record = rows.shards[0]._asdict() | {"keys": key_digest(fits), "digest": row_digest(fits)} | said
    shards = {name: [value] for name, value in record.items() if name != drop}
    metadata = {"kind": "shards", "fingerprint": "x", "shards": shards, "labels": None}
    metadata.pop(drop, None)
    pq.write_table(table.replace_schema_metadata(seal(metadata)), path)


FORGERIES: list[dict[str, Any]] = [
    *({"rows": rows} for rows in (2**70, "4", 4.0, -4, True, None, 5)),
    *({"url": url} for url in (5, None, ["a"])),
    *({"size": size} for size in (2**70, -2, "9", 9.0, 1000)),
    *({"modified": modified} for modified in (None, "1", 2**64)),
    *({"seekable": seekable} for seekable in (None, 1, "yes")),
    *({name: digest} for name in ("keys", "digest") for digest in (None, "", "sha256:0", "sha256:" + "0" * 64)),
    *({"drop": name} for name in ("labels", "shards", "url", "keys")),
    *({"member": {"size": size}} for size in (2**40, 2**63 - 1, -1, None, 1024)),
    *({"member": {"offset": offset}} for offset in (-512, 0, 2**63 - 1, None, 512)),
    *({"member": {"extension": extension}} for extension in (None, "__key__", "__url__")),
]


@pytest.mark.parametrize("forgery", FORGERIES, ids=str)
def test_what_a_file_says_is_checked_though_its_digests_fit(path: Path, forgery: dict[str, Any]) -> None:
    forged(path)
    assert FileRows(path).read(0).num_rows == 4
    forged(path, **forgery)
    with pytest.raises(CorruptFileError):
        FileRows(path).read(0)


@pytest.mark.parametrize("error", [pa.ArrowMemoryError("malloc failed"), OSError(24, "Too many open files")])
def test_a_want_of_memory_is_not_damage(path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    found = written(path, several([4]))

    def fail(*args: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(index_file, "bounded_batches", fail)
    monkeypatch.setattr(index_file, "_labels", fail)
    for read in (lambda: found.read(0), found.labels):
        with pytest.raises((MemoryError, OSError), match=r"malloc failed|Too many"):
            read()
