"""One score per sample from a batch of logits and their class indices: pure functions that share their work."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from prunesampler.errors import ArgumentError, UnsupportedError
from prunesampler.scores.digest import digest

__all__ = [
    "SCORES",
    "Score",
    "check_logits",
    "compute",
    "correct",
    "el2n",
    "entropy",
    "finish",
    "loss",
    "margin",
]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


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
    if targets.dim() != 1 or targets.dtype not in _INTEGERS:
        raise UnsupportedError(
            f"targets must be class indices of shape (batch,), got {targets.dtype} {tuple(targets.shape)}: soft or "
            "multi-dimensional targets need score_fn=, a function from logits and targets to scores"
        )
    if targets.shape[0] != logits.shape[0]:
        raise ArgumentError("targets", f"must be as many as the {len(logits)} rows of logits", len(targets))


class _Prediction:
    """A batch seen from its labels, as :func:`digest` has left it."""

    def __init__(self, numbers: Mapping[str, Tensor]) -> None:
        self.numbers = numbers

    @cached_property
    def lead(self) -> Tensor:
        """By how much the best other class leads the label: below 0 where the label wins."""
        return self.numbers["best_other"] - self.numbers["label"]

    @cached_property
    def odds_sum(self) -> Tensor:
        # 0 * lead makes an infinite logit NaN, as it is in softmax, where it would pass for perfect confidence.
        return torch.add(self.numbers["odds_sum"], self.lead, alpha=0)


def _el2n(seen: _Prediction) -> Tensor:
    # The best of the odds is 1, so that neither square is ever too small for a float.
    norm = seen.odds_sum.square().add_(seen.numbers["odds_squares"]).sqrt_()
    return norm.div_(seen.lead.neg().exp_().add_(seen.odds_sum))


def _loss(seen: _Prediction) -> Tensor:
    return F.softplus(seen.lead + seen.odds_sum.log())


def _margin(seen: _Prediction) -> Tensor:
    return -seen.lead


def _entropy(seen: _Prediction) -> Tensor:
    return seen.numbers["entropy"]


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
def compute(names: Collection[str], logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Several scores of one batch; what they have in common is computed once.

    Args:
        names: of :data:`SCORES`, or ``"correct"``.
        logits: (B, C) floats of any precision, C >= 2, on any device.
        targets: (B,) class indices on the same device.

    Returns:
        (B,) float32 by name; NaN where the target is outside [0, C) or the logits are not finite. ``"correct"`` is
        bool, and False there. Never waits for the device.

    Raises:
        UnsupportedError, ArgumentError: as :func:`check_logits`.

    >>> values = compute(("margin", "correct"), torch.tensor([[2.0, 0.5]]), torch.tensor([0]))
    >>> values["margin"], values["correct"]
    (tensor([1.5000]), tensor([True]))
    """
    check_logits(logits, targets)
    targets = targets.long()
    return finish(names, digest(names, logits, targets), targets, logits.shape[1])


def finish(names: Collection[str], numbers: Mapping[str, Tensor], targets: Tensor, classes: int) -> dict[str, Tensor]:
    """Scores from their digest, which may be that of many batches.

    Args:
        names: that the digest was made for.
        numbers: (B,) by name.
        targets: (B,) int64.
        classes: C, of all of them.

    Returns:
        As :func:`compute`.
    """
    valid = (targets >= 0) & (targets < classes)
    seen = _Prediction(numbers)
    values = {}
    for name in names:
        if name == "correct":
            values[name] = (numbers["label"] > numbers["best_other"]) & valid
        else:
            values[name] = torch.where(valid, SCORES[name]._function(seen), torch.nan).float()
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
