"""The forward hook, and the tensors in what it hears."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import torch
from torch import nn

from prunesampler.capture.forward_hook import ForwardHook, tensor_leaves, to_device


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
