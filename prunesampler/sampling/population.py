"""The rows that may be drawn, and the endless stream that a coreset makes of them."""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from prunesampler.errors import ArgumentError
from prunesampler.sampling.permutation import Int64s, stream_rows
from prunesampler.sampling.weighted import Weighted, draw_rows
from prunesampler.tables.columns import row_numbers
from prunesampler.tables.coreset import Coreset

__all__ = ["MAX_EPOCHS", "MAX_ROWS", "Population", "RowStream", "whole"]

# Together they keep every position of a stream within int64.
MAX_ROWS, MAX_EPOCHS = 2**33, 2**30


@dataclass(frozen=True)
class RowStream:
    """An endless stream of rows, entered at any position; epoch e is its positions [e * length, (e + 1) * length).

    Args:
        numbers: from int64 positions to numbers in [0, count).
        rows: the row of each number, int64 (count,); None: the number itself.
        count: how many rows can be drawn.
        length: positions of an epoch.
    """

    numbers: Callable[[Int64s], Int64s]
    rows: Int64s | None
    count: int
    length: int

    def __call__(self, positions: Int64s) -> Int64s:
        """The rows at these positions, int64 (P,)."""
        numbers = self.numbers(positions)
        return numbers if self.rows is None else self.rows[numbers]


class Population:
    """The eligible rows of a dataset and the way to draw from them; arguments as of ``PrunedSampler``.

    Raises:
        ArgumentError: an argument breaks its rule.

    >>> population = Population(10, rows=[7, 5, 3, 1], shuffle=False)
    >>> population.stream(Coreset([3, 7], num_rows=10))(np.arange(3)).tolist()
    [7, 3, 7]
    """

    def __init__(
        self,
        num_rows: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rows: npt.ArrayLike | None = None,
        sampling_weights: npt.ArrayLike | None = None,
        replacement: bool = False,
        epoch_length: Literal["kept", "full"] | int = "kept",
    ) -> None:
        for name, flag in (("shuffle", shuffle), ("replacement", replacement)):
            if not isinstance(flag, bool):
                raise ArgumentError(name, "must be a bool", flag)
        if not shuffle and (replacement or sampling_weights is not None):
            raise ArgumentError("shuffle", "must be True with replacement or sampling_weights", shuffle)
        if epoch_length not in ("kept", "full"):
            epoch_length = whole("epoch_length", epoch_length, 1, MAX_ROWS, 'must be "kept", "full" or an int')
        self.num_rows, self.seed, self.shuffle, self.replacement = num_rows, seed, shuffle, replacement
        self.epoch_length = epoch_length
        self._rows = None if rows is None else _distinct(rows, num_rows)
        self.weights = None if sampling_weights is None else _weights(sampling_weights, num_rows)

    def eligible(self, coreset: Coreset | None) -> Int64s | None:
        """The rows that can be drawn of a coreset, or at all, in the order of ``rows``; None: every row."""
        kept = self._rows if coreset is None else self._kept(coreset)
        if self.weights is None:
            return kept
        kept = np.arange(self.num_rows) if kept is None else kept
        return kept[self.weights[kept] > 0]

    def stream(self, coreset: Coreset | None) -> RowStream:
        """The stream of a coreset's rows; None: of all eligible rows.

        Raises:
            ArgumentError: the coreset is one of another number of rows, keeps one that is not eligible, or
                none with a weight above 0.
        """
        kept = self._rows if coreset is None else self._kept(coreset)
        count = self.num_rows if kept is None else len(kept)
        if self.epoch_length == "full":
            length = self.num_rows if self._rows is None else len(self._rows)
        else:
            length = count if self.epoch_length == "kept" else self.epoch_length
        return RowStream(self._numbers(kept, count, length), kept, count, length)

    def _kept(self, coreset: Coreset) -> Int64s:
        if coreset.num_rows != self.num_rows:
            rule = f"must belong to a dataset of {self.num_rows} rows"
            raise ArgumentError("coreset", rule, f"one of {coreset.num_rows}")
        if self._rows is None:
            return coreset.rows
        kept = self._rows[np.isin(self._rows, coreset.rows)]
        if len(kept) != len(coreset):
            strangers = np.setdiff1d(coreset.rows, kept)
            raise ArgumentError("coreset", "must keep eligible rows only", strangers)
        return kept

    def _numbers(self, kept: Int64s | None, count: int, length: int) -> Callable[[Int64s], Int64s]:
        if self.weights is not None:
            weights = self.weights if kept is None else self.weights[kept]
            drawable = int(np.count_nonzero(weights))
            if not drawable:
                raise ArgumentError("sampling_weights", "must be above 0 for a row that is kept", "zeros")
            # An epoch of fewer draws is a pass of its own, or later epochs would get what the heavy rows left.
            pass_length = min(length, drawable)
            return Weighted(weights, seed=self.seed, replacement=self.replacement, pass_length=pass_length)
        if self.replacement:
            return functools.partial(draw_rows, size=count, seed=self.seed)
        return functools.partial(stream_rows, size=count, seed=self.seed, shuffle=self.shuffle)

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What must be equal for two populations to give the same streams: plain ints, strs and bools."""
        return {
            "num_rows": self.num_rows,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "replacement": self.replacement,
            "epoch_length": self.epoch_length,
            "rows": _digest(self._rows),
            "sampling_weights": _digest(self.weights),
        }


def whole(argument: str, value: object, lowest: int, highest: int, rule: str = "must be an int") -> int:
    """The value as an int, checked.

    Raises:
        ArgumentError: not an int (a bool is none), or outside [lowest, highest].

    >>> whole("rank", np.int64(1), 0, 3)
    1
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = lowest - 1
    if isinstance(value, bool) or not lowest <= number <= highest:
        raise ArgumentError(argument, f"{rule} in [{lowest}, {highest}]", value)
    return number


def _distinct(values: npt.ArrayLike, num_rows: int) -> Int64s:
    rows = row_numbers("rows", values, num_rows)
    if len(np.unique(rows)) < len(rows):
        raise ArgumentError("rows", "must not repeat a row", values)
    return rows


def _weights(values: npt.ArrayLike, num_rows: int) -> npt.NDArray[np.float64]:
    weights = np.asarray(values).astype(np.float64)
    if weights.shape != (num_rows,):
        raise ArgumentError("sampling_weights", f"must hold one value per row, {num_rows}", weights.shape)
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ArgumentError("sampling_weights", "must be finite and >= 0", values)
    return weights


def _digest(array: npt.NDArray[Any] | None) -> str:
    return "" if array is None else hashlib.sha256(array.tobytes()).hexdigest()
