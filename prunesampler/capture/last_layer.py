"""The linear layer that gives a model's logits, and what it was given: the features of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunesampler.errors import UnsupportedError


class LastLayer:
    """Follows a model's linear layers inside a ``with`` block.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> with LastLayer(model) as last:
    ...     logits = model(torch.ones(4, 2))
    ...     layer, features = last.inputs(logits)
    >>> layer is model[2], features.shape
    (True, torch.Size([4, 3]))
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._calls: list[tuple[nn.Linear, Tensor, Tensor]] = []
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> LastLayer:
        linear = (layer for layer in self._model.modules() if isinstance(layer, nn.Linear))
        self._hooks = [layer.register_forward_hook(self._note) for layer in linear]
        return self

    def __exit__(self, *_: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        self._calls.clear()

    def _note(self, layer: Any, given: Any, output: Any) -> None:
        # Others than (batch, classes) are no logits, and may be large.
        if given and isinstance(output, Tensor) and output.dim() == 2:
            self._calls.append((layer, given[0], output))

    def inputs(self, logits: Tensor) -> tuple[nn.Linear, Tensor]:
        """The layer that gave these logits in the last forward, and its (B, d) inputs.

        Raises:
            UnsupportedError: no linear layer has given them as they are.
        """
        calls, self._calls = self._calls, []
        for layer, features, output in reversed(calls):
            if output.shape == logits.shape and (output is logits or torch.equal(output.to(logits.dtype), logits)):
                return layer, features.detach()
        raise UnsupportedError(
            f"the logits of this {type(self._model).__name__} are not what one of its nn.Linear layers gives, so it "
            "has no last layer to look into"
        )
