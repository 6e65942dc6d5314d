"""Which layer gave the logits, and what it was given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunesampler.capture.last_layer import LastLayer
from prunesampler.errors import UnsupportedError


class Two(nn.Module):
    """A second head of the same shape, called last."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.auxiliary = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x).relu()
        return self.head(features), self.auxiliary(features)


def test_the_layer_is_the_one_whose_output_the_logits_are() -> None:
    model, x = Two(), torch.randn(5, 3)
    with LastLayer(model) as last:
        for which, head in enumerate((model.head, model.auxiliary)):
            output = model(x)[which]
            layer, features = last.inputs(output.clone())
            assert layer is head
            assert torch.equal(features, model.body(x).relu())
            assert not features.requires_grad
        logits = model(x)[0] * 2
        with pytest.raises(UnsupportedError, match="logits of this Two are not what one of its"):
            last.inputs(logits)
    assert not any(layer._forward_hooks for layer in model.modules())
