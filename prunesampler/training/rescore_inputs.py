"""Whether the pass over ``rescore`` will see the same rows, and call the model with what the loop calls it with."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from prunesampler.capture.find import TARGET_KEYS, Finder, find_targets
from prunesampler.capture.forward_hook import tensor_leaves
from prunesampler.capture.row_loader import RowLoader, RowPipeline
from prunesampler.capture.rows import check_followed, row_stream
from prunesampler.errors import ArgumentError, UnsupportedError
from prunesampler.sampling.eligible import eligible_rows
from prunesampler.tracking.eval_pass import model_inputs

_BATCHES = 4  # fetched ahead of the first forward that are remembered


class RescoreInputs:
    """Compares what a pass would take from the first batches with what the first training forward was given.

    A pass takes the inputs out of a batch as they are. Where the loop normalises them, converts them or moves their
    axes it needs ``input_fn=``. Mixing and augmentation change single values and keep their distribution.
    """

    def __init__(self, model: nn.Module, finder: Finder) -> None:
        self._model, self._finder = model, finder
        self._waiting: list[list[Tensor]] = []

    def fetched(self, batch: Any) -> None:
        """The loop was handed ``batch``. UnsupportedError: a pass would find no inputs in it."""
        if len(self._waiting) < _BATCHES:
            try:
                targets = (self._finder.target_fn or find_targets)(batch)
            except UnsupportedError:
                targets = None
            self._waiting.append(_leaves(model_inputs(self._model, batch, targets)))

    def forwarded(self, inputs: tuple[Any, ...]) -> bool:
        """The model was given positional ``inputs`` and, last, its keywords; whether there was a batch to compare.

        UnsupportedError: a pass would give it others.
        """
        *given, keywords = inputs
        keywords = {name: value for name, value in keywords.items() if name not in TARGET_KEYS}
        differences = [_difference(expected, _leaves((given, keywords))) for expected in self._waiting]
        if differences and None not in differences:
            raise UnsupportedError(
                f"the pass over rescore= would not give the model what the loop gives it: {differences[0]}. Give "
                "input_fn=, a function from a batch of rescore to what the model is called with, which normalises, "
                "converts and moves axes as the loop does"
            )
        return bool(differences)


def _leaves(inputs: Any) -> list[Tensor]:
    return [leaf for leaf in tensor_leaves(inputs) if leaf.numel() > 1]


def _difference(expected: list[Tensor], given: list[Tensor]) -> str | None:
    if len(expected) != len(given):
        return f"{len(expected)} tensors of the batch, where the model was given {len(given)}"
    left = list(given)
    for mine in expected:
        texts = [_unlike(mine, other) for other in left]
        if None not in texts:
            return texts[0]
        del left[texts.index(None)]
    return None


def _unlike(mine: Tensor, other: Tensor) -> str | None:
    kinds = [f"{leaf.dtype} of shape (batch, {str(tuple(leaf.shape[1:]))[1:-1]})" for leaf in (mine, other)]
    if kinds[0] != kinds[1]:
        return f"{kinds[0]} of the batch, where the model was given {kinds[1]}"
    if not mine.is_floating_point() or mine.layout != torch.strided or other.layout != torch.strided:
        return None
    (means, spreads), (other_means, other_spreads) = _distribution(mine), _distribution(other)
    widest = torch.maximum(spreads, other_spreads)
    moved = (means - other_means).abs() > widest + 1e-6 * means.abs()
    scaled = (torch.minimum(spreads, other_spreads) < 0.55 * widest) & (widest > 0)
    if not bool((moved | scaled).any()):
        return None
    worst = int((moved | scaled).int().argmax())
    return (
        f"values of mean {float(means[worst]):.3g} and standard deviation {float(spreads[worst]):.3g}, where the model "
        f"was given {float(other_means[worst]):.3g} and {float(other_spreads[worst]):.3g}"
    )


def _distribution(leaf: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of images, or of all values."""
    values = leaf.detach().cpu().double()
    channels = values.transpose(0, 1).flatten(1) if values.dim() == 4 else values.reshape(1, -1)
    return channels.mean(1), channels.std(1, correction=0)


def check_rescore(rescore: Any, swap: Any, model: nn.Module | None, *, row_fn: bool) -> None:
    """Refuse a loader over other rows than those that are trained on."""
    check_followed(rescore, row_fn=row_fn)
    if model is None:
        raise ArgumentError("model", "must be a torch.nn.Module where rescore= is given", model)
    if isinstance(rescore, RowLoader | RowPipeline):
        raise ArgumentError("rescore", "must be a loader of its own, not the attached one", rescore)
    stream, dataset = row_stream(rescore), getattr(rescore, "dataset", None)
    if stream is None and (not isinstance(rescore, DataLoader) or isinstance(dataset, IterableDataset)):
        return  # what its rows are row_fn says
    found = len(cast(Any, dataset)) if stream is None else stream.num_rows
    if found != swap.num_rows:
        raise ArgumentError("rescore", f"must have the same {swap.num_rows} rows as loader", found)
    sampler = getattr(getattr(rescore, "batch_sampler", None), "sampler", None)
    scored = eligible_rows(sampler, found) if stream is None and not row_fn else None
    if scored is not None:
        missing = np.setdiff1d(np.arange(found) if swap.eligible is None else swap.eligible, scored)
        if len(missing):
            raise ArgumentError("rescore", "must hand out every row that loader can", f"none of row {missing[0]}")
