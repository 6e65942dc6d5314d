"""The forward hook, and the tensors in what it hears."""

from __future__ import annotations

import copy
import gc
import pickle
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from prunesampler.capture.forward_hook import ForwardHook, check_hookable, tensor_leaves, to_device
from prunesampler.errors import UnsupportedError


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
    x = torch.zeros(4, 2)
    y = model(input=x)
    assert ear.heard[0][0][-1]["input"] is x
    assert ear.heard[0][1] is y
    with torch.no_grad():
        model(x)
    model.eval()
    model(x)
    assert len(ear.heard) == 1
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


class Store(dict[str, Any]):
    pass


class Graph:
    """As a batch of torch_geometric is made: the tensors are in a mapping of its own."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        self._store = Store(tensors)
        self.loop = self

    def to(self, device: torch.device) -> Graph:
        return Graph(**{name: tensor.to(device) for name, tensor in self._store.items()})


@dataclass(slots=True)
class Slots:
    x: torch.Tensor
    y: torch.Tensor


@dataclass
class Fields:
    x: torch.Tensor
    y: torch.Tensor


@pytest.mark.parametrize("kind", [SimpleNamespace, Graph, Slots, Fields])
def test_tensors_of_a_batch_that_is_an_object_are_seen(kind: Any) -> None:
    x, y = torch.zeros(2, 3), torch.tensor([1, 0])
    leaves = list(tensor_leaves([kind(x=x, y=y)]))
    assert leaves[0] is x
    assert leaves[1] is y


def test_objects_that_are_no_batch_are_left_alone() -> None:
    model = nn.Linear(2, 2)
    dataset = torch.utils.data.TensorDataset(torch.zeros(2))
    assert list(tensor_leaves([model, nn.Linear, "text", 3, None, dataset, len, torch.float32])) == []
    moved = to_device({"graph": Graph(x=torch.zeros(2)), "name": "text"}, torch.device("meta"))
    assert next(tensor_leaves(moved)).device.type == "meta"


def test_a_pickle_of_the_model_needs_no_prunesampler() -> None:
    model, ear = nn.Linear(2, 3), Ear()
    ForwardHook(model, ear)
    written = pickle.dumps(model)
    assert b"prunesampler" not in written
    again, x = pickle.loads(written), torch.ones(1, 2)
    torch.testing.assert_close(again(input=x), model(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_what_cannot_be_hooked_is_refused_and_scripting_says_when() -> None:
    x = torch.ones(1, 2)
    for made in (torch.jit.script(nn.Linear(2, 3)), torch.jit.trace(nn.Linear(2, 3), x)):
        with pytest.raises(UnsupportedError, match=r"ScriptModule.*observe\(logits\)"):
            check_hookable(made)
    model, ear = nn.Linear(2, 3), Ear()
    hook = ForwardHook(model, ear)
    with pytest.raises(AttributeError, match=r"cannot be scripted while prunesampler.*detach\(\)"):
        torch.jit.script(model)
    hook.remove()
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))
