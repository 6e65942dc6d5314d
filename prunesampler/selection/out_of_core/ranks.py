"""Rank correlations of columns that are never held whole."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from prunesampler.selection.out_of_core.engine import Blocks, Engine
from prunesampler.selection.out_of_core.reading import Header, Range, table_of
from prunesampler.tables.agreement import correlation, exact_dot

__all__ = ["between"]

_Edges = dict[float, tuple[int, int]]  # of a value that begins or ends a part: rows below it, and rows that have it


def between(engine: Engine, files: Sequence[Header], blocks: Sequence[Range], name: str) -> list[float]:
    """Spearman's rank correlation of one score between each two files, to the bit as ``spearman`` of it whole.

    Args:
        engine: what does the work.
        files: at least two, each with this score.
        blocks: that hold all rows of the files.
        name: of the score.
    """
    found = []
    for first, second in itertools.combinations(files, 2):
        pairs = engine.map(functools.partial(_pairs, first, second, name), blocks).held()
        total = sum(int(part["count"].to_numpy().sum()) for part in pairs.parts(["count"]))
        if not total:
            found.append(float("nan"))
            continue
        for column in ("a", "b"):
            pairs = pairs.sorted(column)
            pairs = pairs.map(functools.partial(_ranked, column, _edges(pairs, column), total))
        sums = [each for part in pairs.map(_products).parts() for each in part.to_pylist()]
        found.append(correlation(*(sum(int(each[name]) for each in sums) for name in ("xy", "xx", "yy"))))
    return found


def _pairs(first: Header, second: Header, name: str, rows: Range) -> pa.Table:
    """The pairs of values in a block, and how often each comes: one sort key may be that of most rows."""
    a, b = table_of(first, rows), table_of(second, rows)
    columns = [np.empty(0, np.float32)] * 2
    if a is not None and b is not None:
        _, left, right = np.intersect1d(a.rows, b.rows, assume_unique=True, return_indices=True)
        columns = [a.column(name)[left] + np.float32(0), b.column(name)[right] + np.float32(0)]  # −0 is 0
    both = ~(np.isnan(columns[0]) | np.isnan(columns[1]))
    bits, counts = np.unique(np.stack([column[both] for column in columns], axis=1).view(np.uint64), return_counts=True)
    values = bits.view(np.float32).reshape(-1, 2)
    return pa.table({"a": values[:, 0].copy(), "b": values[:, 1].copy(), "count": counts})


def _edges(pairs: Blocks, column: str) -> _Edges:
    edges: _Edges = {}
    before = 0
    for part in pairs.map(functools.partial(_ends, column)).parts():
        for first, last, starts, ends, total in zip(*part.to_pydict().values(), strict=True):
            below, count = edges.get(first, (before, 0))
            edges[first] = below, count + starts
            if last != first:
                edges[last] = before + total - ends, ends
            before += total
    return edges


def _ends(column: str, part: pa.Table) -> pa.Table:
    values, counts = part[column].to_numpy(), part["count"].to_numpy()
    starts, ends = (int(counts[values == value].sum()) for value in (values[0], values[-1]))
    ends_ = {"first": [float(values[0])], "last": [float(values[-1])]}
    return pa.table({**ends_, "starts": [starts], "ends": [ends], "total": [int(counts.sum())]})


def _ranked(column: str, edges: _Edges, total: int, part: pa.Table) -> pa.Table:
    """The part with twice the distance from the middle rank in the place of a column's values."""
    values, first = np.unique(part[column].to_numpy(), return_index=True)
    counts = np.add.reduceat(part["count"].to_numpy(), first)
    before, counts[0] = edges[float(values[0])]
    counts[-1] = edges[float(values[-1])][1]
    below = before + np.cumsum(counts) - counts
    ranks = np.repeat(2 * below + counts - total, np.diff(first, append=len(part)))
    return part.set_column(part.schema.get_field_index(column), column, pa.array(ranks))


def _products(part: pa.Table) -> pa.Table:
    a, b, count = (part[name].to_numpy() for name in ("a", "b", "count"))
    sums = {"xy": exact_dot(a * count, b), "xx": exact_dot(a * count, a), "yy": exact_dot(b * count, b)}
    return pa.table({name: [str(each)] for name, each in sums.items()})  # longer than 64 bits
