"""The place of :mod:`~prunesampler.training.sampler_swap` where a loader has no sampler: a stream lets rows through."""

from __future__ import annotations

import sys
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from prunesampler.capture.rows import RowStream
from prunesampler.errors import ArgumentError
from prunesampler.tables.coreset import Coreset
from prunesampler.training.policies.policy import Policy
from prunesampler.training.policies.prune_once import PruneOnce
from prunesampler.training.progress import StreamProgress


class StreamOrder:
    """The kept rows of a stream, in the place of a :class:`~prunesampler.PrunedSampler`.

    A pass that was cut off starts again: shards are not read from the middle.

    Attributes:
        coreset: the rows that pass; None for all.
        num_replicas: ranks that they are split over.
        epoch: the pass that the next iterator reads.
    """

    def __init__(self, coreset: Coreset | None, num_replicas: int) -> None:
        self.coreset, self.num_replicas = coreset, num_replicas
        self.epoch = 0
        self._began: tuple[int, int] | None = None

    @property
    def began(self) -> tuple[int, int]:
        """Epoch and position where the present pass began, or where none has, the next one will."""
        return self._began if self._began is not None else (self.epoch, 0)

    def count_pass(self) -> None:
        """A pass hands out its first batch."""
        self._began = self.epoch, 0
        self.epoch += 1

    def set_epoch(self, epoch: int) -> None:
        """Which pass the next iterator reads."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Where the next pass begins."""
        return {"epoch": self.epoch, "position": 0}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next pass is a whole one: the same, where it was cut off, or the one after (``position`` above 0)."""
        self.epoch = state.get("epoch", 0) + bool(state.get("position", 0))


class StreamSwap:
    """The counterpart of :class:`~prunesampler.training.sampler_swap.SamplerSwap` for a stream of rows.

    Attributes:
        eligible: None: which rows come is seen while they are scored.
    """

    epoch = None
    rows_per_step = 0  # positions inside a pass are not counted
    eligible: NDArray[np.int64] | None = None

    def __init__(self, stream: RowStream, policy: Policy, seed: int) -> None:
        if isinstance(policy, PruneOnce) and policy.epoch_length == "full":
            rule = 'must be "kept" for a shard pipeline: give it .with_epoch(nsamples) to keep its length'
            raise ArgumentError("epoch_length", rule, policy.epoch_length)
        stream.prunable(seed)
        self._stream = stream
        self.num_rows = self.num_eligible = self.rows_per_pass = stream.num_rows
        self.num_replicas = stream.num_replicas
        self.base: Any = StreamOrder(None, self.num_replicas)
        self._evens = policy.every_epoch and self.num_replicas > 1

    def agreement(self) -> dict[str, Any]:
        """Nothing that its fingerprint does not say."""
        return {}

    def check_ranks(self, ranks: list[dict[str, Any]]) -> None:
        """Each rank reads the kept rows of its own shards."""

    def exchange(self, order: Any) -> None:
        """Let the order's rows through, from the next pass on.

        The rows of a coreset are split evenly over ranks, where a pipeline's own split may be uneven: so under a policy
        an epoch that is scored reads a coreset of all rows.
        """
        everything = Coreset(np.arange(self.num_rows), num_rows=self.num_rows) if self._evens else None
        self._stream.prune(everything if order is self.base else order.coreset)

    def leave(self) -> None:
        """Let everything through, as the stream has it."""
        self._stream.prune(None)

    def batches(self, draws: int | None = None, share: float = 1.0) -> None:
        """Unknown."""

    def fetch(self, share: float) -> None:
        """The stream makes its batches itself."""

    def real_rows(self, batch: int, draws: int | None = None) -> int:
        """Each row is one."""
        return sys.maxsize

    def count_by(self, counter: Any) -> None:
        """Passes are counted by their ends."""

    def go_to(self, epoch: int) -> None:
        """Nobody counts."""

    def progress(self, epochs: int) -> StreamProgress:
        """Of so many scoring epochs."""
        return StreamProgress(epochs)

    def draws_of(self, kept: int, epoch_length: Literal["kept", "full"]) -> int:
        """Rows that one epoch draws over all ranks, once so many rows are kept."""
        return kept

    def sampler(self, coreset: Coreset, *, seed: int, epoch_length: Literal["kept", "full"], order: Any = None) -> Any:
        """What lets the coreset through, in the stream's own order."""
        return StreamOrder(coreset, self.num_replicas)

    def check_in_place(self, loader: Any, expected: Any) -> None:
        """Nobody else decides what the stream lets through."""


class FixedOrder(StreamSwap):
    """The counterpart of :class:`SamplerSwap` for a loader whose order is its own: it is scored, and never pruned."""

    def __init__(self, loader: Any, num_rows: int) -> None:
        self.base = getattr(loader, "sampler", None)
        self.num_rows = self.num_eligible = self.rows_per_pass = num_rows
        self.num_replicas = 1

    def exchange(self, order: Any) -> None:
        """Nothing else ever orders it."""

    def leave(self) -> None:
        """It is as it was."""
