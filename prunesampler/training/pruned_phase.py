"""The pruned epochs of an attached run: the rows that are kept, what orders them, and how far it has come."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.utils.data import Sampler

from prunesampler.capture.binder import Pass, Token
from prunesampler.errors import ArgumentError, StateError
from prunesampler.sampling.sampler import PrunedSampler
from prunesampler.tables.coreset import Coreset
from prunesampler.training.checkpoint import load_coreset
from prunesampler.training.config import Plan
from prunesampler.training.sample_weights import SampleWeights
from prunesampler.training.sampler_swap import Replacement

__all__ = ["PrunedEpochs"]


class PrunedEpochs:
    """What the loader reads once it is pruned, in the place of what it read before.

    Args:
        plan: how long pruned epochs are, and the seed of their order.
        replacement: the loader's samplers.
        model: whose gradients the coreset's weights reach; None where logits are given by hand.

    Attributes:
        coreset: the kept rows; None until they are selected.
        sampler: what orders the loader now: its own sampler, then a :class:`~prunesampler.PrunedSampler`.
    """

    def __init__(self, plan: Plan, replacement: Replacement, model: nn.Module | None) -> None:
        self.coreset: Coreset | None = None
        self.sampler: Sampler[int] = replacement.base
        self._plan, self._replacement, self._model = plan, replacement, model
        self._weights: SampleWeights | None = None
        self._origin: dict[str, Any] = {}  # where the order began in this process

    @property
    def weighted(self) -> bool:
        """Whether each sample has a weight."""
        return self._weights is not None

    @property
    def batches(self) -> int | None:
        """Batches of one pass, on this rank; None where that depends on scores to come."""
        plan, replacement = self._plan, self._replacement
        if self.coreset is not None:
            kept: int | None = len(self.coreset)
        elif plan.selection is None or plan.epoch_length == "full":
            return replacement.batches()
        else:
            kept = plan.selection.check(replacement.num_eligible)
        return None if kept is None else replacement.batches(replacement.draws_of(kept, plan.epoch_length))

    def begin(self, coreset: Coreset, position: dict[str, Any] | None = None) -> None:
        """Read the coreset from the next pass on, from a position that :meth:`position` gave.

        Raises:
            ArgumentError: the coreset is of another dataset. Nothing has changed then, nor with the other:
            StateError: the position is one in another order.
        """
        sampler = self._replacement.sampler(coreset, seed=self._plan.seed, epoch_length=self._plan.epoch_length)
        if position is not None:
            sampler.load_state_dict(position)
        self.coreset = coreset
        self._weights = None if coreset.weights is None else SampleWeights(coreset, self._model)
        self._use(sampler)
        self._origin = sampler.state_dict()

    def end(self) -> None:
        """Give the loader its own sampler back."""
        self._weights = None
        self._use(self._replacement.base)

    def before_pass(self) -> None:
        """The next pass is of the epoch that the loop or its framework says, where it does."""
        epoch = self._replacement.epoch
        if epoch is not None:
            cast(PrunedSampler, self.sampler).set_epoch(epoch)

    def started(self, of: Pass) -> None:
        """The first batch of a pass is handed out."""
        of.starts_at(cast(PrunedSampler, self.sampler).began)

    def weight(self, token: Token, logits: Tensor) -> None:
        """Weight the gradient of a batch's logits."""
        token.check_counts(logits)
        if self._weights is not None:
            self._weights.apply(token.rows, logits)

    def position(self, of: Pass | None) -> dict[str, Any]:
        """Where the order stands, if ``of`` is the pass that was trained on last."""
        if of is None or of.position is None:
            return self._origin
        epoch, start = of.position
        return {**self._origin, "epoch": epoch, "position": start + of.trained * self._replacement.rows_per_step}

    def resume(self, coreset: Any, position: Any, *, mid_epoch: bool) -> int:
        """Go on from there.

        Args:
            coreset: as :func:`~prunesampler.training.checkpoint.coreset_state` gives it.
            position: as :meth:`position` gave it.
            mid_epoch: whether the next pass begins inside the epoch; else the loop passes over its beginning.

        Returns:
            How many batches the loop passes over.

        Raises:
            StateError: one of them is damaged or of another dataset. Nothing has changed then.
        """
        try:
            self.begin(load_coreset(coreset), position or {})
        except ArgumentError as error:
            raise StateError(f"state['coreset'] is of another dataset: {error}") from error
        sampler = cast(PrunedSampler, self.sampler)
        self._replacement.go_to(sampler.state_dict()["epoch"])
        if mid_epoch:
            return 0
        _, start = sampler.began
        sampler.load_state_dict({**sampler.state_dict(), "position": 0})
        self._origin = sampler.state_dict()
        return start // self._replacement.rows_per_step

    def _use(self, sampler: Sampler[int]) -> None:
        self._replacement.batch_sampler.sampler = sampler
        self.sampler = sampler
