"""A pass over rescore= calls the model with what the loop calls it with, or says early that it would not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.data import DataLoader, TensorDataset

import prunesampler as ps

N, CLASSES = 32, 3
_GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(N, 3, 6, 6, generator=_GENERATOR)
Y = torch.randint(CLASSES, (N,), generator=_GENERATOR)
MEAN, STD = torch.tensor([0.49, 0.48, 0.45])[:, None, None], torch.tensor([0.25, 0.24, 0.26])[:, None, None]


class Net(nn.Module):
    def __init__(self, features: int = 108) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(features, CLASSES)

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        x = x.flatten(1)
        return self.head(x if more is None else torch.cat([x, more.flatten(1)], 1))


def run(x: Tensor, change: Callable[[Tensor], Any], model: nn.Module | None = None, **options: Any) -> Any:
    """The handle after a scoring epoch of a loop that gives the model ``change(x)``."""
    model = Net() if model is None else model
    data = TensorDataset(x, Y)
    plain = DataLoader(data, batch_size=10)
    options = {"score_epochs": 1, "epoch_length": "full", "rescore": plain, **options}
    loader = ps.attach(DataLoader(data, batch_size=8, shuffle=True), model, **options)
    for a, b in loader:
        inputs = change(a)
        logits = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
        cross_entropy(logits, b).backward()
    return loader.pruning


def check(pruning: Any, logits: Tensor) -> None:
    pruning.finish()
    expected = (logits.detach().double().softmax(1) - one_hot(Y, CLASSES)).norm(dim=1)
    np.testing.assert_allclose(pruning.table.scores["el2n"], expected, rtol=0, atol=1e-5)


CHANGED: dict[str, tuple[Tensor, Callable[[Tensor], Any]]] = {
    "normalised": (IMAGES, lambda x: (x - MEAN) / STD),
    "to [-1, 1]": (IMAGES, lambda x: 2 * x - 1),
    "mean subtracted": (IMAGES / 8 + 0.5, lambda x: x - 0.5),
    "bytes to floats": ((IMAGES * 255).byte(), lambda x: x / 255),
    "doubles to floats": (IMAGES.double(), lambda x: x.float()),
    "0 … 255 to 0 … 1": (IMAGES * 255, lambda x: x / 255),
    "flattened": (IMAGES, lambda x: x.flatten(1)),
    "channels moved": (IMAGES.permute(0, 2, 3, 1), lambda x: x.permute(0, 3, 1, 2)),
    "a channel scaled": (IMAGES, lambda x: x * torch.tensor([1, 1, 4.0])[:, None, None]),
    "table standardised": (IMAGES.flatten(1) * 30 + 100, lambda x: (x - 115) / 8.7),
    "two views": (IMAGES, lambda x: (x[:, :, :3], x[:, :, 3:])),
}


@pytest.mark.parametrize("case", CHANGED)
def test_what_the_loop_changes_demands_input_fn(case: str) -> None:
    x, change = CHANGED[case]
    with pytest.raises(ps.UnsupportedError, match=r"rescore=.*input_fn="):
        run(x, change)
    inputs = change(x)
    expected = Net()(*inputs) if isinstance(inputs, tuple) else Net()(inputs)
    check(run(x, change, input_fn=lambda batch: change(batch[0])), expected)


KEPT: dict[str, Callable[[Tensor], Any]] = {
    "nothing": lambda x: x,
    "a copy": lambda x: x.clone(),
    "mixup": lambda x: 0.5 * x + 0.5 * x.flip(0),
    "CutMix": lambda x: torch.cat([x[:, :, :3], x.flip(0)[:, :, 3:]], 2),
    "flipped": lambda x: x.flip(3),
    "shifted": lambda x: nn.functional.pad(x, (1, 0, 1, 0), mode="reflect")[:, :, :6, :6],
    "brighter": lambda x: x * 1.2,
    "noise": lambda x: x + 0.1 * torch.randn_like(x),
    "erased in part": lambda x: x * (torch.rand(len(x), 1, 6, 6) > 0.1),
    "twice": lambda x: torch.cat([x, x])[: len(x)],
}


@pytest.mark.parametrize("case", KEPT)
def test_mixing_and_augmentation_need_nothing(case: str) -> None:
    check(run(IMAGES, KEPT[case]), Net()(IMAGES))


def test_labels_that_are_given_too_are_no_inputs() -> None:
    class WithLoss(Net):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:  # type: ignore[override]
            return {"logits": super().forward(x), "loss": labels}

    model = WithLoss()
    data = [{"x": x, "labels": y} for x, y in zip(IMAGES, Y, strict=True)]
    loader = ps.attach(
        DataLoader(data, batch_size=8, shuffle=True),  # type: ignore[arg-type]
        model,
        score_epochs=1,
        epoch_length="full",
        rescore=DataLoader(data, batch_size=8),  # type: ignore[arg-type]
    )
    for batch in loader:
        cross_entropy(model(**batch)["logits"], batch["labels"]).backward()
    check(loader.pruning, Net()(IMAGES))


def test_tokens_that_are_masked_in_the_loop_need_nothing() -> None:
    words = torch.randint(1, 50, (N, 5))

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.bag = nn.EmbeddingBag(50, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.bag(x)

    check(run(words, lambda x: x * (torch.rand(x.shape) > 0.2), Words()), Words()(words))


def test_a_batch_in_which_no_inputs_are_found_is_refused_at_once() -> None:
    model = Net()
    data = [{"pixels": x, "id": i, "labels": y} for i, (x, y) in enumerate(zip(IMAGES, Y, strict=True))]

    def attached(**options: Any) -> Any:
        loader = DataLoader(data, batch_size=8, shuffle=True)  # type: ignore[arg-type]
        return ps.attach(loader, model, score_epochs=1, epoch_length="full", rescore=loader_of(data), **options)

    loader = attached()
    with pytest.raises(ps.UnsupportedError, match="input_fn="):
        next(iter(loader))
    loader.pruning.detach()
    loader = attached(input_fn=lambda batch: batch["pixels"])
    for batch in loader:
        cross_entropy(model(batch["pixels"]), batch["labels"]).backward()
    check(loader.pruning, Net()(IMAGES))


def loader_of(data: Any) -> Any:
    return DataLoader(data, batch_size=8)
