"""Epochs: an endless stream of rows, and reading one epoch of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import length_hint
from typing import Any, cast

from prunesampler.errors import ArgumentError, StateError, check_int
from prunesampler.sampling.permutation import rank_length, rank_positions
from prunesampler.tables.columns import Int64s

# The first chunk is small, so that the first batch comes at once; the later ones fit in the cache, as ints too.
_FIRST_CHUNK, _CHUNK = 4096, 16_384
MAX_EPOCHS = 2**30


@dataclass(frozen=True)
class RowOrder:
    """An endless stream of rows, entered at any position; epoch e is its positions [e * length, (e + 1) * length)."""

    numbers: Callable[[Int64s], Int64s]  # from positions to numbers in [0, count)
    rows: Int64s | None  # the row of each number; None: the number itself
    count: int
    length: int

    def __call__(self, positions: Int64s) -> Int64s:
        """The rows at these positions."""
        numbers = self.numbers(positions)
        return numbers if self.rows is None else self.rows[numbers]


@dataclass
class EpochReader:
    """One rank's part of one epoch from a position on, evaluated in chunks as it is read."""

    stream: RowOrder
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
        return rank_length(self.stream.length, self.num_replicas, self.drop_last, self.start)

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
            steps = {"start": self.start, "length": self.stream.length}
            positions = rank_positions(self._evaluated, last, rank=self.rank, num_replicas=self.num_replicas, **steps)
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
        if not isinstance(state, Mapping) or set(state) != {"epoch", "position"}:
            found = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise StateError(f"expected an iterator's state, which holds epoch and position; got {found}")
        try:
            epoch = check_int("epoch", state["epoch"], 0, MAX_EPOCHS - 1)
            end = self.reader.stream.length + self.reader.num_replicas
            position = check_int("position", state["position"], 0, end)
        except ArgumentError as error:
            raise StateError(f"the state is damaged: {error}") from error
        self.reader.go_to(epoch, position)
