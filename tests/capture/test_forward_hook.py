"""Finding logits and targets, and the forward hook."""

from __future__ import annotations

import copy
import gc
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from prunesampler.capture.forward_hook import ForwardHook, find_logits, find_targets, tensor_leaves, to_device
from prunesampler.errors import UnsupportedError

LOGITS = torch.zeros(2, 3)


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOGITS, "aux"),
        [LOGITS],
        {"logits": LOGITS, "loss": torch.tensor(1.0)},
        SimpleNamespace(logits=LOGITS, aux_logits=None),
        ({"logits": LOGITS},),
    ],
)
def test_logits_are_found(output: Any) -> None:
    assert find_logits(output) is LOGITS


@pytest.mark.parametrize("output", ["text", {"scores": LOGITS}, (), None, {"logits": "text"}])
def test_outputs_without_logits_name_the_cure(output: Any) -> None:
    with pytest.raises(UnsupportedError, match="logits_fn="):
        find_logits(output)


def test_targets_are_found() -> None:
    y = torch.tensor([1])
    for batch in [(LOGITS, y), [LOGITS, y, "path"], {"x": LOGITS, "labels": y}, {"image": LOGITS, "y": y}]:
        assert find_targets(batch) is y
    for batch in [LOGITS, (LOGITS,), {"x": LOGITS}, None]:
        with pytest.raises(UnsupportedError, match="target_fn="):
            find_targets(batch)


def test_leaves_come_in_order_and_move_together() -> None:
    a, b, c = (torch.full((1,), float(i)) for i in range(3))
    nested = {"one": a, "two": [b, ("text", c)], "three": 4}
    assert [leaf.item() for leaf in tensor_leaves(nested)] == [0, 1, 2]
    moved = to_device(nested, torch.device("meta"))
    assert [leaf.device.type for leaf in tensor_leaves(moved)] == ["meta"] * 3
    assert moved["three"] == 4


class Ear:
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def forwarded(self, inputs: Any, output: Any) -> None:
        self.heard.append((inputs, output))


def test_only_training_forwards_are_heard() -> None:
    model, ear = nn.Linear(2, 3), Ear()
    hook = ForwardHook(model, ear)
    assert hook.in_training
    x = torch.zeros(4, 2)
    y = model(input=x)
    assert ear.heard[0][0][-1]["input"] is x
    assert ear.heard[0][1] is y
    with torch.no_grad():
        model(x)
    model.eval()
    model(x)
    assert len(ear.heard) == 1
    assert not hook.in_training
    model.train()
    hook.remove()
    model(x)
    assert len(ear.heard) == 1


def test_the_model_does_not_keep_its_listener_alive() -> None:
    model, ear = nn.Linear(2, 3), Ear()
    heard = ear.heard
    ForwardHook(model, ear)
    del ear
    gc.collect()
    model(torch.zeros(1, 2))
    assert heard == []
    assert not model._forward_hooks


def test_copies_and_pickles_of_the_model_are_deaf() -> None:
    model, ear = nn.Linear(2, 3), Ear()
    ForwardHook(model, ear)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other(torch.zeros(1, 2))
    assert ear.heard == []
    model(torch.zeros(1, 2))
    assert len(ear.heard) == 1
