"""Scores of a batch from its logits and class indices: one number a sample, from one softmax that they share."""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from prunesampler.errors import ArgumentError, UnsupportedError

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_BITS_PER_NAT = math.log2(math.e)  # torch's exp2 takes a third less time than its exp
_OVER_EPOCHS = {"aum": "margin", "aum_softmax": "softmax_margin", "dyn_unc": "probability", "dual": "probability"}
_OF_ODDS = {"el2n", "loss", "softmax_margin", "probability", "signed_confidence"}
_FEW_CLASSES = 32  # up to here a CPU reduces columns of classes faster than rows


def check_logits(logits: Tensor, targets: Tensor) -> None:
    """Refuse all but (B, C) float logits, C >= 2, and (B,) integer targets. Looks at shapes and dtypes only."""
    if logits.dim() != 2 or not logits.is_floating_point() or logits.shape[1] < 2:
        one = logits.is_floating_point() and logits.shape in (targets.shape[:1], (*targets.shape[:1], 1))
        cure = "a binary classifier's one logit becomes two by logits_fn=lambda output: torch.nn.functional.pad("
        cure += "output.reshape(-1, 1), (1, 0)), and for another task give" if one else "give"
        raise UnsupportedError(
            f"logits must be floats of shape (batch, classes) with two classes or more, got {logits.dtype} "
            f"{tuple(logits.shape)}: {cure} score_fn=, a function from logits and targets to scores; if they are not "
            "the logits, logits_fn=, a function from the model's output to them"
        )
    if targets.dim() != 1 or targets.dtype not in _INTEGERS:
        raise UnsupportedError(
            f"targets must be class indices of shape (batch,), got {targets.dtype} {tuple(targets.shape)}: "
            f"{_cure(targets, logits.shape[1])}"
        )
    if targets.shape[0] != logits.shape[0]:
        raise ArgumentError("targets", f"must be {len(logits)}, one per row of logits", len(targets))


def _cure(targets: Tensor, classes: int) -> str:
    """What makes class indices of such targets, in the words of attach and score."""
    from_batch = "give targets.{0}, in attach and score by target_fn=lambda batch: batch[1].{0}".format
    others = "if the labels are elsewhere in the batch, give target_fn=, a function from the batch to them"
    whole = not targets.is_floating_point() or bool((targets == targets.round()).all())
    if whole and not targets.is_complex() and targets.dim() == 2 and targets.shape[1] == 1:
        return from_batch("squeeze(1)" if targets.dtype in _INTEGERS else "squeeze(1).long()")
    if targets.dim() == 1 and whole and not targets.is_complex():
        return from_batch("long()")
    if targets.dim() == 1:
        return f"for numbers to be predicted give score_fn=, a function from logits and targets to scores; {others}"
    if targets.dim() == 2 and targets.shape[1] == classes:
        if whole and bool(((targets != 0).sum(1) == 1).all()):
            return (
                from_batch("argmax(1)") + ", if each is one class as one-hot; if there may be several, give score_fn="
            )
        return (
            "if the batch is mixed (mixup, CutMix), score in a separate pass with attach(..., rescore=plain_loader); "
            "for labels of several classes, or soft ones of the dataset's own, give score_fn=, a function from logits "
            f"and targets to scores; {others}"
        )
    return f"give score_fn=, a function from logits and targets to scores of each row; {others}"


class Prediction:
    """The few numbers of each sample that its scores follow from: all the work that grows with the classes is done.

    Args:
        numbers: (B,) by name: the label's logit, the best other one and its class (int64), and the sums of the other
            classes' odds and of the squares of these; float64 or float32. Odds are relative to the best of these
            classes: in (0, 1], and one of them is 1, so that neither a very confident nor a very wrong sample
            overflows or cancels.
        targets: (B,) int64.
        classes: C.
    """

    def __init__(self, numbers: dict[str, Tensor], targets: Tensor, classes: int) -> None:
        self.numbers, self.targets, self.classes = numbers, targets, classes

    @classmethod
    @torch.no_grad()
    def of(cls, names: Collection[str], logits: Tensor, targets: Tensor, *, overwrite: bool = False) -> Prediction:
        """For the scores ``names`` of checked (B, C) logits, whose memory may be overwritten, and (B,) targets."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        classes = logits.shape[1]
        names = {_OVER_EPOCHS.get(name, name) for name in names}
        along = 0 if logits.is_cpu and classes <= _FEW_CLASSES else 1
        numbers = {"entropy": _entropies(logits)} if "entropy" in names else {}
        if along == 0:
            others = logits.t().clone(memory_format=torch.contiguous_format)
        else:
            others = logits if overwrite else logits.clone()
        targets = targets.long()
        # On a GPU an index outside of the classes would be a device assert, which kills the process.
        index = targets.clamp(0, classes - 1).unsqueeze(along)
        numbers["label"] = others.gather(along, index).squeeze(along)
        others.scatter_(along, index, torch.full_like(index, -torch.inf, dtype=others.dtype))
        if "suggested_label" in names:
            best, numbers["suggested_label"] = _best(others, along)
        else:
            best = others.amax(along)
        numbers["best_other"] = best
        if "correct" in names:
            numbers["correct"] = _is_argmax(others, along, numbers["label"], best, targets)
        if not names.isdisjoint(_OF_ODDS):
            odds = others.sub_(best.unsqueeze(along)).mul_(_BITS_PER_NAT).exp2_()
            numbers["odds_sum"] = odds.sum(along)
            if "el2n" in names and along == 0:
                numbers["odds_squares"] = odds.square_().sum(0)
            elif "el2n" in names:  # on rows torch's norm takes half of the time
                numbers["odds_squares"] = torch.linalg.vector_norm(odds, dim=1).square_()
        return cls(numbers, targets, classes)

    @classmethod
    def join(cls, parts: list[Prediction]) -> Prediction:
        """Those of several batches, of the same names and classes, as one."""
        numbers = {name: torch.cat([part.numbers[name] for part in parts]) for name in parts[0].numbers}
        return cls(numbers, torch.cat([part.targets for part in parts]), parts[0].classes)

    @cached_property
    def valid(self) -> Tensor:
        """(B,) bool, whether the target is one of the classes."""
        return (self.targets >= 0) & (self.targets < self.classes)

    @cached_property
    def _lead(self) -> Tensor:
        # By how much the best other class leads the label: below 0 where the label wins.
        return self.numbers["best_other"] - self.numbers["label"]

    @cached_property
    def _odds_sum(self) -> Tensor:
        # 0 * lead makes an infinite logit NaN, as it is in softmax, where it would pass for perfect confidence.
        return torch.add(self.numbers["odds_sum"], self._lead, alpha=0)

    def score(self, name: str) -> Tensor:
        """(B,) float32, a built-in score, NaN for targets outside of the classes; or bools for ``"correct"``.

        Of a score over epochs, what it is made of in each. ``"suggested_label"`` is int64, the best class but for the
        target, −1 where that is not known; ``"signed_confidence"`` the highest probability, negative where that is not
        the target's.
        """
        name = _OVER_EPOCHS.get(name, name)
        if name == "correct":
            return self.numbers["correct"] & self.valid
        if name == "suggested_label":
            known = self.valid & self.numbers["best_other"].isfinite()
            return torch.where(known, self.numbers["suggested_label"], -1)
        if name == "el2n":
            norm = self._odds_sum.square().add_(self.numbers["odds_squares"]).sqrt_()
            values = norm.div_(self._lead.neg().exp_().add_(self._odds_sum))
        elif name == "loss":
            values = F.softplus(self._lead + self._odds_sum.log())
        elif name == "margin":
            values = -self._lead
        elif name == "probability":
            values = (self._lead + self._odds_sum.log()).neg().sigmoid()
        elif name == "softmax_margin":
            best_other = self._lead.neg().exp_().add_(self._odds_sum).reciprocal_()
            values = (self._lead + self._odds_sum.log()).neg().sigmoid() - best_other
        elif name == "signed_confidence":
            label, best = self._lead.clamp(min=0).neg_().exp_(), self._lead.clamp(max=0).exp_()
            highest = torch.addcmul(label, best, self._odds_sum).reciprocal_()
            values = torch.where(self._lead > 0, -highest, highest)
        else:
            values = self.numbers["entropy"]
        return self.masked(values)

    def masked(self, values: Tensor) -> Tensor:
        """``values`` as float32, NaN for targets outside of the classes."""
        return torch.where(self.valid, values, torch.nan).float()


def _best(others: Tensor, along: int) -> tuple[Tensor, Tensor]:
    """(B,) the highest, and which it is: the first of equals. Any number where it is NaN."""
    if not others.is_cpu:
        best, index = others.max(along)
        return best, index
    if along == 1:  # NumPy finds it in a tenth of the time that torch takes
        index = torch.from_numpy(others.numpy().argmax(1))
        return others.gather(1, index.unsqueeze(1)).squeeze(1), index
    best, classes = others.amax(0), len(others)
    from_the_last = torch.arange(classes, 0, -1, dtype=torch.uint8).unsqueeze(1)
    return best, classes - from_the_last.mul((others == best).view(torch.uint8)).amax(0).long()


def _is_argmax(others: Tensor, along: int, label: Tensor, best: Tensor, targets: Tensor) -> Tensor:
    """(B,) bool, whether argmax gives the label; of equal logits it gives the first."""
    right, tied = label > best, label == best
    if not tied.is_cpu or tied.any():  # ties are rare, and a CPU need not look for the first one
        first = (others == best.unsqueeze(along)).byte().argmax(along)
        right |= tied & (targets <= first)  # equal only where all are −inf, as its own place among the others is
    return right


def _entropies(logits: Tensor) -> Tensor:
    best, index = logits.max(1, keepdim=True)
    gaps = best - logits
    # Without the best class, whose probability close to 1 would hide all the others'.
    odds = (-gaps).exp_().scatter_(1, index, 0.0)
    total = torch.add(odds.sum(1), best.squeeze(1), alpha=0)  # NaN where the best is infinite
    return total.log1p() + torch.where(odds > 0, odds * gaps, 0.0).sum(1) / (1 + total)


def _alone(name: str, logits: Tensor, targets: Tensor) -> Tensor:
    check_logits(logits, targets)
    return Prediction.of((name,), logits, targets).score(name)


def el2n(logits: Tensor, targets: Tensor) -> Tensor:
    """Norm of the error vector, ‖softmax(logits) − onehot(target)‖₂ (Paul et al. 2021).

    Of (B, C) floats of any precision, C >= 2, and (B,) class indices, it gives (B,) float32 in [0, √2], higher is
    harder; NaN for a target outside [0, C) and for logits that are not finite. Precise to a few float32 roundings
    however confident the sample is, where √(Σp² − 2p_y + 1) gives 0 from a margin of about 16 on.

    >>> el2n(torch.tensor([[0.0, 0.0], [20.0, 0.0]]), torch.tensor([1, 0]))
    tensor([7.0711e-01, 2.9149e-09])
    """
    return _alone("el2n", logits, targets)


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy −log softmax(logits)[target], in nats, at least 0, higher is harder; otherwise as :func:`el2n`.

    >>> loss(torch.tensor([[0.0, 0.0], [40.0, 0.0]]), torch.tensor([1, 0]))
    tensor([6.9315e-01, 4.2484e-18])
    """
    return _alone("loss", logits, targets)


def margin(logits: Tensor, targets: Tensor) -> Tensor:
    """Label's logit minus the largest other logit; its mean over epochs is the AUM (Pleiss et al. 2020).

    In units of logits, **lower** is harder; otherwise as :func:`el2n`.

    >>> margin(torch.tensor([[3.0, 1.0, 2.5]]), torch.tensor([0]))
    tensor([0.5000])
    """
    return _alone("margin", logits, targets)


def softmax_margin(logits: Tensor, targets: Tensor) -> Tensor:
    """Label's probability minus the largest other one, in [−1, 1], **lower** is harder; otherwise as :func:`el2n`.

    >>> softmax_margin(torch.zeros(1, 4), torch.tensor([2]))
    tensor([0.])
    """
    return _alone("softmax_margin", logits, targets)


def probability(logits: Tensor, targets: Tensor) -> Tensor:
    """Label's probability, softmax(logits)[target], in [0, 1], **lower** is harder; otherwise as :func:`el2n`.

    >>> probability(torch.zeros(1, 4), torch.tensor([2]))
    tensor([0.2500])
    """
    return _alone("probability", logits, targets)


def entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Entropy of the predicted distribution, −Σ p log p, in nats, in [0, log C]; higher is harder.

    Of the targets only the validity matters; otherwise as :func:`el2n`.

    >>> entropy(torch.zeros(1, 4), torch.tensor([2]))
    tensor([1.3863])
    """
    return _alone("entropy", logits, targets)


def correct(logits: Tensor, targets: Tensor) -> Tensor:
    """(B,) bool, ``logits.argmax(1) == targets``: of equal logits the first one wins. False for NaN.

    >>> correct(torch.tensor([[2.0, 2.0], [2.0, 2.0]]), torch.tensor([0, 1]))
    tensor([ True, False])
    """
    return _alone("correct", logits, targets)
