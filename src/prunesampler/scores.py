"""One score per sample from a batch of logits and their class indices: pure functions that share their work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from prunesampler.errors import ArgumentError, UnsupportedError

__all__ = ["SCORES", "Score", "check_logits", "compute", "correct", "el2n", "entropy", "loss", "margin"]

# Below it exp is quicker than softmax, which begins anew with each row; above it half as quick.
_FEW_CLASSES = 128


def check_logits(logits: Tensor, targets: Tensor) -> None:
    """Refuse logits and targets that have no score by definition. Looks at shapes and dtypes only.

    Raises:
        UnsupportedError: logits that are not (B, C) floats with C >= 2, or targets that are not (B,) integers.
        ArgumentError: another number of targets than of logits.

    >>> check_logits(torch.zeros(4, 10), torch.zeros(4, dtype=torch.int64))
    """
    if logits.dim() != 2 or not logits.is_floating_point() or logits.shape[1] < 2:
        raise UnsupportedError(
            f"logits must be floats of shape (batch, classes) with two classes or more, got {logits.dtype} "
            f"{tuple(logits.shape)}: give score_fn=, a function from logits and targets to scores"
        )
    if targets.dim() != 1 or targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise UnsupportedError(
            f"targets must be class indices of shape (batch,), got {targets.dtype} {tuple(targets.shape)}: soft or "
            "multi-dimensional targets need score_fn=, a function from logits and targets to scores"
        )
    if len(targets) != len(logits):
        raise ArgumentError("targets", f"must be as many as the {len(logits)} rows of logits", len(targets))


class _Prediction:
    """A batch seen from its labels: each quantity is computed when first asked for, and once.

    Everything follows from the other classes' odds relative to the best of them, in (0, 1] with at least one 1, so
    neither a very confident nor a very wrong sample overflows, underflows or cancels.
    """

    def __init__(self, logits: Tensor, targets: Tensor, overwrite: bool) -> None:
        check_logits(logits, targets)
        self.logits = logits if logits.dtype == torch.float64 else logits.float()
        self._overwrite = overwrite
        targets = targets.long()
        # An index outside the classes would be a device assert, which kills the process: it becomes NaN instead.
        index = targets.clamp(0, logits.shape[1] - 1)
        self.valid = index == targets
        self.index = index.unsqueeze(1)
        self.label = self.logits.gather(1, self.index).squeeze(1)

    @cached_property
    def _others(self) -> Tensor:
        # A tensor as the source takes a third of the time of a number.
        nothing = torch.full_like(self.index, -torch.inf, dtype=self.logits.dtype)
        scatter = self.logits.scatter_ if self._overwrite else self.logits.scatter
        return scatter(1, self.index, nothing)

    @cached_property
    def best_other(self) -> Tensor:
        return self._others.amax(1)

    @cached_property
    def lead(self) -> Tensor:
        """By how much the best other class leads the label: below 0 where the label wins."""
        return self.best_other - self.label

    @cached_property
    def _odds(self) -> tuple[Tensor, Tensor | None]:
        """The other classes' odds; where classes are many their shares, and one odd's share."""
        # 0 * lead makes an infinite logit NaN, as it is in softmax, where it would pass for perfect confidence.
        best = torch.add(self.best_other, self.lead, alpha=0).unsqueeze(1)
        if self.logits.shape[1] <= _FEW_CLASSES:
            return self._others.sub_(best).exp_(), None
        # With the best other class once more in the label's place, whose share there is 1 / (1 + sum of the odds).
        shares = torch.softmax(self._others.scatter_(1, self.index, best), 1, out=self._others)
        return shares, shares.gather(1, self.index).squeeze(1)

    @cached_property
    def odds_sum(self) -> Tensor:
        odds, one = self._odds
        return odds.sum(1) if one is None else one.reciprocal() - 1

    @cached_property
    def odds_norm(self) -> Tensor:
        odds, one = self._odds
        norm: Tensor = torch.linalg.vector_norm(odds, dim=1)
        return norm if one is None else ((norm / one).square() - 1).sqrt()


def _el2n(seen: _Prediction) -> Tensor:
    return torch.hypot(seen.odds_norm, seen.odds_sum) / (seen.odds_sum + (-seen.lead).exp())


def _loss(seen: _Prediction) -> Tensor:
    return F.softplus(seen.lead + seen.odds_sum.log())


def _margin(seen: _Prediction) -> Tensor:
    return -seen.lead


def _entropy(seen: _Prediction) -> Tensor:
    best, index = seen.logits.max(1, keepdim=True)
    gaps = best - seen.logits
    # Without the best class, whose probability close to 1 would hide all the others'.
    odds = (-gaps).exp().scatter(1, index, 0.0)
    total = torch.add(odds.sum(1), best.squeeze(1), alpha=0)  # NaN where the best is infinite
    return total.log1p() + torch.where(odds > 0, odds * gaps, 0.0).sum(1) / (1 + total)


@dataclass(frozen=True)
class Score:
    """A score's definition.

    Attributes:
        direction: whether a higher or a lower value means a harder sample.
        citation: where it was defined.
    """

    direction: Literal["higher", "lower"]
    citation: str
    _function: Callable[[_Prediction], Tensor]


SCORES: dict[str, Score] = {
    "el2n": Score("higher", "Paul et al., Deep Learning on a Data Diet, NeurIPS 2021", _el2n),
    "loss": Score("higher", "cross entropy of the label, in nats", _loss),
    "margin": Score("lower", "Pleiss et al., Identifying Mislabeled Data using AUM, NeurIPS 2020", _margin),
    "entropy": Score("higher", "Shannon entropy of the prediction, in nats", _entropy),
}
"""The scores by name, with their directions and sources."""


@torch.no_grad()
def compute(names: Sequence[str], logits: Tensor, targets: Tensor, *, overwrite: bool = False) -> dict[str, Tensor]:
    """Several scores of one batch; what they have in common is computed once.

    Args:
        names: of :data:`SCORES`, or ``"correct"``.
        logits: (B, C) floats of any precision, C >= 2, on any device.
        targets: (B,) class indices on the same device.
        overwrite: the logits are not needed any more: work in their memory.

    Returns:
        (B,) float32 by name; NaN where the target is outside [0, C) or the logits are not finite. ``"correct"`` is
        bool, and False there. Never waits for the device.

    Raises:
        UnsupportedError, ArgumentError: as :func:`check_logits`.

    >>> values = compute(("margin", "correct"), torch.tensor([[2.0, 0.5]]), torch.tensor([0]))
    >>> values["margin"], values["correct"]
    (tensor([1.5000]), tensor([True]))
    """
    seen = _Prediction(logits, targets, overwrite and "entropy" not in names)
    values = {}
    for name in names:
        if name == "correct":
            values[name] = (seen.label > seen.best_other) & seen.valid
        else:
            value = SCORES[name]._function(seen)
            values[name] = torch.where(seen.valid, value, torch.nan).float()
    return values


def el2n(logits: Tensor, targets: Tensor) -> Tensor:
    """Norm of the error vector, ‖softmax(logits) − onehot(target)‖₂ (Paul et al. 2021).

    Args:
        logits: (B, C) floats of any precision, C >= 2.
        targets: (B,) class indices.

    Returns:
        (B,) float32 in [0, √2], higher is harder; NaN for a target outside [0, C) and for logits that are not
        finite. Precise to a few float32 roundings however confident the sample is, where
        √(Σp² − 2p_y + 1) gives 0 from a margin of about 16 on.

    Raises:
        UnsupportedError, ArgumentError: as :func:`check_logits`.

    >>> el2n(torch.tensor([[0.0, 0.0], [20.0, 0.0]]), torch.tensor([1, 0]))
    tensor([7.0711e-01, 2.9149e-09])
    """
    return compute(("el2n",), logits, targets)["el2n"]


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy −log softmax(logits)[target], in nats.

    Args:
        logits: (B, C) floats of any precision, C >= 2.
        targets: (B,) class indices.

    Returns:
        (B,) float32, at least 0, higher is harder; NaN as in :func:`el2n`.

    Raises:
        UnsupportedError, ArgumentError: as :func:`check_logits`.

    >>> loss(torch.tensor([[0.0, 0.0], [40.0, 0.0]]), torch.tensor([1, 0]))
    tensor([6.9315e-01, 4.2484e-18])
    """
    return compute(("loss",), logits, targets)["loss"]


def margin(logits: Tensor, targets: Tensor) -> Tensor:
    """Label's logit minus the largest other logit; its mean over epochs is the AUM (Pleiss et al. 2020).

    Args:
        logits: (B, C) floats of any precision, C >= 2.
        targets: (B,) class indices.

    Returns:
        (B,) float32, in units of logits, **lower** is harder; NaN as in :func:`el2n`.

    Raises:
        UnsupportedError, ArgumentError: as :func:`check_logits`.

    >>> margin(torch.tensor([[3.0, 1.0, 2.5]]), torch.tensor([0]))
    tensor([0.5000])
    """
    return compute(("margin",), logits, targets)["margin"]


def entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Entropy of the predicted distribution, −Σ p log p, in nats. Of the targets only the validity matters.

    Args:
        logits: (B, C) floats of any precision, C >= 2.
        targets: (B,) class indices.

    Returns:
        (B,) float32 in [0, log C], higher is harder; NaN as in :func:`el2n`.

    Raises:
        UnsupportedError, ArgumentError: as :func:`check_logits`.

    >>> entropy(torch.zeros(1, 4), torch.tensor([2]))
    tensor([1.3863])
    """
    return compute(("entropy",), logits, targets)["entropy"]


def correct(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether the label's logit is the strict maximum: a tie is not correct.

    Args:
        logits: (B, C) floats of any precision, C >= 2.
        targets: (B,) class indices.

    Returns:
        (B,) bool; False for a target outside [0, C) and where a logit is NaN.

    Raises:
        UnsupportedError, ArgumentError: as :func:`check_logits`.

    >>> correct(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 0]))
    tensor([ True, False])
    """
    return compute(("correct",), logits, targets)["correct"]
