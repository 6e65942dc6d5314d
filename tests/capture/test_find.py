"""Where logits and targets are looked for, and where that is refused as a guess."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prunesampler.capture.find import Finder, check_batch, find_logits, find_targets
from prunesampler.errors import ArgumentError, PruneSamplerWarning, UnsupportedError

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
    Named, Other = namedtuple("Named", "x place y"), namedtuple("Other", "image klass")
    batches = [(LOGITS, y), [LOGITS, y, "path"], {"x": LOGITS, "labels": y}, {"image": LOGITS, "y": y}]
    for batch in [*batches, Named(LOGITS, torch.tensor([0]), y), Other(LOGITS, y)]:
        assert find_targets(batch) is y
    for batch in [LOGITS, (LOGITS,), {"x": LOGITS}, None]:
        with pytest.raises(UnsupportedError, match="target_fn="):
            find_targets(batch)


class Heads(nn.Module):
    """Features of a width, and logits of them; handed out as the test says."""

    def __init__(self, width: int, classes: int, returns: Any) -> None:
        super().__init__()
        self.body, self.head, self.other = nn.Linear(4, width), nn.Linear(width, classes), nn.Linear(width, classes)
        self.returns = returns

    def forward(self, x: torch.Tensor) -> Any:
        features = self.body(x).relu()
        return self.returns(features, self.head(features), self.other(features))


CLEAR = {
    "logits and the features that they are of": lambda f, z, aux: (z, f),
    "two heads, the main one first": lambda f, z, aux: (z, aux),
    "logits, then boxes of many queries": lambda f, z, aux: (z, torch.zeros(6, 5, 4)),
    "logits and normalised features": lambda f, z, aux: (z, nn.functional.normalize(f)),
    "logits, and the same once more": lambda f, z, aux: (z, z * 0.5),
    "logits, then a value each": lambda f, z, aux: (z, f[:, :1]),
    "logits, then a feature map": lambda f, z, aux: [z, f[:, :, None, None]],
    "logits, then something of another length": lambda f, z, aux: (z, torch.zeros(7, 9)),
    "named logits": lambda f, z, aux: namedtuple("Output", "aux_logits logits")(f, z),
}


@pytest.mark.parametrize("kind", CLEAR)
def test_a_tuple_that_leaves_no_doubt(kind: str) -> None:
    finder = Finder(None, None, own_scores=False)
    output = Heads(9, 3, CLEAR[kind])(torch.randn(6, 4))
    logits = getattr(output, "logits", output[0])
    assert finder.logits(output) is logits
    with torch.no_grad():  # what training has cleared holds in a pass without gradients
        output = Heads(9, 3, CLEAR[kind])(torch.randn(6, 4))
        assert finder.logits(output) is getattr(output, "logits", output[0])


DOUBTFUL = {
    "features first": (lambda f, z, aux: (f, z), 1),
    "normalised features first": (lambda f, z, aux: (nn.functional.normalize(f), z), 1),
    "detached features first": (lambda f, z, aux: (f.detach(), z), 1),
    "an unused teacher first": (lambda f, z, aux: (aux.detach(), z), 1),
    "a list": (lambda f, z, aux: [f, z], 1),
    "a tuple in a tuple": (lambda f, z, aux: ((f, z), "more"), None),
    "a feature map first": (lambda f, z, aux: (f[:, :, None, None], z), 1),
    "the loss first": (lambda f, z, aux: (z.mean(), z), 1),
    "a value first": (lambda f, z, aux: (f[:, :1], z), 1),
    "boxes first": (lambda f, z, aux: (torch.nn.functional.pad(aux, (0, 1)), z), 1),
}


@pytest.mark.parametrize("width", [9, 3, 2])
@pytest.mark.parametrize("kind", DOUBTFUL)
def test_a_tuple_whose_logits_may_be_elsewhere(kind: str, width: int) -> None:
    returns, place = DOUBTFUL[kind]
    output = Heads(width, 3, returns)(torch.randn(6, 4))
    with pytest.raises(UnsupportedError, match=r"logits_fn=lambda output: output\[1\]"):
        Finder(None, None, own_scores=False).logits(output)
    if place is not None:
        found = Finder(lambda output: output[place], None, own_scores=False).logits(output)
        assert found is output[place]


def test_without_a_gradient_two_heads_are_told_of() -> None:
    with torch.no_grad():
        output = Heads(3, 3, lambda f, z, aux: (f, z))(torch.randn(6, 4))
    with pytest.warns(PruneSamplerWarning, match=r"logits_fn=lambda output: output\[1\]"):
        Finder(None, None, own_scores=False).logits(output)
    assert Finder(lambda output: output[1], None, own_scores=False).logits(output) is output[1]


def test_what_logits_fn_returns_is_a_tensor() -> None:
    with pytest.raises(ArgumentError, match=r"^logits_fn must return a tensor"):
        Finder(lambda output: "text", None, own_scores=False).logits(LOGITS)


X, Y, ROWS = torch.randn(8, 5), torch.tensor([0, 2, 1, 1, 0, 2, 2, 0]), torch.tensor([9, 4, 30, 2, 7, 11, 5, 20])
PLACE = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0])
OFFSETS = torch.arange(0, 80, 10)

CLEAR_BATCHES: list[Any] = [
    (X, Y),
    [X, Y, "a path"],
    (X, Y, ["paths"] * 8),
    (X, Y, ROWS),
    (X, Y, ROWS.numpy()),
    (X, Y, X[:, 0]),
    (X, Y, PLACE.bool()),
    (X, Y, PLACE[:, None]),
    (PLACE, Y),
    (X, Y.tolist()),
    {"x": X, "place": PLACE, "y": Y},
    {"label": Y, "labels": Y.clone()},
    namedtuple("Batch", "x place y")(X, PLACE, Y),
]


@pytest.mark.parametrize("batch", CLEAR_BATCHES)
def test_a_batch_whose_labels_are_clear(batch: Any) -> None:
    check_batch(batch, ROWS)
    assert torch.equal(torch.as_tensor(find_targets(batch)), Y)


DOUBTFUL_BATCHES: list[tuple[Any, str]] = [
    ((X, PLACE, Y), "batch[2]"),
    ((X, PLACE.to(torch.uint8), Y.int()), "batch[2]"),
    ((X, PLACE.numpy(), Y.tolist()), "batch[2]"),
    ((PLACE, PLACE.flip(0), Y), "batch[2]"),
    ((ROWS, X, Y), "batch[2]"),
    ((ROWS, X, "text", Y), "batch[3]"),
    ((X, ROWS, Y), "batch[2]"),
    ((X, X.flip(1), Y), "batch[2]"),
    ((X, ["paths"] * 8, Y), "batch[2]"),
    ((torch.arange(80), OFFSETS, Y), "batch[2]"),
    ((Y, torch.arange(80), OFFSETS), "batch[0]"),
    ((Y, X), "batch[0]"),
    ((Y, torch.zeros(8, 5, dtype=torch.long)), "batch[0]"),
    ({"label": PLACE, "y": Y}, "batch['label']"),
    (namedtuple("Batch", "x target y")(X, PLACE, Y), "batch.target"),
]


@pytest.mark.parametrize(("batch", "cure"), DOUBTFUL_BATCHES)
def test_a_batch_whose_labels_may_be_elsewhere(batch: Any, cure: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        Finder(None, None, own_scores=False).targets(batch, ROWS)
    assert f"target_fn=lambda batch: {cure}" in str(caught.value)
    said = eval(f"lambda batch: {cure}")
    found = Finder(None, said, own_scores=False).targets(batch, ROWS)
    assert torch.equal(torch.as_tensor(found), Y if "arget" not in cure and "'" not in cure else PLACE)


@pytest.mark.parametrize("weight", [0.5, torch.tensor(0.5), np.float64(0.5), torch.tensor([0.5])])
def test_a_batch_with_a_mixing_weight(weight: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"if it is mixed .*rescore=plain_loader; otherwise say"):
        check_batch((X, Y, Y.flip(0), weight), ROWS)


def test_targets_of_another_task_are_not_looked_at() -> None:
    masks = torch.zeros(8, 4, 4)
    assert Finder(None, None, own_scores=True).targets((X, masks, Y), ROWS) is masks


def test_later_batches_are_taken_as_the_first_ones() -> None:
    finder = Finder(None, None, own_scores=False, batches=2)
    for _ in range(2):
        with pytest.raises(UnsupportedError):
            finder.targets((X, PLACE, Y), ROWS)
    assert finder.targets((X, PLACE, Y), ROWS) is PLACE
