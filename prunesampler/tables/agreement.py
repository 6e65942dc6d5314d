"""How far two measurements of the same rows agree."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from prunesampler._random import hash64, mix
from prunesampler.errors import ArgumentError, check_number

SAMPLE = 2_000_000
"""Rows up to which rank correlations are exact; of more, about so many are compared."""

_SAMPLED = 0x73616D70  # keeps the sample apart from the keys that break ties
_Array = npt.NDArray[Any]


def in_sample(rows: npt.NDArray[np.int64], num_rows: int) -> npt.NDArray[np.bool_]:
    """Whether a row is in the sample of a dataset's rows that ranks are compared on: all, or :data:`SAMPLE` of them."""
    if num_rows <= SAMPLE:
        return np.ones(len(rows), np.bool_)
    return hash64(_SAMPLED, rows) < np.uint64(SAMPLE * 2**64 // num_rows)


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Spearman's rank correlation over the rows that have a value in both; equal values share their mean rank.

    It is exact for up to 2,000,000 rows. Of more rows a random sample of about this size is compared, the same one
    each time, so that the standard error is below 0.001.

    ``a`` and ``b`` are (N,), NaN where a row has no value; infinite ones rank at the ends. The result is NaN where
    fewer than two rows have both, or where either is the same for all of them.
    """
    left, right = _in_both(a, b)
    if len(left) > SAMPLE:
        sample = in_sample(np.arange(len(left)), len(left))
        left, right = left[sample], right[sample]
    left, right = _centred_ranks(left), _centred_ranks(right)
    scale = math.sqrt(float(left @ left) * float(right @ right))
    return min(1.0, max(-1.0, float(left @ right) / scale)) if scale else float("nan")


def overlap(a: npt.ArrayLike, b: npt.ArrayLike, share: float = 0.5, *, seed: int = 0) -> float:
    """How many of the highest rows by ``a`` are among as many of the highest by ``b``.

    Two unrelated measurements overlap by about ``share``. Rows without a value in both are left out. Rows that are
    tied at the limit are drawn at random, for ``a`` and for ``b`` apart: ties agree by chance only, so that a column
    with many of them overlaps with itself by less than 1. ``a`` and ``b`` are as of :func:`spearman`; of the rows the
    ``share`` in (0, 1] counts as the highest, at least one. The result is NaN where no row has both values.
    """
    share = check_number("share", share, 0, 1, above=True)
    left, right = _in_both(a, b)
    if not len(left):
        return float("nan")
    count = max(1, round(share * len(left)))
    in_both = _highest(left, count, mix(seed, 0)) & _highest(right, count, mix(seed, 1))
    return int(in_both.sum()) / count


def _in_both(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[_Array, _Array]:
    columns = []
    for name, values in (("a", a), ("b", b)):
        column = np.asarray(values)
        if column.ndim != 1 or column.dtype.kind not in "fiu":
            raise ArgumentError(name, "must be numbers in one dimension", f"{column.dtype} of shape {column.shape}")
        columns.append(column)
    left, right = columns
    if len(left) != len(right):
        raise ArgumentError("b", f"must be as long as a, {len(left)}", len(right))
    both = ~(np.isnan(left) | np.isnan(right))
    return (left, right) if both.all() else (left[both], right[both])


def _centred_ranks(values: _Array) -> npt.NDArray[np.float64]:
    """Twice their distance from the middle rank; equal values share the mean of theirs."""
    order = np.argsort(values)
    ascending = values[order]
    first = np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]])) if len(values) else order
    lengths = np.diff(first, append=len(values))
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(2 * first + lengths - len(values), lengths)
    return ranks


def _highest(values: _Array, count: int, key: int) -> npt.NDArray[np.bool_]:
    limit = np.partition(values, len(values) - count)[len(values) - count]
    chosen: npt.NDArray[np.bool_] = values > limit
    tied = np.flatnonzero(values == limit)
    wanted = count - int(chosen.sum())
    chosen[tied[np.argsort(hash64(key, tied))[:wanted]]] = True
    return chosen
