"""What images are worth: the published training, and as many real rows beside them."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from prunesampler.condensation import CondensedDataset, evaluate
from prunesampler.condensation.evaluate import Result, accuracy, table, train_network
from prunesampler.condensation.networks import new_network
from prunesampler.condensation.objective import seeded
from prunesampler.errors import ArgumentError
from tests.condensation.test_condense import stripes

OPTIONS: dict[str, Any] = {"network": "mlp", "epochs": 12, "seeds": 2, "progress": False}


def condensed(rows: int = 6, **options: Any) -> CondensedDataset:
    images, labels = stripes()
    order = labels[:rows].argsort()
    return CondensedDataset(images[:rows][order], labels[:rows][order], mean=[0.4], std=[0.3], **options)


def test_every_set_is_trained_on_by_every_network() -> None:
    images, labels = stripes()
    beside = ["random", "herding", "k_center", "all"]
    options = {**OPTIONS, "network": ["mlp", "convnet"], "epochs": 2}
    results = evaluate(condensed(), (images, labels), train=(images, labels), beside=beside, **options)
    assert [(each.network, each.images) for each in results] == [
        (network, name) for network in ("mlp", "convnet") for name in ("condensed", *beside)
    ]
    assert all(len(each.accuracies) == 2 for each in results)
    again = evaluate(condensed(), (images, labels), **{**options, "network": "mlp"})
    assert [each.accuracies for each in again] == [results[0].accuracies]
    options = {**OPTIONS, "network_options": {"width": 16}, "epochs": 60}
    of_all = evaluate(condensed(), (images, labels), train=(images, labels), beside=["all"], **options)[1]
    assert of_all.mean > 0.9


def test_training_is_as_published() -> None:
    images, labels = stripes(9)
    ours, plain = (new_network("mlp", (1, 8, 8), 3, 0, width=8) for _ in range(2))
    train_network(ours, images, labels, epochs=6)
    velocity = [torch.zeros_like(each) for each in plain.parameters()]
    rng = seeded(8, 0)
    for epoch in range(6):
        rows = torch.randperm(9, generator=rng)
        gradients = torch.autograd.grad(cross_entropy(plain(images[rows]), labels[rows]), list(plain.parameters()))
        rate = 0.01 if epoch <= 3 else 0.001  # after epoch 6 // 2 + 1
        with torch.no_grad():
            for place, (weight, gradient) in enumerate(zip(plain.parameters(), gradients, strict=True)):
                velocity[place] = 0.9 * velocity[place] + gradient + 5e-4 * weight
                weight -= rate * velocity[place]
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert accuracy(ours, images, labels) == (ours(images).argmax(1) == labels).double().mean()


def test_means_spreads_and_their_table() -> None:
    result = Result("random", "mlp", [0.5, 0.75, 1.0])
    assert result.mean == 0.75
    assert result.spread == pytest.approx(statistics.stdev([0.5, 0.75, 1.0]))
    assert table([result, Result("all", "mlp", [1.0])]).splitlines() == [
        "images          mlp",
        "random  75.0 ± 25.0",
        "   all  100.0 ± 0.0",
    ]


def test_bad_input_is_refused() -> None:
    images, labels = stripes()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"test": (images.expand(-1, 3, 8, 8), labels)}, r"test must be images of \(1, 8, 8\)"),
        ({"test": (images, labels + 1)}, "labels below 3"),
        ({"train": (images[:3], labels[:3])}, "class 0 has 1"),
        ({"beside": ["herd"]}, "beside must be one of"),
        ({"network": "mpl"}, "did you mean 'mlp'"),
        ({"seeds": 0}, "seeds must be an int >= 1"),
    ]
    for given, message in wrong:
        with pytest.raises(ArgumentError, match=message):
            evaluate(condensed(), **{"test": (images, labels), **OPTIONS, **given})
