"""Whether the pass over ``rescore`` will call the model with what the loop calls it with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prunesampler.capture.find import TARGET_KEYS, Finder, find_targets
from prunesampler.capture.forward_hook import tensor_leaves
from prunesampler.errors import UnsupportedError
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


def inputs_check(
    rescored: bool, model: nn.Module | None, finder: Finder, input_fn: Callable[[Any], Any] | None
) -> RescoreInputs | None:
    """The comparison, where a pass is to come and the user has not said what it calls the model with."""
    return RescoreInputs(model, finder) if rescored and model is not None and input_fn is None else None
