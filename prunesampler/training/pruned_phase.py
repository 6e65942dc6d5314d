"""The pruned epochs of an attached run: the rows that are drawn, what orders them, and how far it has come."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Sampler

from prunesampler._logging import log
from prunesampler.capture.binder import Binder, Pass, Token
from prunesampler.errors import ArgumentError, PruneSamplerWarning, StateError
from prunesampler.sampling.sampler import PrunedSampler
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.score_table import ScoreTable
from prunesampler.tracking.state import check_count
from prunesampler.training.checkpoint import load_coreset
from prunesampler.training.config import RunConfig
from prunesampler.training.continuation import weakly
from prunesampler.training.policies.policy import coreset_of
from prunesampler.training.sample_weights import SampleWeights
from prunesampler.training.stream_swap import StreamOrder


class PrunedPhase:
    """What the loader reads once it is pruned, in the place of what it read before.

    Attributes:
        coreset: the rows of the present epoch; None until they are drawn.
        fingerprint: of the dataset.
        sampler: what orders the loader now: its own sampler, then a :class:`~prunesampler.PrunedSampler`.
        waits: whether the sampler takes its place in the loader only when the present pass is over.
    """

    def __init__(self, config: RunConfig, swap: Any, model: nn.Module | None, *, fingerprint: str | None) -> None:
        self.coreset: Coreset | None = None
        self.sampler: Sampler[int] = swap.base
        self._config, self._swap = config, swap
        self.fingerprint = fingerprint
        self._model = weakly(model)  # it carries the run, which is not to keep it
        self._weights: SampleWeights | None = None
        # A pass is weighted by its own draw, however far the loop looks ahead.
        self._weights_of: WeakKeyDictionary[Pass, SampleWeights | None] = WeakKeyDictionary()
        self._origin: dict[str, Any] = {}  # where the order began in this process
        self._fixed = False  # a coreset for good, whatever the policy
        self.waits = False
        self._drawn_for = 0  # the epoch that the coreset was drawn for
        self._next: Coreset | None = None  # drawn already for the epoch to come
        self._not_drawn: Exception | None = None  # why it could not be
        self._untrained: Pass | None = None  # the first pass since that which was trained on last
        self._read = self._warned = False  # whether a pass over the coreset has begun; whether a repetition was told

    @property
    def weighted(self) -> bool:
        """Whether each sample has a weight."""
        return self._weights is not None

    @property
    def draws_every_epoch(self) -> bool:
        """Whether the rows change from epoch to epoch."""
        return self._config.policy.every_epoch and not self._fixed

    def batches(self, epoch: int, *, expected: bool = False) -> int | None:
        """Batches of one pass in an epoch, on this rank; None where that depends on what is drawn.

        Or, if ``expected``, as many as were drawn last, or as the policy expects.
        """
        config, swap = self._config, self._swap
        if self.coreset is not None and not self.draws_every_epoch:
            kept: int | None = len(self.coreset)
        elif config.scores_only or config.epoch_length == "full":
            return cast("int | None", swap.batches())
        else:
            kept = config.policy.num_draws(swap.num_eligible, epoch)
        if kept is None and expected:
            kept = self._expected_draws(epoch)
        if kept is None:
            return None
        share = config.policy.batch_share(epoch) if self.draws_every_epoch else 1.0
        return cast("int | None", swap.batches(swap.draws_of(kept, config.epoch_length), share))

    def _expected_draws(self, epoch: int) -> int | None:
        if self.coreset is not None and self.draws_every_epoch:
            return len(self.coreset)
        expected = self._config.policy.expected_draws(self._swap.num_eligible, epoch)
        return None if expected is None else round(expected)

    def check_batches(self, batches: int | None) -> None:
        """Refuse passes of no batch: a loop that counts steps would never end."""
        if batches == 0:
            step = self._swap.rows_per_step
            rule = (
                f"must leave rows for one batch: the loader drops a last incomplete one, and all ranks together read "
                f'{step} rows a step. Keep more, or give attach epoch_length="full", or the loader drop_last=False'
            )
            policy = self._config.policy
            raise ArgumentError("keep", rule, getattr(self._config.selection or policy, "keep", policy))

    @property
    def draws(self) -> int:
        """Rows that one epoch draws now, over all ranks."""
        assert self.coreset is not None
        return int(self._swap.draws_of(len(self.coreset), self._config.epoch_length))

    @property
    def batch_share(self) -> float:
        """The share of each fetched batch that is handed out in the present epoch."""
        return self._config.policy.batch_share(self._drawn_for) if self.draws_every_epoch else 1.0

    def draw(self, epoch: int, table: ScoreTable | None) -> Coreset:
        """What the policy draws for an epoch."""
        swap, seed = self._swap, self._config.seed
        rows = np.arange(swap.num_rows) if swap.eligible is None else np.sort(swap.eligible)
        if table is not None and swap.batches() is None:
            rows = table.rows  # of a stream, what was seen
        last = None if self.coreset is None else self.coreset.rows
        answer = self._config.policy.draw(epoch, table, rows, seed, last)
        return coreset_of(answer, rows, num_rows=swap.num_rows, fingerprint=self.fingerprint, seed=seed, epoch=epoch)

    def begin(
        self,
        coreset: Coreset,
        *,
        epoch: int | None = None,
        position: dict[str, Any] | None = None,
        fixed: bool = False,
        at_once: bool = True,
    ) -> None:
        """Read the coreset from the next pass on; ``len(loader)`` says so at once, or after :meth:`take_place`."""
        policy = self._config.policy
        draws_anew = policy.every_epoch and not fixed
        order = policy.order(epoch or 0) if draws_anew else None
        sampler = self._swap.sampler(
            coreset, seed=self._config.seed, epoch_length=self._config.epoch_length, order=order
        )
        if position is not None:
            sampler.load_state_dict(position)
        elif epoch is not None:
            sampler.set_epoch(epoch)
        share = policy.batch_share(epoch or 0) if draws_anew else 1.0
        draws = self._swap.draws_of(len(coreset), self._config.epoch_length)
        self.check_batches(self._swap.batches(draws, share))
        self.coreset, self._fixed, self._next, self._not_drawn = coreset, fixed, None, None
        self._drawn_for, self._read, self._untrained = epoch or 0, False, None
        self._weights = None if coreset.weights is None else SampleWeights(coreset, self._model())
        self.sampler, self.waits = sampler, True
        # As it was given: the end of the epoch that the coreset was drawn for is not the beginning of the next.
        self._origin = sampler.state_dict() if position is None else dict(position)
        if at_once:
            self.take_place()

    @property
    def in_place(self) -> Sampler[int]:
        """What the loader reads now, which is not ``sampler`` yet where that waits for the end of a pass."""
        return self._swap.base if self.waits else self.sampler

    def take_place(self) -> None:
        """Have the loader read what :meth:`begin` was given."""
        if self.waits:
            self.waits = False
            self._swap.fetch(self.batch_share)
            self._swap.exchange(self.sampler)

    def turn(self) -> bool:
        """No pass is open: read what the next epoch draws, so that ``len(loader)`` says so; whether that is done.

        Not where the loop or its framework says which epoch comes. What fails here is of an epoch that may never come,
        such as one that a user's function does not know: it is raised when that begins.
        """
        if self.coreset is None or not self.draws_every_epoch or self._swap.epoch is not None:
            return False
        if self._not_drawn is not None:
            return False
        try:
            if self._next is None and self.at_the_end and not self._config.tracks_throughout:
                self._next = self.draw(self._drawn_for + 1, None)
            if self._next is None:
                return False
            self.begin(self._next, epoch=self._drawn_for + 1)
        except Exception as error:
            self.fail_next(error)
            return False
        return True

    @property
    def at_the_end(self) -> bool:
        """Whether the epoch that the coreset was drawn for has been read."""
        return cast(PrunedSampler, self.sampler).epoch != self._drawn_for

    def draw_next(self, table: ScoreTable | None) -> Coreset:
        """What the policy draws for the epoch after the present one."""
        return self.draw(self._drawn_for + 1, table)

    def read_next(self, coreset: Coreset) -> None:
        """Read what was drawn so, from the next pass on."""
        self._next, self._not_drawn = coreset, None

    def fail_next(self, error: Exception) -> None:
        """The epoch after the present one could not be drawn; raised if it begins."""
        self._not_drawn = error
        log.debug("epoch %d cannot be drawn: %s", self._drawn_for + 1, error)

    def move_to(self, swap: Any) -> None:
        """Go on with another loader over the same rows; the one before gets its own sampler back."""
        before, self._swap = self._swap, swap
        before.fetch(1.0)
        before.exchange(before.base)
        if self.sampler is before.base:
            self.sampler = swap.base
        else:
            swap.go_to(cast(PrunedSampler, self.sampler).epoch)  # a framework's loader counts its own passes, from 0
            self.waits = True
            self.take_place()

    @contextmanager
    def sampler_as_found(self) -> Iterator[None]:
        """Within this context the loader has its own sampler."""
        if self.in_place is self._swap.base:
            yield
            return
        self._swap.fetch(1.0)
        self._swap.exchange(self._swap.base)
        try:
            yield
        finally:
            self._swap.fetch(self.batch_share)
            self._swap.exchange(self.sampler)

    def end(self) -> None:
        """Give the loader its own sampler back."""
        self._weights = self._next = None
        self._weights_of.clear()
        self.waits = False
        self._swap.fetch(1.0)
        self.sampler = self._swap.base
        self._swap.exchange(self.sampler)

    def forget(self) -> None:
        """As :meth:`end`; and nothing was drawn."""
        self.end()
        self.coreset = None

    def before_pass(self, binder: Binder) -> None:
        """The next pass is of the epoch that the loop or its framework says, where it does; draw for it."""
        self._go_back(binder)
        epoch = self._swap.epoch
        if epoch is not None:
            cast(PrunedSampler, self.sampler).set_epoch(epoch)
        if not self.draws_every_epoch:
            return
        epoch = cast(PrunedSampler, self.sampler).epoch
        if self._next is None and epoch != self._drawn_for:
            if not self._config.tracks_throughout:
                self._next = self.draw(epoch, None)
            elif self._not_drawn is not None:
                raise self._not_drawn
        if self._next is not None:  # a framework may number the epoch to come only when it reads it
            self.begin(self._next, epoch=max(epoch, self._drawn_for + 1))
        elif epoch == self._drawn_for and self._read and self._swap.num_replicas > 1 and not self._warned:
            self._warned = True
            warnings.warn(
                f"epoch {epoch} begins again, with the rows that it has drawn: call set_epoch(epoch) on the sampler "
                "that the loader was made with, before every epoch and on every rank",
                PruneSamplerWarning,
                stacklevel=5,
            )

    def _go_back(self, binder: Binder) -> None:
        """An evaluation, or a pass that only peeked at a batch, is no epoch of the order: it is read again."""
        first, self._untrained = self._untrained, None
        if first is None or first.position is None or first.was_trained:
            return
        if first.exhausted and binder.waiting(first, in_training=True):
            return  # the loop looks ahead
        sampler = cast(PrunedSampler, self.sampler)
        epoch, start = first.position
        sampler.load_state_dict({**sampler.state_dict(), "epoch": epoch, "position": start})
        self._read = False

    def started(self, of: Pass) -> None:
        """The first batch of a pass is handed out."""
        self._read = True
        if isinstance(self.sampler, StreamOrder):
            self.sampler.count_pass()
        of.starts_at(cast(PrunedSampler, self.sampler).began)
        self._weights_of[of] = self._weights
        if self._untrained is None or self._untrained.was_trained:
            self._untrained = of

    def weight(self, token: Token, logits: Tensor) -> None:
        """Weight the gradient of a batch's logits."""
        token.check_counts(logits)
        if (weights := self._weights_of.get(token.of)) is not None:
            weights.apply(token.rows, logits)

    def position(self, of: Pass | None) -> dict[str, Any]:
        """Where the order stands, if ``of`` is the pass that was trained on last."""
        if of is None or of.position is None:
            return self._origin
        epoch, start = of.position
        rows = of.trained * self._swap.rows_per_step
        if isinstance(self.sampler, StreamOrder):  # it knows no place inside a pass
            rows = int(of.closed)
        return {**self._origin, "epoch": epoch, "position": start + rows}

    def resume(self, coreset: Any, position: Any, *, mid_epoch: bool, fixed: bool = False) -> int:
        """Go on from there."""
        epoch = position.get("epoch", 0) if isinstance(position, Mapping) else position
        check_count(epoch, "state['sampler']['epoch']")
        try:
            self.begin(load_coreset(coreset), epoch=epoch, position=position, fixed=fixed)
        except ArgumentError as error:
            raise StateError(f"state['coreset'] is of another dataset: {error}") from error
        sampler = cast(PrunedSampler, self.sampler)
        self._swap.go_to(sampler.state_dict()["epoch"])
        if mid_epoch or self.at_the_end:
            return 0
        _, start = sampler.began
        sampler.load_state_dict({**sampler.state_dict(), "position": 0})
        self._origin = sampler.state_dict()
        return int(start // self._swap.rows_per_step) if start else 0  # a stream begins every pass at its start
