"""The one dataset that several files belong to."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prunesampler.errors import MismatchError
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.score_table import ScoreTable

__all__ = ["common_dataset", "common_identity"]

_Array = npt.NDArray[Any]


def common_dataset(files: Sequence[ScoreTable | Coreset]) -> dict[str, Any]:
    """What several tables, or coresets, say about the one dataset that they belong to.

    Args:
        files: at least one.

    Returns:
        ``num_rows``, ``fingerprint`` (of the first that has one), ``rows`` (of any of them, ascending), and in their
        order ``labels``, ``keys`` and ``shards``, None where they are not known.

    Raises:
        MismatchError: they belong to different datasets.

    >>> tables = [ScoreTable({"el2n": [0.5, 1.0]}, labels=labels) for labels in ([1, -1], None, [-1, 0])]
    >>> common_dataset(tables)["labels"]
    array([1, 0], dtype=int32)
    """
    num_rows, fingerprint = common_identity(files)
    rows = functools.reduce(_union, (file.rows for file in files))
    labels = _first_known("label", rows, [_labels(file) for file in files])
    return {
        "num_rows": num_rows,
        "fingerprint": fingerprint,
        "rows": rows,
        "labels": None if labels is None else pc.fill_null(labels, -1).to_numpy(),
        "keys": _on_every_row(_first_known("key", rows, [(file.rows, file.key_column) for file in files])),
        "shards": _on_every_row(_first_known("shard", rows, [(file.rows, file.shard_column) for file in files])),
    }


def common_identity(files: Sequence[Any]) -> tuple[int, str | None]:
    """The number of rows and the fingerprint that several files share.

    Args:
        files: whatever has ``num_rows`` and ``fingerprint``.

    Raises:
        MismatchError: they belong to different datasets.
    """
    first = files[0]
    fingerprint = first.fingerprint
    for number, file in enumerate(files[1:], 2):
        if file.num_rows != first.num_rows:
            raise _mismatch(f"number 1 has {first.num_rows} rows, number {number} has {file.num_rows}")
        if None not in (fingerprint, file.fingerprint) and file.fingerprint != fingerprint:
            raise _mismatch(f"number {number} has the fingerprint {file.fingerprint}, an earlier one {fingerprint}")
        fingerprint = fingerprint or file.fingerprint
    return first.num_rows, fingerprint


def _union(first: _Array, second: _Array) -> _Array:
    """Of ascending rows; numpy's own takes many times as long where both are the same."""
    if np.array_equal(first, second):
        return first
    both = np.sort(np.concatenate([first, second]), kind="stable")
    union: _Array = both[np.append(True, both[1:] != both[:-1])]
    return union


def _mismatch(difference: str) -> MismatchError:
    return MismatchError(f"different datasets: {difference}")


def _labels(file: ScoreTable | Coreset) -> tuple[_Array, _Array | None]:
    labels = getattr(file, "labels", None)
    return (file.rows, None) if labels is None else (file.rows[labels >= 0], labels[labels >= 0])


def _first_known(name: str, rows: _Array, columns: Sequence[tuple[_Array, Any]]) -> Any:
    """For each row the value of the first column that has one, null where none has; None if there are no columns."""
    pool: list[Any] = []
    source, length = np.full(len(rows), -1), 0
    for number, (its_rows, values) in enumerate(columns, 1):
        if values is None:
            continue
        values, places = pa.array(values), np.searchsorted(rows, its_rows)
        if pool and pool[0].type != values.type:
            raise _mismatch(f"{name}s are {pool[0].type} in one, {values.type} in number {number}")
        known = source[places] >= 0
        if known.any():
            earlier, again = pa.chunked_array(pool).take(source[places[known]]), values.filter(known)
            if (at := pc.index(pc.not_equal(earlier, again), True).as_py()) >= 0:
                raise _mismatch(
                    f"row {its_rows[known][at]} has the {name} {again[at].as_py()!r} in number {number}, "
                    f"{earlier[at].as_py()!r} in an earlier one"
                )
        source[places[~known]] = length + np.arange(len(places) - int(known.sum()))
        pool.append(values.filter(~known))
        length += len(pool[-1])
    return pa.concat_arrays(pool).take(pa.array(source, mask=source < 0)) if pool else None


def _on_every_row(column: Any) -> Any:
    return None if column is None or column.null_count else column
