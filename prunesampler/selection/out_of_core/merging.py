"""Several runs of one dataset, averaged block by block."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from prunesampler.errors import MismatchError
from prunesampler.selection.out_of_core.engine import Blocks, Engine
from prunesampler.selection.out_of_core.ranks import between
from prunesampler.selection.out_of_core.reading import Header, Range, headers, ranges, table_of
from prunesampler.tables.columns import json_object
from prunesampler.tables.dataset import common_dataset, common_identity
from prunesampler.tables.merge import check_runs, merged_columns, merged_provenance
from prunesampler.tables.parquet import ROW_GROUP, Parts, content_digest, from_arrow, to_arrow, write_parts
from prunesampler.tables.score_table import ScoreTable

__all__ = ["merge", "written"]


def merge(engine: Engine, paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Header:
    """Write the file that :func:`prunesampler.merge` of these files would save, to the byte.

    Args:
        engine: what does the work; the files are read where it runs.
        paths: at least two files of scores, each of another run.
        out: the file of the averages, written here.

    Returns:
        What it says of itself.

    Raises:
        OSError: a file cannot be read, or ``out`` cannot be written.
        ArgumentError, MismatchError: as :func:`prunesampler.merge` does.
        CorruptFileError: a file is damaged.
    """
    files = headers(engine, paths)
    check_runs(files, Header)
    num_rows, fingerprint = common_identity(files)
    for name in ("label", "key", "shard"):
        _check_types(name, [file.types.get(name) for file in files])
    blocks = ranges(num_rows)
    merged = engine.map(functools.partial(_merged_block, files), blocks).held()
    metadata = {
        "kind": "scores",
        "num_rows": num_rows,
        "fingerprint": fingerprint,
        **{
            name: json_object(name, value)
            for name, value in merged_provenance(files, functools.partial(between, engine, files, blocks)).items()
        },
    }
    types, length = _types(merged)
    return written(merged, types, length, metadata, out)


def _types(blocks: Blocks) -> tuple[dict[str, str], int]:
    """Columns and rows of a table; a column of text or keys that lacks a value anywhere is left out."""
    types: dict[str, str] = {}
    length, absent = 0, set()
    for part in blocks.parts():
        length += len(part)
        types.update({field.name: str(field.type) for field in part.schema})
        absent |= {name for name in ("shard", "key") if name in types and part[name].null_count}
    return {name: kind for name, kind in types.items() if name not in absent}, length


def written(
    blocks: Blocks,
    types: dict[str, str],
    length: int,
    metadata: dict[str, Any],
    out: str | os.PathLike[str],
    proof: Blocks | None = None,
) -> Header:
    """Write blocks as one file of columns of these types, unless reading ``proof``, which has no rows, raises."""

    def values(name: str) -> Iterator[Any]:
        for part in blocks.parts([name]):
            yield from_arrow(part[name])

    digest = content_digest(metadata, {name: Parts(length, functools.partial(values, name)) for name in types})
    parts = [blocks.parts(list(types), rows=ROW_GROUP), *([] if proof is None else [proof.parts()])]
    write_parts(out, metadata, digest, itertools.chain(*parts))
    return Header(os.fspath(out), digest, length, types, metadata, -(-length // ROW_GROUP))


def _check_types(name: str, types: Sequence[str | None]) -> None:
    held = [(number, kind) for number, kind in enumerate(types, 1) if kind is not None]
    for number, kind in held:
        if kind != held[0][1]:
            raise MismatchError(f"different datasets: {name}s are {held[0][1]} in one, {kind} in number {number}")


def _merged_block(files: Sequence[Header], rows: Range) -> pa.Table:
    tables = [table for file in files if (table := table_of(file, rows)) is not None]
    if not tables:
        return pa.table({})
    identity = common_dataset(tables)
    columns: dict[str, Any] = ScoreTable(
        **merged_columns(tables, identity["rows"]),
        **identity,
        directions=tables[0].directions,  # type: ignore[arg-type]
    )._columns()
    types = {name: kind for file in files for name, kind in file.types.items()}
    length = len(identity["rows"])
    return pa.table(
        {
            name: to_arrow(columns[name]) if name in columns else pa.nulls(length, _TYPES[types[name]])
            for name in ("row", "label", *tables[0].scores, *_COUNTS)
            if name in types
        }
    )


_COUNTS = ("forgetting_events", "learned", "presentations", "shard", "key")
_TYPES = {"int32": pa.int32(), "int64": pa.int64(), "large_string": pa.large_string(), "string": pa.large_string()}
