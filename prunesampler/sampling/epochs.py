"""One iterator's way through one epoch: which rows it hands out, and how far it has come."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import length_hint
from typing import Any, cast

from prunesampler.errors import StateError
from prunesampler.sampling.permutation import rank_length, rank_positions
from prunesampler.sampling.population import RowStream

__all__ = ["Reading", "RowIterator"]

# The first chunk is small, so that the first batch comes at once; the later ones lie in the cache, as ints too.
_FIRST_CHUNK, _CHUNK = 4096, 16_384


@dataclass
class Reading:
    """A rank's share of one epoch from a position on, evaluated in chunks as it is read.

    Args:
        stream: where the rows come from.
        rank: in [0, num_replicas).
        num_replicas: ranks that share the epoch.
        drop_last: leave the uneven tail out instead of padding it.
        epoch: at least 0.
        start: the first position of the epoch that is unread, all ranks together.

    >>> stream = RowStream(lambda positions: positions, rows=None, count=9, length=5)
    >>> reading = Reading(stream, rank=0, num_replicas=2, drop_last=False, epoch=1, start=0)
    >>> iterator = reading.iterator()
    >>> next(iterator), next(iterator), reading.position
    (5, 7, 4)
    """

    stream: RowStream
    rank: int
    num_replicas: int
    drop_last: bool
    epoch: int
    start: int
    _evaluated: int = field(default=0, init=False)
    _chunk: Iterator[int] = field(default_factory=lambda: iter([]), init=False)

    @property
    def position(self) -> int:
        """The first position of the epoch that no rank has read, if all are as far as this one."""
        return self.start + self.num_replicas * (self._evaluated - length_hint(self._chunk))

    def iterator(self) -> RowIterator:
        """The rows, once: a second iterator of the same reading shares its position."""
        iterator = cast(RowIterator, RowIterator.from_iterable(self._chunks()))
        iterator.reading = self
        return iterator

    def share(self) -> int:
        """How many rows each rank reads."""
        return rank_length(
            self.stream.length, num_replicas=self.num_replicas, drop_last=self.drop_last, start=self.start
        )

    def _chunks(self) -> Iterator[Iterator[int]]:
        positions_of = functools.partial(
            rank_positions,
            start=self.start,
            length=self.stream.length,
            rank=self.rank,
            num_replicas=self.num_replicas,
        )
        share = self.share()
        while self._evaluated < share:
            last = min(self._evaluated + (_CHUNK if self._evaluated else _FIRST_CHUNK), share)
            rows = self.stream(positions_of(self._evaluated, last) + self.epoch * self.stream.length)
            self._evaluated, self._chunk = last, iter(rows.tolist())
            yield self._chunk


class RowIterator(itertools.chain):  # type: ignore[type-arg]
    """Rows as Python ints, at the speed of a list; made by :meth:`Reading.iterator`.

    Its state is what torchdata's StatefulDataLoader keeps of an iterator. Unlike that of the sampler, it tells
    the end of one epoch from the beginning of the next.

    >>> stream = RowStream(lambda positions: positions, rows=None, count=9, length=3)
    >>> list(Reading(stream, rank=0, num_replicas=1, drop_last=False, epoch=0, start=0).iterator())
    [0, 1, 2]
    """

    reading: Reading

    def state_dict(self) -> dict[str, int]:
        """``epoch`` and ``position``, as of :class:`Reading`."""
        return {"epoch": self.reading.epoch, "position": self.reading.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; the sampler goes on to the epoch after it.

        Raises:
            StateError: rows were already taken, or the state is not one of :meth:`state_dict`.
        """
        if self.reading.position != self.reading.start:
            raise StateError("an iterator's state is loaded before its first row is taken")
        if set(state) != {"epoch", "position"}:
            raise StateError(f"an iterator's state holds epoch and position, got {sorted(state)}")
        self.reading.epoch, self.reading.start = state["epoch"], state["position"]
