from __future__ import annotations

import ast
import dataclasses
import errno
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import prunesampler
from prunesampler.errors import ArgumentError, CorruptFileError, FileError, MismatchError, UnsupportedError, WriteError
from prunesampler.tables import parquet as files
from prunesampler.tables.parquet import (
    FORMAT,
    Parts,
    content_digest,
    group_starts,
    read_columns,
    read_group,
    read_header,
    to_arrow,
    verify,
    write_columns,
    write_parts,
)

METADATA = {"kind": "scores", "num_rows": 500, "fingerprint": "sha256:00", "protocols": {"el2n": {"epochs": 10}}}


def columns(n: int = 500) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    el2n = rng.random(n).astype(np.float32)
    el2n[::7] = np.nan
    return {
        "row": np.arange(n),
        "label": rng.integers(-1, 10, n).astype(np.int32),
        "el2n": el2n,
        "learned": rng.random(n) < 0.9,
        "shard": pa.array([f"train-{i // 100:04d}.tar" for i in range(n)], pa.large_string()),
        "key": pa.array([f"images/é{i:05d}.jpg" for i in range(n)], pa.large_string()),
    }


def strings(*values: str) -> pa.Array:
    return pa.array(values, pa.large_string())


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    if list(left) != list(right):
        return False
    return all(
        a.equals(right[name])
        if isinstance(a, pa.Array)
        else a.dtype == right[name].dtype and a.tobytes() == right[name].tobytes()
        for name, a in left.items()
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.parquet"
    write_columns(path, METADATA, columns())
    return path


def test_reading_a_file_never_runs_code_in_it() -> None:
    packages = {"cloudpickle", "dill", "joblib", "marshal", "shelve"}
    harmless = {"pickle.UnpicklingError", "pickle.PickleError", "pickle.dumps"}
    for source in Path(prunesampler.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.module is None or node.module.partition(".")[0] not in packages | {"pickle"}, source
            elif isinstance(node, ast.Import):
                assert not {alias.name.partition(".")[0] for alias in node.names} & packages, source
            elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("pickle."):
                between_ranks = {"pickle.loads"} if source.name == "ranks.py" else set()
                assert ast.unparse(node) in harmless | between_ranks, source
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load"):
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert options.get("weights_only") == "True" or options.get("allow_pickle") == "False", source


# -- reading what was written, and nothing else -------------------------------------------------------------------


def test_round_trip(path: Path) -> None:
    metadata, read = read_columns(path, "scores")
    assert metadata == METADATA
    assert same(read, columns())


def regions(raw: bytes) -> Iterator[tuple[str, int, int]]:
    """Where pages, the page index, our JSON and the rest of the footer lie."""
    footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    group = pq.ParquetFile(io.BytesIO(raw)).metadata.row_group(0)
    pages = max(
        group.column(i).data_page_offset + group.column(i).total_compressed_size for i in range(group.num_columns)
    )
    ours = raw.index(b'{"checksum"', footer)
    end = raw.index(b"}", raw.index(b'"protocols"', ours))
    yield "magic", 0, 4
    yield "pages", 4, pages
    yield "page index", pages, footer
    yield "footer", footer, ours
    yield "our JSON", ours, end
    yield "footer", end, len(raw) - 8
    yield "end", len(raw) - 8, len(raw)


def test_a_flipped_bit_anywhere_never_loads_as_something_else(path: Path) -> None:
    raw = path.read_bytes()
    metadata, expected = read_columns(path, "scores")
    rng = np.random.default_rng(1)
    refused: dict[str, list[bool]] = {}
    for name, start, stop in regions(raw):
        positions = range(start, stop) if stop - start < 500 else rng.choice(np.arange(start, stop), 500, replace=False)
        for position in positions:
            damaged = bytearray(raw)
            damaged[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            try:
                found_metadata, found = read_columns(path, "scores")
            except FileError:
                refused.setdefault(name, []).append(True)
            else:
                assert found_metadata == metadata
                assert same(found, expected), (name, position)
                refused.setdefault(name, []).append(False)
    assert set(refused) == {"magic", "pages", "page index", "footer", "our JSON", "end"}
    share = {name: np.mean(results) for name, results in refused.items()}
    assert share["our JSON"] == 1
    assert share["end"] == 1
    # The rest is page headers (statistics, and in older pyarrow their padding), which nothing of ours reads.
    assert share["pages"] > 0.8
    assert share["footer"] > 0.25


def test_what_is_cut_short_longer_or_not_ours_is_refused(path: Path) -> None:
    raw = path.read_bytes()
    for size in [*range(0, len(raw), 53), *range(len(raw) - 12, len(raw))]:
        path.write_bytes(raw[:size])
        with pytest.raises(CorruptFileError, match="damaged or cut short"):
            read_columns(path, "scores")
    for damaged in (raw + b"x", raw[:100] + bytes(400) + raw[500:], b"hello", raw + raw[:1000]):
        path.write_bytes(damaged)
        with pytest.raises(CorruptFileError):
            read_columns(path, "scores")
    for metadata in (None, {b"prunesampler": b"[1"}, {b"prunesampler": b"[1]"}):
        pq.write_table(pa.table({"row": [0, 1]}).replace_schema_metadata(metadata), path)
        with pytest.raises(CorruptFileError):
            read_columns(path, "scores")


def rewritten(path: Path, table: pa.Table, **changes: object) -> None:
    """Write a table with plain Parquet, our JSON changed."""
    ours = json.loads(pq.read_schema(path).metadata[b"prunesampler"]) | changes
    pq.write_table(table.replace_schema_metadata({b"prunesampler": json.dumps(ours).encode()}), path)


def test_edited_values_and_edited_metadata_are_refused(path: Path) -> None:
    table = pq.read_table(path)
    edits: list[tuple[pa.Table, dict[str, object]]] = [
        (table.slice(1), {}),
        (table.drop_columns(["el2n"]), {}),
        (table.rename_columns(["row", "label", "loss", "learned", "shard", "key"]), {}),
        (table.select(["label", "row", "el2n", "learned", "shard", "key"]), {}),
        (table.set_column(0, "row", pa.array(np.arange(500)[::-1])), {}),
        (table.set_column(5, "key", pa.array(["x"] * 500)), {}),
        (table.set_column(5, "key", pa.array([None] * 500, pa.string())), {}),
        (table.set_column(2, "el2n", table["el2n"].cast(pa.float64())), {}),
        (table.append_column("more", table["el2n"]), {}),
        (table, {"fingerprint": "sha256:01"}),
        (table, {"fingerprint": None}),
        (table, {"num_rows": 600}),
        (table, {"added": 1}),
        (table, {"library": "9.9"}),
        (table, {"digest": "sha256:00"}),
        (table, {"checksum": None}),
        (table, {"format": 0}),
        (table, {"format": True}),
    ]
    rewritten(path, table)
    assert same(read_columns(path, "scores")[1], columns()), "the same content in another encoding is sound"
    for edited, changes in edits:
        write_columns(path, METADATA, columns())
        rewritten(path, edited, **changes)
        with pytest.raises(CorruptFileError):
            read_columns(path, "scores")


def test_a_newer_format_is_refused_as_such(path: Path) -> None:
    rewritten(path, pq.read_table(path), format=FORMAT + 1)
    with pytest.raises(MismatchError, match="update prunesampler"):
        read_columns(path, "scores")


def test_a_missing_file_is_the_systems_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):  # a folder: of a run, without its file
        with pytest.raises(FileNotFoundError):
            read_columns(path, "scores")
    with pytest.raises(WriteError, match="none/a cannot be written: No such file"):
        write_columns(tmp_path / "none" / "a", METADATA, columns(3))


# -- the form on disk ---------------------------------------------------------------------------------------------


def test_encodings_checksums_and_index(path: Path) -> None:
    group = pq.ParquetFile(path).metadata.row_group(0)
    found = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert {column.compression for column in found.values()} == {"ZSTD"}
    for name, encoding in (
        ("row", "DELTA_BINARY_PACKED"),
        ("label", "DELTA_BINARY_PACKED"),
        ("el2n", "BYTE_STREAM_SPLIT"),
        ("key", "DELTA_BYTE_ARRAY"),
        ("shard", "RLE_DICTIONARY"),
    ):
        assert encoding in found[name].encodings
    assert all(column.has_offset_index for column in found.values())


def test_a_million_rows_are_small_and_in_row_groups_of_a_million(tmp_path: Path) -> None:
    n = 1_200_000
    rng = np.random.default_rng(0)
    confident = rng.random(n) ** 4 * np.sqrt(2)  # most rows are easy, as EL2N is after some epochs
    scores = {
        "row": np.arange(n),
        "el2n": confident.astype(np.float32),
        "forgetting_events": rng.poisson(1.5, n).astype(np.int32),
        "label": rng.integers(0, 10, n).astype(np.int32),
    }
    path = tmp_path / "a.parquet"
    write_columns(path, {"kind": "scores"}, scores)
    assert pq.ParquetFile(path).metadata.num_row_groups == 2
    assert path.stat().st_size / n < 4.85  # 3.74 of them for EL2N, whose mantissas are noise
    plain = tmp_path / "plain.parquet"
    pq.write_table(pa.table(scores), plain)
    assert path.stat().st_size < 0.5 * plain.stat().st_size
    assert same(read_columns(path, "scores")[1], scores)

    half = np.sort(rng.permutation(n)[: n // 2])
    write_columns(path, {"kind": "coreset"}, {"row": half})
    assert path.stat().st_size / len(half) < 0.3


# -- the digest ---------------------------------------------------------------------------------------------------


def test_the_digest_is_fixed_for_ever() -> None:
    found = content_digest(
        {"kind": "scores", "num_rows": 3},
        {
            "row": np.arange(3),
            "el2n": np.array([0.5, np.nan, 1], np.float32),
            "key": pa.array(["a", "", "é"], pa.large_string()),
        },
    )
    assert found == "sha256:0d642b316ece1a5ffbb964717408ea60a677c227db2b1f044009a25126ea92de"


def test_the_digest_sees_order_names_types_and_bounds_but_not_storage() -> None:
    four = np.arange(4)
    base = content_digest({"a": 1, "b": 2}, {"x": four, "y": four})
    assert content_digest({"b": 2, "a": 1}, {"x": four, "y": np.arange(8)[::2] // 2}) == base
    parts = Parts(4, lambda: iter([four[:3], four[3:]]))
    assert content_digest({"a": 1, "b": 2}, {"x": parts, "y": four}) == base
    others = [
        ({"a": 1, "b": 2}, {"x": four, "y": four[::-1]}),
        ({"a": 1, "b": 2}, {"y": four, "x": four}),
        ({"a": 1, "b": 2}, {"x": four, "z": four}),
        ({"a": 1, "b": 2}, {"x": four, "y": four.astype(np.int32)}),
        ({"a": 1, "b": 3}, {"x": four, "y": four}),
        ({"a": 1, "b": 2}, {"x": four}),
    ]
    assert len({base, *(content_digest(*other) for other in others)}) == 7
    text = pa.array(["zz", "ab", "c"], pa.large_string()).slice(1)
    found = [content_digest({}, {"k": column}) for column in (text, strings("ab", "c"), strings("a", "bc"))]
    assert found[0] == found[1] != found[2]


# -- row group by row group ---------------------------------------------------------------------------------------


@pytest.fixture
def grouped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of row groups of 200, 200 and 100 rows."""
    monkeypatch.setattr(files, "ROW_GROUP", 200)
    path = tmp_path / "grouped.parquet"
    write_columns(path, METADATA, columns())
    return path


def test_a_header_says_what_the_file_holds(grouped: Path) -> None:
    header = read_header(grouped, "scores")
    assert (header.length, header.groups, group_starts(header)) == (500, 3, [0, 200, 400, 500])
    assert header.metadata == METADATA
    assert header.digest == content_digest(METADATA, columns())
    assert header.types == {
        **{"row": "int64", "label": "int32", "el2n": "float", "learned": "bool"},
        **{"shard": "large_string", "key": "large_string"},
    }
    verify(header)


def test_row_groups_joined_are_the_columns(grouped: Path) -> None:
    header = read_header(grouped, "scores")
    parts = [read_group(header, number, ["el2n", "key"]) for number in range(3)]
    assert [list(part) for part in parts] == [["el2n", "key"]] * 3
    joined = {
        "el2n": np.concatenate([part["el2n"] for part in parts]),
        "key": pa.concat_arrays([part["key"] for part in parts]),
    }
    assert same(joined, {name: columns()[name] for name in joined})


def test_parts_written_one_at_a_time_make_the_same_file(grouped: Path, tmp_path: Path) -> None:
    table = pa.table({name: to_arrow(column) for name, column in columns().items()})
    pieces = (table.slice(start, 200) for start in (0, 200, 400))
    header = write_parts(tmp_path / "parts", METADATA, content_digest(METADATA, columns()), pieces)
    assert (tmp_path / "parts").read_bytes() == grouped.read_bytes()
    assert dataclasses.replace(read_header(tmp_path / "parts", "scores"), path=header.path) == header


def test_verification_sees_every_part_and_refuses_what_reading_refuses(grouped: Path) -> None:
    header = read_header(grouped, "scores")
    seen = []
    verify(header, lambda name, part: seen.append((name, len(part))))
    assert seen[:3] == [("row", 200), ("row", 200), ("row", 100)]

    def refuse(name: str, part: Any) -> None:
        raise ArgumentError(name, "must be another", part)

    with pytest.raises(CorruptFileError, match="row must be another"):
        verify(header, refuse)
    with pytest.raises(CorruptFileError, match="not what was written"):
        verify(dataclasses.replace(header, digest="sha256:00"))
    raw = bytearray(grouped.read_bytes())
    column = pq.ParquetFile(grouped).metadata.row_group(1).column(2)
    raw[column.data_page_offset + column.total_compressed_size - 9] ^= 1
    grouped.write_bytes(raw)
    for refused in (lambda: verify(header), lambda: read_group(header, 1, ["el2n"])):
        with pytest.raises(CorruptFileError, match=r"(?i)crc|checksum"):
            refused()
    assert len(read_group(header, 0, ["el2n"])["el2n"]) == 200


WANTS = [
    MemoryError("no room"),
    pa.ArrowMemoryError("malloc of size 8 failed"),
    OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.EACCES, "Permission denied"),
]


@pytest.mark.parametrize("want", WANTS, ids=lambda want: type(want).__name__ + str(getattr(want, "errno", "")))
@pytest.mark.parametrize("at", ["open", "read"])
def test_a_want_of_memory_or_handles_is_never_called_damage(
    path: Path, want: Exception, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise want

    monkeypatch.setattr(*((pq, "ParquetFile") if at == "open" else (pq.ParquetFile, "read_row_groups")), fail)
    with pytest.raises(MemoryError if isinstance(want, MemoryError) else OSError) as caught:
        read_columns(path, "scores")
    assert "damaged" not in str(caught.value)
    assert not isinstance(caught.value, FileError)


@pytest.mark.parametrize("error", [OSError("Corrupt page"), OSError(errno.EINVAL, "seek"), pa.ArrowInvalid("no")])
def test_what_the_content_causes_is_called_damage(
    path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", fail)
    with pytest.raises(CorruptFileError, match="is damaged or cut short"):
        read_columns(path, "scores")


def test_a_file_is_read_where_no_thread_can_be_started(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, plain = read_columns(path, "scores"), pq.ParquetFile.read_row_groups

    def without_threads(*args: Any, use_threads: bool = True, **options: Any) -> Any:
        if use_threads:
            raise pa.ArrowException("Unknown error: Failed to launch worker thread: Resource temporarily unavailable")
        return plain(*args, use_threads=False, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", without_threads)
    found = read_columns(path, "scores")
    assert found[0] == expected[0]
    assert same(found[1], expected[1])


def sealed(path: Path, table: pa.Table, **metadata: Any) -> Path:
    said = {"kind": "scores", "digest": "sha256:0", **metadata}
    pq.write_table(table.replace_schema_metadata(files.seal(said)), path, compression="zstd")
    return path


BOMBS = {
    "rows": (pa.table({"row": np.zeros(100_000, np.int64)}), {"num_rows": 3}, "100000 rows, of a dataset of 3"),
    "no number of rows": (pa.table({"row": np.arange(3)}), {"num_rows": "3"}, "of a dataset of '3'"),
    "a row group": (pa.table({"row": np.arange(1_000_001)}), {}, "row groups have other rows"),
    "a type": (pa.table({"row": [[1, 2]]}), {}, "is of type list"),
    "text": (pa.table({"key": pa.array(["a" * 10**6] * 200, pa.large_string())}), {}, "text would take more than"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_a_file_claims_is_bounded_before_it_is_read(path: Path, bomb: str) -> None:
    table, metadata, message = BOMBS[bomb]
    sealed(path, table, **metadata)
    with pytest.raises(CorruptFileError, match=message):
        read_columns(path, "scores")


def test_much_from_little_is_verified_in_parts_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_TEXT", 1000)
    sealed(path, pa.table({"row": np.zeros(100_000, np.int64)}))
    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", lambda *args, **options: 1 / 0)
    with pytest.raises(CorruptFileError, match="was damaged or edited"):
        read_columns(path, "scores")


def test_text_is_the_same_however_many_rows_are_decoded_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = strings(*(f"key {i % 7}" * (i % 5) for i in range(1000)))
    write_columns(path, {"kind": "scores"}, {"key": keys})
    for name, value in (("_BATCHES", 10**9), ("_BATCH_BYTES", 40), ("_BATCH_ROWS", 3)):
        monkeypatch.setattr(files, name, value)
        assert read_columns(path, "scores")[1]["key"].equals(keys)


def test_text_that_is_not_utf8_is_refused(path: Path) -> None:
    wrong = pa.LargeStringArray.from_buffers(1, *pa.array([b"\xff"], "large_binary").buffers()[1:])
    write_columns(path, {"kind": "scores"}, {"key": wrong})
    with pytest.raises(CorruptFileError, match="Invalid UTF8"):
        read_columns(path, "scores")


def test_a_file_that_is_written_anew_while_it_is_read_in_parts_is_refused(path: Path) -> None:
    header = read_header(path, "scores")
    write_columns(path, {"kind": "scores", "other": True}, columns(400))
    with pytest.raises(MismatchError, match="was written anew while it was read"):
        read_group(header, 0, ["row"])


def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for each in (tmp_path / "fifo", "/dev/null"):
        with pytest.raises(UnsupportedError, match="is a pipe or a device, not a file"):
            read_columns(each, "scores")
    (tmp_path / "scores.parquet").mkdir()
    with pytest.raises(IsADirectoryError):
        read_columns(tmp_path, "scores")
