"""The barrier against models whose errors along the line are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunesampler as ps
from prunesampler.analysis.error_barrier import error_barrier


def line(weight: float, bias: float) -> nn.Module:
    """Answers class 1 where weight · x + bias > 0."""
    model = nn.Linear(1, 2)
    model.weight.data = torch.tensor([[0.0], [weight]])
    model.bias.data = torch.tensor([0.0, bias])
    return model


def test_it_is_the_greatest_excess_over_the_line_between_the_ends() -> None:
    x = torch.linspace(-1, 1, 20).unsqueeze(1)
    y = (x[:, 0].abs() > 0.5).long()
    first, second = line(1.0, -0.5), line(-1.0, -0.5)  # each is right but for five of twenty
    before = [value.clone() for value in first.state_dict().values()]
    found = error_barrier(first, second, [(x[:7], y[:7]), (x[7:], y[7:])], places=5)
    wanted = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        answers = [int((2 * share - 1) * float(value) - 0.5 > 0) for value in x]
        wanted.append(sum(a != b for a, b in zip(answers, y.tolist(), strict=True)) / 20)
    assert found.errors == pytest.approx(wanted)
    assert wanted[0] == wanted[-1] == 0.25
    assert found.height == pytest.approx(max(wanted) - 0.25)
    assert found.height > 0.2
    assert all(torch.equal(a, b) for a, b in zip(before, first.state_dict().values(), strict=True))


def test_running_statistics_lie_on_the_line_and_counts_do_not() -> None:
    models = [nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 2)) for _ in range(2)]
    models[0][0].running_mean.fill_(4)
    models[0][0].num_batches_tracked.fill_(3)
    models[1].load_state_dict({**models[0].state_dict(), "0.running_mean": torch.zeros(1)})
    for model in models:
        model[1].weight.data = torch.tensor([[0.0], [1.0]])
        model[1].bias.data.zero_()
    x, y = torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1])  # right where the mean is between them
    assert error_barrier(*models, [(x, y)], places=3).errors == (0.5, 0.0, 0.5)


def test_refusals() -> None:
    rows = [(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))]
    for others, options, match in (
        ((nn.Linear(1, 3), rows), {}, "second must have the parameters of first"),
        ((line(1, 0), []), {}, "batches must hold at least one batch"),
        ((line(1, 0), rows), {"places": 1}, "places must be an int >= 2"),
    ):
        with pytest.raises(ps.ArgumentError, match=match):
            error_barrier(line(1, 0), *others, **options)
