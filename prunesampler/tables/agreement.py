"""How far two measurements of the same rows agree."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from prunesampler._random import hash64, mix
from prunesampler.errors import ArgumentError

__all__ = ["correlation", "exact_dot", "overlap", "spearman"]

_EXACT = 4096  # products below 2**50 that int64 can sum
_Array = npt.NDArray[Any]


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Spearman's rank correlation over the rows that have a value in both; equal values share their mean rank.

    Args:
        a: (N,) floats, NaN where a row has no value; infinite ones rank at the ends.
        b: (N,) floats, likewise.

    Returns:
        A float in [−1, 1]; NaN where fewer than two rows have both, or where either is the same for all of them.

    Raises:
        ArgumentError: not two vectors of numbers of one length.

    >>> spearman([0.1, 0.2, 0.4, float("nan")], [1.0, 3.0, 2.0, 0.0])
    0.5
    """
    left, right = (_ranks(values) for values in _in_both(a, b))
    return correlation(exact_dot(left, right), exact_dot(left, left), exact_dot(right, right))


def correlation(xy: int, xx: int, yy: int) -> float:
    """The correlation of two centred columns by the sums of their products; NaN where one is constant.

    >>> correlation(2, 4, 4)
    0.5
    """
    scale = math.sqrt(xx * yy)
    return min(1.0, max(-1.0, xy / scale)) if scale else float("nan")


def exact_dot(x: npt.NDArray[np.int64], y: npt.NDArray[np.int64]) -> int:
    """The sum of products, exact, so that sums over parts add up to that over all.

    Args:
        x: (N,) int64.
        y: (N,) int64, below 2**34 in size.

    >>> exact_dot(np.array([2**60, -(2**60)]), np.array([2**33, 2**33 - 1])) == 2**60
    True
    """
    x, y = np.abs(x), np.where(x < 0, -y, y)
    total, shift = 0, 0
    while x.any():
        products = (x & 0xFFFF) * y
        total += sum(np.add.reduceat(products, np.arange(0, len(products), _EXACT)).tolist()) << shift
        x, shift = x >> 16, shift + 16
    return total


def overlap(a: npt.ArrayLike, b: npt.ArrayLike, share: float = 0.5, *, seed: int = 0) -> float:
    """How many of the highest rows by ``a`` are among as many of the highest by ``b``.

    Two unrelated measurements overlap by about ``share``. Rows without a value in both are left out. Rows that are
    tied at the limit are drawn by lot, for ``a`` and for ``b`` apart: ties agree by chance only, so that a column with
    many of them overlaps with itself by less than 1.

    Args:
        a: (N,) floats, NaN where a row has no value; infinite ones are allowed. Negate what is harder when lower.
        b: (N,) floats, likewise.
        share: in (0, 1], how much of the rows counts as the highest; rounded to at least one row.
        seed: an int, of the lots.

    Returns:
        A float in [0, 1]; NaN where no row has both values.

    Raises:
        ArgumentError: not two vectors of numbers of one length, or a share outside of (0, 1].

    >>> overlap([0.1, 0.9, 0.8, 0.2], [1.0, 4.0, 2.0, 3.0])
    0.5
    """
    if isinstance(share, bool) or not isinstance(share, int | float | np.floating) or not 0 < share <= 1:
        raise ArgumentError("share", "must be in (0, 1]", share)
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


def _ranks(values: _Array) -> npt.NDArray[np.int64]:
    """Twice their distance from the middle rank; equal values share the mean of theirs."""
    order = np.argsort(values)
    ascending = values[order]
    first = np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]])) if len(values) else order
    lengths = np.diff(first, append=len(values))
    ranks = np.empty(len(values), np.int64)
    ranks[order] = np.repeat(2 * first + lengths - len(values), lengths)
    return ranks


def _highest(values: _Array, count: int, key: int) -> npt.NDArray[np.bool_]:
    limit = np.partition(values, len(values) - count)[len(values) - count]
    chosen: npt.NDArray[np.bool_] = values > limit
    tied = np.flatnonzero(values == limit)
    wanted = count - int(chosen.sum())
    chosen[tied[np.argsort(hash64(key, tied))[:wanted]]] = True
    return chosen
