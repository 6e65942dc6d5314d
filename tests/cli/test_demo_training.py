from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from prunesampler.cli.demo_data import Images, load_digits, train_loader
from prunesampler.cli.demo_training import CIFAR10, DIGITS, Recipe, accuracies, threads, train
from prunesampler.errors import ArgumentError


@pytest.mark.parametrize("name", ["epochs", "score_epochs", "batch_size", "seeds"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"{name} must be an int >= 1, got 0"):
        dataclasses.replace(DIGITS, **{name: 0})


def test_scoring_must_end_before_training_does() -> None:
    with pytest.raises(ArgumentError, match="score_epochs must be below epochs, 5, got 5"):
        dataclasses.replace(DIGITS, epochs=5, score_epochs=5)


@pytest.mark.parametrize("recipe", [DIGITS, CIFAR10])
def test_a_model_depends_on_its_seed_alone(recipe: Recipe) -> None:
    before = torch.get_rng_state()
    models = [recipe.model(seed).state_dict() for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not all(torch.equal(models[0][name], models[2][name]) for name in models[0])


def test_training_takes_the_steps_it_is_given_and_learns() -> None:
    split = load_digits()
    model, loader = DIGITS.model(0), train_loader(split.train, 64, 0)
    untrained = accuracies(model, split.test, DIGITS)[0]
    done: list[int] = []
    seconds = train(model, loader, DIGITS, 50, lambda: done.append(1))
    assert len(done) == 50
    assert seconds > 0
    accuracy, worst = accuracies(model, split.test, DIGITS)
    assert untrained < 0.3 < 0.9 < accuracy <= 1
    assert 0 <= worst <= accuracy


def test_accuracy_against_counting_by_hand() -> None:
    class Echo(nn.Module):
        def forward(self, inputs: Any) -> Any:
            return nn.functional.one_hot(((inputs[:, 0, 0, 0] + 2) * 4).round().long(), 5).float()

    answers = torch.tensor([0, 0, 1, 1, 1, 3], dtype=torch.uint8)
    targets = torch.tensor([0, 0, 1, 1, 0, 1])
    images = Images(answers[:, None, None, None].expand(6, 1, 2, 2), targets, white=16)
    assert accuracies(Echo(), images, DIGITS) == pytest.approx((4 / 6, 2 / 3))
    images = Images(answers[:, None, None, None].expand(6, 1, 2, 2), torch.tensor([0, 0, 4, 4, 1, 1]), white=16)
    assert accuracies(Echo(), images, DIGITS) == pytest.approx((3 / 6, 0.0))


def test_threads_come_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), threads(1):
        assert torch.get_num_threads() == 1
        raise RuntimeError
    assert torch.get_num_threads() == before


def test_bfloat16_only_where_it_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert CIFAR10.precision is torch.float32
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert CIFAR10.precision is torch.bfloat16
    assert DIGITS.precision is torch.float32
    with CIFAR10.autocast():
        assert torch.is_autocast_enabled("cpu")
    with DIGITS.autocast():
        assert not torch.is_autocast_enabled("cpu")
