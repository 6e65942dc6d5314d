"""What logits come down to, seen from their labels: all the work of scoring that grows with the number of classes."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

__all__ = ["digest", "room"]

# torch hands exp to MKL, which takes four times as long as its own exp2.
_BITS_PER_NAT = math.log2(math.e)
# Up to here reducing each row on its own takes a processor longer than writing the logits class by class.
_FEW_CLASSES = 32
# What does not fill a processor's vectors is computed otherwise, and rounded otherwise. So many numbers fill them on
# each of up to four threads, among which torch divides no more logits than are ever waited for.
_VECTORS = 384


@torch.no_grad()
def digest(names: Collection[str], logits: Tensor, targets: Tensor, memory: Tensor | None = None) -> dict[str, Tensor]:
    """The few numbers of each sample that its scores follow from.

    They are the label's logit, the best other one, and the sums of the other classes' odds and of the squares of
    these. Odds are relative to the best of them: in (0, 1] with at least one 1, so neither a very confident nor a very
    wrong sample overflows, underflows or cancels.

    Args:
        names: scores that will be asked for.
        logits: (B, C) floats.
        targets: (B,) int64.
        memory: to work in instead of fresh one: :func:`room` for these logits, or more.

    Returns:
        (B,) by name, float64 for logits of that precision, else float32. Those of a sample do not depend on what else
        is in its batch, to the last bit.

    >>> numbers = digest(("el2n",), torch.tensor([[2.0, 0.5, 0.5]]), torch.tensor([0]))
    >>> {name: value.item() for name, value in numbers.items()}
    {'label': 2.0, 'best_other': 0.5, 'odds_sum': 2.0, 'odds_squares': 2.0}
    """
    size, classes = logits.shape
    numbers = {"entropy": _entropies(logits)} if "entropy" in names else {}
    along, space, whole = _copied(logits, memory)
    others = whole.narrow(1 - along, 0, size)
    # An index outside the classes would be a device assert, which kills the process.
    index = targets.clamp(0, classes - 1).unsqueeze_(along)
    numbers["label"] = others.gather(along, index).squeeze_(along)
    # A tensor as the source takes a third of the time of a number.
    others.scatter_(along, index, torch.full_like(index, -torch.inf, dtype=others.dtype))
    numbers["best_other"] = best = others.amax(along)
    if "el2n" in names or "loss" in names:
        others.sub_(best.unsqueeze(along))
        space.mul_(_BITS_PER_NAT).exp2_()
        numbers["odds_sum"] = whole.sum(along)[:size]
        if "el2n" in names:
            space.square_()
            numbers["odds_squares"] = whole.sum(along)[:size]
    return numbers


def room(logits: Tensor, size: int) -> Tensor:
    """Memory for the :func:`digest` of up to ``size`` samples with such logits.

    To be used again and again: the system hands fresh memory out page by page, which takes longer than the digest.
    """
    classes, dtype = logits.shape[1], torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.new_empty(classes * _filled(size) if _lies_by_class(logits) else _filled(classes * size), dtype=dtype)


def _lies_by_class(logits: Tensor) -> bool:
    return logits.is_cpu and logits.shape[1] <= _FEW_CLASSES


def _filled(size: int) -> int:
    return -(-size // _VECTORS) * _VECTORS


def _copied(logits: Tensor, memory: Tensor | None) -> tuple[int, Tensor, Tensor]:
    """Along which dimension the classes lie, all that is worked on, and it as (B, C) or as (C, B or more)."""
    size, classes = logits.shape
    memory = room(logits, size) if memory is None else memory
    if _lies_by_class(logits):
        space = memory[: classes * _filled(size)].view(classes, -1)
        space[:, :size] = logits.t()
        return 0, space, space
    space = memory[: _filled(logits.numel())]
    return 1, space, space[: logits.numel()].view(size, classes).copy_(logits)


def _entropies(logits: Tensor) -> Tensor:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    best, index = logits.max(1, keepdim=True)
    gaps = best - logits
    # Without the best class, whose probability close to 1 would hide all the others'.
    odds = (-gaps).exp().scatter(1, index, 0.0)
    total = torch.add(odds.sum(1), best.squeeze(1), alpha=0)  # NaN where the best is infinite
    return total.log1p() + torch.where(odds > 0, odds * gaps, 0.0).sum(1) / (1 + total)
