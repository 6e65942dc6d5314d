"""Several runs of one dataset, averaged."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter, methodcaller
from typing import Any

import numpy as np
import numpy.typing as npt

from prunesampler.errors import ArgumentError
from prunesampler.tables.agreement import spearman
from prunesampler.tables.dataset import common_dataset
from prunesampler.tables.score_table import ScoreTable

__all__ = ["check_runs", "merge", "merged_columns", "merged_provenance"]

_Array = npt.NDArray[Any]


def merge(tables: Sequence[ScoreTable]) -> ScoreTable:
    """Average runs that measured the same dataset in the same way, such as those of several seeds.

    One run is noisy: published EL2N is a mean over ten (Paul et al. 2021), published forgetting a sum over five
    (Toneva et al. 2019). The result has the rows of all runs; a run that did not see a row does not count for it.

    - A score is the mean of the runs that have a value; a table that was merged before counts as often as it has runs.
    - ``<score>_spread`` is the greatest of the runs, so that ``keep="auto"`` removes what each of them found stable.
    - ``forgetting_events`` and ``presentations`` are sums; ``learned`` means in any run, so a row that none has
      learned stays the hardest by forgetting.
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
    check_runs(tables if isinstance(tables, Sequence) else [], ScoreTable)
    identity = common_dataset(tables)

    def between(name: str) -> list[float]:
        columns = _laid_out(identity["rows"], tables, methodcaller("column", name), np.nan)
        return [spearman(*pair) for pair in itertools.combinations(columns, 2)]

    return ScoreTable(**merged_columns(tables, identity["rows"]), **identity, **merged_provenance(tables, between))


def check_runs(tables: Sequence[Any], kind: type) -> None:
    """Refuse what is not several runs, measured alike.

    Args:
        tables: ScoreTables, or what has their provenance and says which columns they have.
        kind: of each.

    Raises:
        ArgumentError: as :func:`merge` does.
    """
    if len(tables) < 2 or not all(isinstance(table, kind) for table in tables):
        raise ArgumentError("tables", "must be at least two ScoreTables", tables)
    sources: set[str] = set()
    for number, table in enumerate(tables, 1):
        found = set(_sources(table.digest, table.provenance))
        if found & sources:
            raise ArgumentError("tables", "must not hold a run twice", f"one as number {number} that came before")
        sources |= found
    for number, table in enumerate(tables[1:], 2):
        _check_same("scores and directions", _columns(tables[0]), _columns(table), number)
        _check_same("kinds of protocol", _kinds(tables[0]), _kinds(table), number)


def merged_columns(tables: Sequence[ScoreTable], rows: _Array) -> dict[str, Any]:
    """The columns of averages and sums, over the runs that have these rows, as arguments of a ScoreTable.

    Args:
        tables: the runs, or the same part of each.
        rows: int64, ascending, all that stand in any of them.
    """
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
    return {"scores": scores, **counts}


def merged_provenance(tables: Sequence[Any], between: Callable[[str], list[float]]) -> dict[str, Any]:
    """What the merged table says of its columns, as arguments of a ScoreTable.

    Args:
        tables: as of :func:`check_runs`.
        between: a score → the Spearman correlations between each two tables, NaN where there is none.
    """
    protocols: dict[str, dict[str, Any]] = {}
    for name in tables[0].directions:
        measured = [_protocol(table, name) for table in tables]
        protocols[name] = measured[0] if "spread_of" in measured[0] else _merged_protocol(measured, between(name))
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
    for source in provenance.get("merged_from", ()):
        yield from _sources(source["digest"], source["provenance"])


def _columns(table: Any) -> dict[str, Any]:
    counts = ("learned", "presentations")
    return {**table.directions, **{name: "held" for name in counts if getattr(table, name) is not None}}


def _kinds(table: Any) -> dict[str, Any]:
    kinds = ("kind", "reduction", "spread_of")
    return {name: tuple(_protocol(table, name).get(kind) for kind in kinds) for name in table.directions}


def _protocol(table: Any, name: str) -> dict[str, Any]:
    protocol = table.protocols.get(name)
    return {"runs": 1, **(protocol if isinstance(protocol, dict) else {})}


def _merged_protocol(protocols: list[dict[str, Any]], correlations: list[float]) -> dict[str, Any]:
    first, *others = protocols
    merged = {key: value for key, value in first.items() if all(key in p and p[key] == value for p in others)}
    merged["runs"] = sum(protocol["runs"] for protocol in protocols)
    halves = [protocol["split_half"] for protocol in protocols if "split_half" in protocol]
    between = [value for value in correlations if value == value]
    for name, found in (("split_half", halves), ("between_runs", between)):
        merged.pop(name, None)
        if found:
            merged[name] = float(np.mean(found))
    return merged


def _laid_out(
    rows: _Array, tables: Sequence[ScoreTable], column: Callable[[ScoreTable], Any], missing: object
) -> list[_Array]:
    """The same column of each table, with ``missing`` in the rows that the table does not have."""
    columns = []
    for table in tables:
        values = column(table)
        if len(table) < len(rows):
            full = np.full(len(rows), missing, values.dtype)
            full[np.searchsorted(rows, table.rows)] = values
            values = full
        columns.append(values)
    return columns


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


def _seen_events(table: ScoreTable) -> Any:
    events: Any = table.forgetting_events
    return events if table.presentations is None else np.where(table.presentations > 0, events, np.int32(-1))
