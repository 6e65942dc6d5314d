"""Rows, targets and columns as callers give them, checked as far as that needs no waiting for a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunesampler.errors import ArgumentError, did_you_mean
from prunesampler.scores.registry import SCORES

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def as_tensor(argument: str, values: Any) -> Tensor:
    """A tensor of what a tensor, an array or a list holds, without its gradient, where it lies."""
    if isinstance(values, Tensor):
        return values.detach() if values.requires_grad else values
    try:
        array = np.asarray(values)
        as_torch_wants = array.flags.writeable and min(array.strides, default=0) >= 0
        return torch.from_numpy(array if as_torch_wants else array.copy())
    except (TypeError, ValueError) as error:
        raise ArgumentError(argument, "must be a tensor, an array or a list of numbers", values) from error


def check_range(argument: str, values: Tensor, end: int) -> None:
    """Refuse integers outside [0, end), where they lie on the CPU: elsewhere looking would mean waiting."""
    if not values.is_cpu or not values.shape[0]:
        return
    if values.dtype == torch.int64:
        inside = int(values.numpy().view(np.uint64).max()) < end  # there a negative number is a huge one
    else:
        inside = int(values.min()) >= 0 and int(values.max()) < end
    if not inside:
        raise ArgumentError(argument, f"must be in [0, {end})", f"{int(values.min())} … {int(values.max())}")


def check_classes(targets: Tensor, classes: int) -> None:
    """Refuse (B,) targets outside [0, classes), where they lie on the CPU."""
    try:
        check_range("targets", targets, classes)
    except ArgumentError as error:
        low, high = int(targets.min()), int(targets.max())
        if low >= 1 and high == classes:
            cure = "number them from 0, target_fn=lambda batch: batch[1] - 1"
        elif low == -1 and high == 1 and not bool((targets == 0).any()):
            cure = "of -1 and 1 make 0 and 1, target_fn=lambda batch: (batch[1] > 0).long()"
        elif low < 0:
            cure = (
                "map them to classes by target_fn=, a function from the batch to them; rows without a label (-1, -100) "
                "have no score: leave them out of the loader, with torch.utils.data.Subset"
            )
        else:
            cure = (
                "map them to the model's classes by target_fn=, a function from the batch to them, or if these are not "
                "its logits give logits_fn=, a function from its output to them"
            ) + ("; for ThresholdSamples, give the model one output more" if high == classes else "")
        raise ArgumentError("targets", f"{error.rule}: {cure}", error.value) from None


def target_tensor(targets: Any) -> Tensor:
    """Targets as a tensor. ArgumentError: they are text, or labels of a mixed batch, or of another kind."""
    try:
        return as_tensor("targets", targets)
    except ArgumentError as error:
        kinds = [type(part) for part in targets] if isinstance(targets, (tuple, list)) else []
        if kinds and all(issubclass(kind, str) for kind in kinds):
            rule = (
                "must be class indices, not text: with names, a list of the classes, give "
                "target_fn=lambda batch: torch.tensor([names.index(name) for name in batch[1]])"
            )
            raise ArgumentError("targets", rule, targets) from None
        if sum(issubclass(kind, Tensor) for kind in kinds) >= 2:
            rule = (
                "must be one tensor: if the batch is mixed (mixup, CutMix in the collate function), score in a "
                "separate pass with attach(..., rescore=plain_loader); otherwise give target_fn=, a function from the "
                "batch to the class indices"
            )
            raise ArgumentError("targets", rule, [kind.__name__ for kind in kinds]) from None
        rule = f"{error.rule}; give target_fn=, a function from the batch to them, or score_fn= for another task"
        raise ArgumentError("targets", rule, targets) from None


def row_tensor(rows: Any, length: int | None, num_rows: int) -> Tensor:
    """Rows as int64, (length,), each in [0, num_rows) as far as they lie on the CPU."""
    # Floats are refused: float32 turns row 20,000,001 into 20,000,000.
    tensor = as_tensor("rows", rows)
    if tensor.dim() != 1 or (tensor.dtype not in _INTEGERS and tensor.numel()):
        raise ArgumentError("rows", "must be integers in one dimension", f"{tensor.dtype} {tuple(tensor.shape)}")
    if length is not None and tensor.shape[0] != length:
        raise ArgumentError("rows", f"must be {length}, one per row of logits", len(tensor))
    tensor = tensor.long()
    check_range("rows", tensor, num_rows)
    return tensor


def column_tensor(name: str, values: Any, length: int) -> Tensor:
    """One number per row, (length,), of any real dtype."""
    column = as_tensor(name, values)
    if column.shape != (length,) or column.is_complex():
        raise ArgumentError(name, f"must be {length} numbers, one per row", f"{column.dtype} {tuple(column.shape)}")
    return column


def own_columns(returned: Any, wanted: Sequence[str], length: int) -> tuple[dict[str, Tensor], Tensor | None]:
    """The columns that a user's ``score_fn`` returned, (length,) each, and apart from them its bools ``"correct"``."""
    if not isinstance(returned, Mapping):
        raise ArgumentError("score_fn", "must return a dict of tensors by name", returned)
    missing = [name for name in wanted if name != "forgetting" and name not in returned]
    if missing:
        rule = f"must return all scores that are asked for, {missing} are missing (or give other scores=)"
        raise ArgumentError("score_fn", rule, list(returned))
    columns = {name: column_tensor(name, values, length) for name, values in returned.items()}
    correct = columns.pop("correct", None)
    if correct is not None and correct.dtype != torch.bool:
        raise ArgumentError("score_fn", 'must return "correct" as bools', correct.dtype)
    return columns, correct


def score_names(scores: Any, *, own: bool) -> tuple[str, ...]:
    """Distinct names of scores; of registered ones and ``"forgetting"``, unless a ``score_fn`` makes them (own)."""
    known = (*SCORES, "forgetting")
    try:
        names = (scores,) if isinstance(scores, str) else tuple(scores)
        strange = [] if own else [name for name in names if name not in known]
        good = bool(names) and len(set(names)) == len(names) and not strange
    except TypeError:
        good, strange = False, []
    if not good:
        rule = f"must name distinct scores of {known}, or of register_score() or score_fn="
        raise ArgumentError("scores", rule, scores, did_you_mean(strange[0], known) if strange else "")
    return names


def torch_device(device: Any) -> torch.device:
    """The device, with its index where it is the current one of a GPU."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ArgumentError("device", f"must be usable by torch ({error})", device) from error
