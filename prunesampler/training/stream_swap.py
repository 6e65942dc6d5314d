"""What attach exchanges in a stream of shards: not its order, but what it lets through."""

from __future__ import annotations

import sys
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from prunesampler.capture.rows import RowStream
from prunesampler.tables.coreset import Coreset
from prunesampler.training.progress import StreamProgress

__all__ = ["StreamOrder", "StreamReplacement"]


class StreamOrder:
    """The kept rows of a stream, in the place of a :class:`~prunesampler.PrunedSampler`.

    A pass that was cut off starts again: shards are not read from the middle.

    Attributes:
        coreset: the rows that pass; None for all.
        num_replicas: ranks that they are split over.
        began: (epoch, position) where a pass begins; shards have no such thing.
    """

    began = (0, 0)

    def __init__(self, coreset: Coreset | None, num_replicas: int) -> None:
        self.coreset, self.num_replicas = coreset, num_replicas

    def state_dict(self) -> dict[str, Any]:
        """Nothing but where every pass begins."""
        return {"epoch": 0, "position": 0}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next pass is a whole one."""


class _Gate:
    """In the place of a batch sampler: what is set as its sampler decides what the stream lets through."""

    def __init__(self, stream: RowStream, order: StreamOrder) -> None:
        self._stream, self._order = stream, order

    @property
    def sampler(self) -> StreamOrder:
        return self._order

    @sampler.setter
    def sampler(self, order: StreamOrder) -> None:
        self._order = order
        self._stream.prune(order.coreset)


class StreamReplacement:
    """The counterpart of :class:`~prunesampler.training.sampler_swap.Replacement` for a stream of rows.

    Attributes:
        eligible: None: all rows of the index, of which those whose shards are not read have no score.
    """

    epoch = None
    rows_per_step = 0  # positions inside a pass are not counted
    eligible: NDArray[np.int64] | None = None

    def __init__(self, stream: RowStream, seed: int) -> None:
        stream.prunable(seed)
        self.num_rows = self.num_eligible = self.rows_per_pass = stream.num_rows
        self.num_replicas = stream.num_replicas
        self.base: Any = StreamOrder(None, self.num_replicas)
        self.batch_sampler: Any = _Gate(stream, self.base)

    def batches(self, draws: int | None = None) -> None:
        """Unknown."""

    def real_rows(self, batch: int) -> int:
        """Each row is one."""
        return sys.maxsize

    def go_to(self, epoch: int) -> None:
        """Nobody counts."""

    def progress(self, epochs: int) -> StreamProgress:
        """Of so many scoring epochs."""
        return StreamProgress(epochs)

    def draws_of(self, kept: int, epoch_length: Literal["kept", "full"]) -> int:
        """Rows that one epoch draws over all ranks, once so many rows are kept."""
        return kept

    def sampler(self, coreset: Coreset, *, seed: int, epoch_length: Literal["kept", "full"]) -> Any:
        """What lets the coreset through."""
        return StreamOrder(coreset, self.num_replicas)

    def check_in_place(self, loader: Any, expected: Any) -> None:
        """Nobody else holds the gate."""
