"""Epochs: the rows that can be drawn, the endless stream that a coreset makes of them, and reading one epoch of it."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import length_hint
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from prunesampler.errors import ArgumentError, StateError, check_bool, check_int
from prunesampler.sampling.permutation import rank_length, rank_positions, stream_rows
from prunesampler.sampling.weighted import Weighted, draw_rows
from prunesampler.tables.columns import Int64s, row_numbers
from prunesampler.tables.coreset import Coreset

__all__ = ["MAX_EPOCHS", "MAX_ROWS", "EligibleRows", "EpochReader", "RowIterator", "RowStream"]

# Together they keep every position of a stream within int64.
MAX_ROWS, MAX_EPOCHS = 2**33, 2**30
# The first chunk is small, so that the first batch comes at once; the later ones fit in the cache, as ints too.
_FIRST_CHUNK, _CHUNK = 4096, 16_384


@dataclass(frozen=True)
class RowStream:
    """An endless stream of rows, entered at any position; epoch e is its positions [e * length, (e + 1) * length)."""

    numbers: Callable[[Int64s], Int64s]  # from positions to numbers in [0, count)
    rows: Int64s | None  # the row of each number; None: the number itself
    count: int
    length: int

    def __call__(self, positions: Int64s) -> Int64s:
        """The rows at these positions."""
        numbers = self.numbers(positions)
        return numbers if self.rows is None else self.rows[numbers]


class EligibleRows:
    """The rows of a dataset that can be drawn, and how; arguments as of ``PrunedSampler``."""

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
        self.num_rows, self.seed = num_rows, seed
        self.shuffle = check_bool("shuffle", shuffle)
        self.replacement = check_bool("replacement", replacement)
        if not shuffle and (replacement or sampling_weights is not None):
            raise ArgumentError("shuffle", "must be True with replacement or sampling_weights", shuffle)
        self.epoch_length = _epoch_length(epoch_length)
        self._rows = None if rows is None else _distinct(rows, num_rows)
        self.weights = None if sampling_weights is None else _weights(sampling_weights, num_rows)

    def rows_of(self, coreset: Coreset | None) -> Int64s | None:
        """The rows that can be drawn of a coreset, or at all, in the order of ``rows``; None: every row."""
        kept = self._kept(coreset)
        if self.weights is None:
            return kept
        kept = np.arange(self.num_rows) if kept is None else kept
        return kept[self.weights[kept] > 0]

    def stream(self, coreset: Coreset | None) -> RowStream:
        """The stream of a coreset's rows; None: of all eligible rows."""
        kept = self._kept(coreset)
        count = self.num_rows if kept is None else len(kept)
        if self.epoch_length == "full":
            length = self.num_rows if self._rows is None else len(self._rows)
        else:
            length = count if self.epoch_length == "kept" else self.epoch_length
        return RowStream(self._numbers(kept, count, length), kept, count, length)

    def _kept(self, coreset: Coreset | None) -> Int64s | None:
        if coreset is None:
            return self._rows
        if coreset.num_rows != self.num_rows:
            rule = f"must belong to a dataset of {self.num_rows} rows"
            raise ArgumentError("coreset", rule, f"one of {coreset.num_rows} rows")
        if self._rows is None:
            return coreset.rows
        kept = self._rows[np.isin(self._rows, coreset.rows)]
        if len(kept) != len(coreset):
            raise ArgumentError("coreset", "must keep eligible rows only", np.setdiff1d(coreset.rows, kept))
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
        """What must be equal for two samplers to have the same streams: plain ints, strs and bools."""
        names = ("num_rows", "seed", "shuffle", "replacement", "epoch_length")
        arrays = {"rows": _digest(self._rows), "sampling_weights": _digest(self.weights)}
        return {name: getattr(self, name) for name in names} | arrays


def _epoch_length(value: Any) -> Any:
    if isinstance(value, str):
        if value not in ("kept", "full"):
            raise ArgumentError("epoch_length", 'must be "kept", "full" or a number of rows', value)
        return value
    return check_int("epoch_length", value, 1, MAX_ROWS)


def _digest(array: npt.NDArray[Any] | None) -> str:
    return "" if array is None else hashlib.sha256(array.tobytes()).hexdigest()


def _distinct(values: npt.ArrayLike, num_rows: int) -> Int64s:
    rows = row_numbers("rows", values, num_rows)
    if len(np.unique(rows)) < len(rows):
        raise ArgumentError("rows", "must not repeat a row", values)
    return rows


def _weights(values: npt.ArrayLike, num_rows: int) -> npt.NDArray[np.float64]:
    weights = np.asarray(values).astype(np.float64)
    if weights.shape != (num_rows,):
        raise ArgumentError("sampling_weights", f"must hold {num_rows} values, one per row", weights.shape)
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ArgumentError("sampling_weights", "must be finite and >= 0", values)
    return weights


@dataclass
class EpochReader:
    """One rank's part of one epoch from a position on, evaluated in chunks as it is read.

    >>> stream = RowStream(lambda positions: positions, rows=None, count=9, length=5)
    >>> reader = EpochReader(stream, rank=0, num_replicas=2, drop_last=False, epoch=1, start=0)
    >>> iterator = reader.iterator()
    >>> next(iterator), next(iterator), reader.position
    (5, 7, 4)
    """

    stream: RowStream
    rank: int
    num_replicas: int
    drop_last: bool
    epoch: int
    start: int  # the first position of the epoch that is unread, all ranks together
    _evaluated: int = field(default=0, init=False)
    _chunk: Iterator[int] = field(default_factory=lambda: iter([]), init=False)

    @property
    def position(self) -> int:
        """The first position of the epoch that no rank has read, if all are as far as this one."""
        return self.start + self.num_replicas * (self._evaluated - length_hint(self._chunk))

    def __len__(self) -> int:
        """How many rows each rank reads."""
        return rank_length(
            self.stream.length, num_replicas=self.num_replicas, drop_last=self.drop_last, start=self.start
        )

    def iterator(self) -> RowIterator:
        """The rows, once: a second iterator of the same reader goes on where the first one is."""
        iterator = cast(RowIterator, RowIterator.from_iterable(self._chunks()))
        iterator.reader = self
        return iterator

    def go_to(self, epoch: int, position: int) -> None:
        """Read from there; StateError if rows were already taken."""
        if self.position != self.start:
            raise StateError("an iterator's state can be loaded only before its first row is taken")
        self.epoch, self.start = epoch, position

    def _chunks(self) -> Iterator[Iterator[int]]:
        length = len(self)
        while self._evaluated < length:
            last = min(self._evaluated + (_CHUNK if self._evaluated else _FIRST_CHUNK), length)
            positions = rank_positions(
                self._evaluated,
                last,
                start=self.start,
                length=self.stream.length,
                rank=self.rank,
                num_replicas=self.num_replicas,
            )
            rows = self.stream(positions + self.epoch * self.stream.length)
            self._evaluated, self._chunk = last, iter(rows.tolist())
            yield self._chunk


class RowIterator(itertools.chain):  # type: ignore[type-arg]
    """Rows as Python ints, at the speed of a list; made by :meth:`EpochReader.iterator`.

    Its state is what torchdata's StatefulDataLoader keeps of an iterator. Unlike the sampler's, it tells the end of
    one epoch from the beginning of the next.
    """

    reader: EpochReader

    def state_dict(self) -> dict[str, int]:
        """``epoch`` and ``position``, as of :class:`EpochReader`."""
        return {"epoch": self.reader.epoch, "position": self.reader.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; the sampler goes on to the epoch after it."""
        if set(state) != {"epoch", "position"}:
            raise StateError(f"expected an iterator's state, which holds epoch and position; got {sorted(state)}")
        self.reader.go_to(state["epoch"], state["position"])
