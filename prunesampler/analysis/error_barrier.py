"""Whether two trained models lie in one basin of the loss, as seen from some rows (Paul et al. 2021, section 5.2)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunesampler.errors import ArgumentError, check_int


@dataclass(frozen=True)
class Barrier:
    """The error along the line between two models.

    Attributes:
        height: the most by which the error exceeds the line between the errors of both ends, in [0, 1].
        errors: the share of wrong answers at each place, from the second model (0) to the first (1).
    """

    height: float
    errors: tuple[float, ...]


@torch.no_grad()
def error_barrier(
    first: nn.Module, second: nn.Module, batches: Iterable[tuple[Any, Tensor]], *, places: int = 11
) -> Barrier:
    """sup over α of R(αw + (1 − α)w′) − αR(w) − (1 − α)R(w′), R the share of wrong answers, at equally spaced α.

    Parameters and running statistics lie on the line alike. Children of one parent that were trained on from it with
    another order of the data are linearly connected where the barrier is about 0.

    Args:
        first: w, whose logits are its output; it is not changed.
        second: w′, of the same architecture.
        batches: (inputs, (B,) class indices), read once: the rows to look at.
        places: number of α, both ends included.

    Raises:
        ArgumentError: fewer places than 2, models of different parameters, or no batches.

    >>> model, rows = nn.Linear(2, 2), [(torch.eye(2), torch.tensor([0, 1]))]
    >>> error_barrier(model, copy.deepcopy(model), rows).height
    0.0
    """
    check_int("places", places, 2)
    ends = [model.state_dict() for model in (first, second)]
    shapes = [{name: (value.shape, value.dtype) for name, value in end.items()} for end in ends]
    if shapes[0] != shapes[1]:
        raise ArgumentError("second", "must have the parameters of first", f"a {type(second).__name__}")
    rows = list(batches)
    if not rows:
        raise ArgumentError("batches", "must hold at least one batch", batches)
    between = copy.deepcopy(first).eval()
    errors = []
    for place in range(places):
        share = place / (places - 1)
        between.load_state_dict(
            {
                name: torch.lerp(ends[1][name], value, share) if value.is_floating_point() else value
                for name, value in ends[0].items()
            }
        )
        wrong = [(between(x).argmax(1) != y).double() for x, y in rows]
        errors.append(float(torch.cat(wrong).mean()))
    line = [errors[0] + (errors[-1] - errors[0]) * place / (places - 1) for place in range(places)]
    return Barrier(max(error - straight for error, straight in zip(errors, line, strict=True)), tuple(errors))
