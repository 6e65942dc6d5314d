"""Weights of samples, applied to the gradient of their logits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from prunesampler.errors import BindingError
from prunesampler.tables.coreset import Coreset


def weight_gradient(logits: Tensor, weights: Tensor, parameter: nn.Parameter | None = None) -> None:
    """Scale the gradient that reaches each sample's logits by that sample's weight.

    This equals weighting the samples' losses wherever the loss reaches the parameters through the logits, and needs
    no per-sample loss. Weights keep their precision where the gradient has less.

    Raises:
        BindingError: the logits have no gradient; or, in the first backward that reaches ``parameter``, none came to
            them.
    """
    if not logits.requires_grad:
        raise BindingError(
            "the logits have no gradient, so samples cannot be weighted through it: logits_fn= must not detach them, "
            "and the model needs a parameter to train; or use a coreset or policy without weights"
        )
    reached = False

    def scale(gradient: Tensor) -> Tensor:
        nonlocal reached
        reached = True
        return (gradient * weights.reshape(-1, *[1] * (gradient.dim() - 1))).to(gradient.dtype)

    def check(_: Tensor) -> None:
        watch.remove()
        if not reached:
            raise BindingError(
                "a backward reached the parameters but not the model's logits, so the samples' weights were not "
                "applied: the loss is computed from something else (inside forward, or from what logits_fn= does not "
                "return); use a coreset or policy without weights"
            )

    logits.register_hook(scale)
    if parameter is not None:
        watch = parameter.register_post_accumulate_grad_hook(check)


class SampleWeights:
    """The weights of a coreset, for one batch after another."""

    def __init__(self, coreset: Coreset, model: nn.Module | None) -> None:
        self._rows, self._weights = coreset.rows, np.asarray(coreset.weights)
        parameters = () if model is None else model.parameters()
        self._watch = next((parameter for parameter in parameters if parameter.requires_grad), None)

    def of(self, rows: Tensor) -> Tensor:
        """The weights (B,), float32 on the CPU, of ``rows`` (B,), int64 on the CPU, all of them kept."""
        at = np.searchsorted(self._rows, rows.numpy()).clip(max=len(self._rows) - 1)
        if not np.array_equal(self._rows[at], rows.numpy()):
            raise BindingError("a batch has rows that were not drawn for this epoch, and so have no weight")
        return torch.from_numpy(self._weights[at])

    def apply(self, rows: Tensor, logits: Tensor) -> None:
        """Weight the gradient of the rows' logits."""
        weight_gradient(logits, self.of(rows).to(logits.device, non_blocking=True), self._watch)
        self._watch = None
