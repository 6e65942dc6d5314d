"""Several runs of one dataset, averaged: in memory at once, and from files by ranges of rows."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter, methodcaller
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prunesampler.errors import ArgumentError, MismatchError
from prunesampler.tables.agreement import in_sample, spearman
from prunesampler.tables.columns import floats, integers, json_object
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.parquet import to_arrow
from prunesampler.tables.score_file import ScoreFile, write_parts
from prunesampler.tables.score_table import ScoreTable

RANGE = 1_000_000
"""Rows of a file that are averaged at once."""

_TEXT = ("shard", "key")

_Array = npt.NDArray[Any]
_Range = tuple[int, int]
_Runs = Sequence[ScoreTable] | Sequence[ScoreFile]
_Map = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


def merge(tables: Sequence[ScoreTable]) -> ScoreTable:
    """Average runs that measured the same dataset in the same way, such as those of several seeds.

    One run is noisy: published EL2N is a mean over ten (Paul et al. 2021), published forgetting a sum over five
    (Toneva et al. 2019). The result has the rows of all runs; a run that did not see a row does not count for it.

    - A score is the mean of the runs that have a value; a table that was merged before counts as often as it has runs.
    - ``<score>_spread`` is the greatest of the runs, so that ``keep="auto"`` removes what each of them found stable.
    - ``forgetting_events`` and ``presentations`` are sums; ``learned`` means in any run, so a row that none has
      learned stays the hardest by forgetting.
    - ``suggested_label`` is that of most of the runs, of equally many the first; ``signed_confidence`` has the mean of
      its magnitudes and the sign of its mean.
    - ``labels`` come from the first table that has one; ``keys`` and ``shards`` too, if every row has one.

    Args:
        tables: at least two, each of another run.

    Returns:
        A table whose ``protocols`` hold the sum of ``runs``, the mean of ``split_half``, as ``between_runs`` the mean
        Spearman correlation between two of the tables, and what is equal in all (``epochs``, where it is).
        ``provenance["merged_from"]`` lists the ``digest`` and ``provenance`` of each.

    Raises:
        ArgumentError: fewer than two tables, a run that comes twice, other columns, or another kind of protocol.
        MismatchError: other datasets, by size, fingerprint, labels or keys.

    >>> runs = [ScoreTable({"el2n": [0.25, 1.0, float("nan")]}), ScoreTable({"el2n": [0.75, 0.5, 0.25]})]
    >>> merged = merge(runs)
    >>> merged.scores["el2n"]
    array([0.5 , 0.75, 0.25], dtype=float32)
    >>> merged.protocols
    {'el2n': {'runs': 2, 'between_runs': -1.0}}
    """
    if not isinstance(tables, Sequence) or not all(isinstance(table, ScoreTable) for table in tables):
        raise ArgumentError("tables", "must be at least two ScoreTables", tables)
    _check_runs(tables)
    identity = common_dataset(tables)
    rows = identity["rows"]
    return ScoreTable(**_average(tables, rows), **identity, **_provenance(tables, _sample(tables, rows)))


def merge_files(run: _Map, paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> ScoreFile:
    """Write the file that :func:`merge` of these files would save, from a million rows of each at once."""
    files: list[ScoreFile] = list(run(ScoreFile.open, [os.fspath(path) for path in paths]))
    list(run(ScoreFile.verify, files))
    _check_runs(files)
    num_rows, fingerprint = _common_identity(files)
    ranges = [(start, min(start + RANGE, num_rows)) for start in range(0, num_rows, RANGE)]
    lengths, samples, absent = zip(*run(functools.partial(_first_look, files), ranges), strict=True)
    sample = {
        name: [np.concatenate(parts) for parts in zip(*(each[name] for each in samples), strict=True)]
        for name in files[0].directions
    }
    found = {name: kind for file in files for name, kind in file.header.types.items()}
    first = [name for name in files[0].column_names if name not in ("row", "label", *_TEXT)]
    text = [name for name in _TEXT if not any(name in names for names in absent)]
    types = {name: found[name] for name in ("row", "label", *first, *text) if name in found}
    metadata = {"kind": "scores", "num_rows": num_rows, "fingerprint": fingerprint}
    metadata |= {name: json_object(name, value) for name, value in _provenance(files, sample).items()}

    def read(columns: Sequence[str]) -> Iterator[pa.Table]:
        return (part for part in run(functools.partial(_merged_range, files, columns), ranges) if len(part))

    return ScoreFile(write_parts(out, metadata, types, sum(lengths), read))


def _check_runs(tables: _Runs) -> None:
    """Refuse what is not several runs, measured alike."""
    if len(tables) < 2:
        raise ArgumentError("tables", "must be at least two ScoreTables", tables)
    sources: set[str] = set()
    for number, table in enumerate([*tables], 1):
        found = set(_sources(table.digest, table.provenance))
        if found & sources:
            raise ArgumentError("tables", "must not hold a run twice", f"one as number {number} that came before")
        sources |= found
    for number, table in enumerate(tables[1:], 2):
        _check_same("scores and directions", _columns(tables[0]), _columns(table), number)
        _check_same("kinds of protocol", _kinds(tables[0]), _kinds(table), number)


# -- a range of rows ---------------------------------------------------------------------------------------------


def _average(tables: Sequence[ScoreTable], rows: _Array) -> dict[str, Any]:
    """The columns of averages and sums of all ``rows`` that stand in any table, as arguments of a ScoreTable."""
    laid_out = functools.partial(_laid_out, rows, tables)
    first, scores = tables[0], {}
    for name in first.scores:
        measured = [_protocol(table, name) for table in tables]
        columns = laid_out(methodcaller("column", name), np.nan)
        spread = "spread_of" in measured[0]
        scores[name] = np.fmax.reduce(columns) if spread else _mean(columns, [each["runs"] for each in measured])
    counts: dict[str, Any] = {}
    if first.forgetting_events is not None:
        counts["forgetting_events"] = _total(laid_out(_seen_events, -1))
    if first.learned is not None:
        counts["learned"] = np.logical_or.reduce(laid_out(attrgetter("learned"), False))
    if first.presentations is not None:
        counts["presentations"] = _total(laid_out(attrgetter("presentations"), 0))
    for name, missing, combine in (
        ("suggested_label", -1, _most_frequent),
        ("signed_confidence", np.nan, _mean_answer),
    ):
        having = [table for table in tables if getattr(table, name) is not None]
        if getattr(first, name) is not None:
            counts[name] = combine(_laid_out(rows, having, attrgetter(name), missing))
    return {"scores": scores, **counts}


def _sample(tables: Sequence[ScoreTable], rows: _Array) -> dict[str, list[_Array]]:
    """Of each score the values by which the runs are compared, one column a run."""
    sample = in_sample(rows, tables[0].num_rows)
    return {
        name: [column[sample] for column in _laid_out(rows, tables, methodcaller("column", name), np.nan)]
        for name in tables[0].directions
    }


def _first_look(files: Sequence[ScoreFile], rows: _Range) -> tuple[int, dict[str, list[_Array]], set[str]]:
    """How many rows a range has, what is compared, and which columns of text lack a value; refuses other datasets."""
    tables = [file.range(rows, file.column_names[1:]) for file in files]
    identity = common_dataset(tables)
    absent = {name for name in _TEXT if identity[f"{name}s"] is None}
    return len(identity["rows"]), _sample(tables, identity["rows"]), absent


def _merged_range(files: Sequence[ScoreFile], columns: Sequence[str], rows: _Range) -> pa.Table:
    """Some columns of the averages."""
    read = {*columns, "presentations"} if "forgetting_events" in columns else {*columns}
    tables = [file.range(rows, [name for name in file.column_names[1:] if name in read]) for file in files]
    identity = common_dataset(tables)
    length, merged = len(identity["rows"]), _average(tables, identity["rows"])
    labels = np.full(length, -1, np.int32) if identity["labels"] is None else identity["labels"]
    found: dict[str, Any] = {"row": identity["rows"], "label": labels}
    found |= {"shard": identity["shards"], "key": identity["keys"]}
    found |= {name: floats(name, values, length) for name, values in merged.pop("scores").items()}
    for name, values in merged.items():
        if name != "learned":
            values = (
                floats(name, values, length) if values.dtype.kind == "f" else integers(name, values, length, lowest=-1)
            )
        found[name] = values
    return pa.table({name: to_arrow(found[name]) for name in columns})


def _laid_out(
    rows: _Array, tables: Sequence[ScoreTable], column: Callable[[ScoreTable], Any], missing: object
) -> list[_Array]:
    """The same column of each table, with ``missing`` in the rows that the table does not have."""

    def of(table: ScoreTable) -> _Array:
        values: _Array = column(table)
        if len(values) == len(rows):
            return values
        full = np.full(len(rows), missing, values.dtype)
        full[np.searchsorted(rows, table.rows)] = values
        return full

    return [of(table) for table in tables]


def _mean(columns: list[_Array], runs: list[int]) -> _Array:
    total, weight = np.zeros(len(columns[0])), np.zeros(len(columns[0]))
    for column, count in zip(columns, runs, strict=True):
        has = ~np.isnan(column)
        total[has] += column[has] * float(count)
        weight[has] += count
    mean: _Array = np.divide(total, weight, out=np.full(len(total), np.nan), where=weight > 0)
    return mean


def _total(columns: list[_Array]) -> npt.NDArray[np.int64]:
    """The sum of the counts that are there; −1 where none is."""
    total = np.full(len(columns[0]), -1)
    for column in columns:
        has = column >= 0
        total[has] = np.maximum(total[has], 0) + column[has]
    return total


def _most_frequent(columns: list[_Array]) -> _Array:
    """Of each row the value that most columns have, of equally many the first; −1 counts for nothing."""
    found, most = columns[0], np.zeros(len(columns[0]), np.int64)
    for column in columns:
        count = np.sum([column == other for other in columns], axis=0) * (column >= 0)
        found, most = np.where(count > most, column, found), np.maximum(count, most)
    return found


def _mean_answer(columns: list[_Array]) -> _Array:
    runs = [1] * len(columns)
    return np.copysign(_mean([np.abs(column) for column in columns], runs), _mean(columns, runs))


def _seen_events(table: ScoreTable) -> Any:
    events: Any = table.forgetting_events
    return events if table.presentations is None else np.where(table.presentations > 0, events, np.int32(-1))


# -- what is said of the columns ---------------------------------------------------------------------------------


def _provenance(tables: _Runs, sample: Mapping[str, list[_Array]]) -> dict[str, Any]:
    """What the merged table says of its columns, as arguments of a ScoreTable."""
    protocols: dict[str, dict[str, Any]] = {}
    for name in tables[0].directions:
        measured = [_protocol(table, name) for table in tables]
        protocols[name] = measured[0] if "spread_of" in measured[0] else _merged_protocol(measured, sample[name])
    for name, protocol in protocols.items():
        if spread_of := protocol.get("spread_of"):
            protocols[name] = {**protocols.get(spread_of, {}), "spread_of": spread_of}
    return {
        "directions": tables[0].directions,
        "protocols": protocols,
        "provenance": {"merged_from": [{"digest": each.digest, "provenance": each.provenance} for each in tables]},
    }


def _check_same(what: str, first: dict[str, Any], other: dict[str, Any], number: int) -> None:
    for name in {**first, **other}:
        if first.get(name) != other.get(name):
            found = f"{name}: {first.get(name)} in number 1, {other.get(name)} in number {number}"
            raise ArgumentError("tables", f"must have the same {what}", found)


def _sources(digest: str, provenance: Mapping[str, Any]) -> Iterator[str]:
    """The digest of a table and, where it was merged, those of all that are in it."""
    yield digest
    merged = provenance.get("merged_from")
    for source in merged if isinstance(merged, list) else ():
        found = source if isinstance(source, dict) else {}  # it may be somebody else's, of another form
        inner = found.get("digest"), found.get("provenance")
        if isinstance(inner[0], str) and isinstance(inner[1], dict):
            yield from _sources(inner[0], inner[1])


def _columns(table: Any) -> dict[str, Any]:
    counts = [name for name in ("learned", "presentations") if name in table.column_names]
    return {**table.directions, **dict.fromkeys(counts, "held")}


def _kinds(table: Any) -> dict[str, Any]:
    kinds = ("kind", "reduction", "spread_of")
    return {name: tuple(_protocol(table, name).get(kind) for kind in kinds) for name in table.directions}


def _protocol(table: Any, name: str) -> dict[str, Any]:
    found = table.protocols.get(name)
    protocol = {"runs": 1, **(found if isinstance(found, dict) else {})}
    if type(protocol["runs"]) is not int or not 1 <= protocol["runs"] < 2**31:
        raise ArgumentError("tables", f"must say in protocols[{name!r}] how many runs, an int >= 1", protocol["runs"])
    if not isinstance(protocol.get("spread_of", ""), str):
        raise ArgumentError("tables", f"must name in protocols[{name!r}] a score as spread_of", protocol["spread_of"])
    return protocol


def _merged_protocol(protocols: list[dict[str, Any]], sample: list[_Array]) -> dict[str, Any]:
    first, *others = protocols
    merged = {key: value for key, value in first.items() if all(key in p and p[key] == value for p in others)}
    merged["runs"] = sum(protocol["runs"] for protocol in protocols)
    halves = [half for protocol in protocols if isinstance(half := protocol.get("split_half"), float)]
    correlations = (spearman(*pair) for pair in itertools.combinations(sample, 2))
    between = [value for value in correlations if value == value]
    for name, found in (("split_half", halves), ("between_runs", between)):
        merged.pop(name, None)
        if found:
            merged[name] = float(np.mean(found))
    return merged


# -- the dataset -------------------------------------------------------------------------------------------------


def common_dataset(files: Sequence[ScoreTable | Coreset]) -> dict[str, Any]:
    """What several tables, or coresets, say about the one dataset that they belong to; MismatchError of different ones.

    ``num_rows``, ``fingerprint`` (of the first that has one), ``rows`` (of any of them, ascending), and in their order
    ``labels``, ``keys`` and ``shards``, None where they are not known.
    """
    num_rows, fingerprint = _common_identity(files)
    rows = functools.reduce(_union, (file.rows for file in files))
    labels = _first_known("label", rows, [_labels(file) for file in files])
    return {
        "num_rows": num_rows,
        "fingerprint": fingerprint,
        "rows": rows,
        "labels": None if labels is None else labels.fill_null(-1).to_numpy(),
        "keys": _on_every_row(_first_known("key", rows, [(file.rows, file.key_column) for file in files])),
        "shards": _on_every_row(_first_known("shard", rows, [(file.rows, file.shard_column) for file in files])),
    }


def _common_identity(files: Sequence[Any]) -> tuple[int, str | None]:
    """The number of rows and the fingerprint that several files share."""
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
    return first if np.array_equal(first, second) else np.union1d(first, second)


def _mismatch(difference: str) -> MismatchError:
    return MismatchError(f"different datasets: {difference}")


def _labels(file: ScoreTable | Coreset) -> tuple[_Array, _Array | None]:
    labels = getattr(file, "labels", None)
    return (file.rows, None) if labels is None else (file.rows[labels >= 0], labels[labels >= 0])


def _first_known(name: str, rows: _Array, columns: Sequence[tuple[_Array, Any]]) -> Any:
    """For each row the value of the first column that has one, null where none has; None if there are no columns."""
    import pyarrow.compute as pc  # takes a third of the time that importing attach takes

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
