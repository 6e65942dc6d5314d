from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunesampler.errors import ArgumentError
from prunesampler.sampling.systematic import inclusion_probabilities, systematic_sample

SIZES = st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=60).filter(lambda sizes: max(sizes) > 0)


def by_hand(sizes: list[float], budget: int) -> list[float]:
    """The definition: cap the largest at 1, one after another, and share what is left in proportion."""
    found: list[Fraction] = [Fraction(0)] * len(sizes)
    rest = sorted((i for i, size in enumerate(sizes) if size > 0), key=lambda i: -sizes[i])
    left = Fraction(budget)
    while rest:
        total = sum(Fraction(sizes[i]) for i in rest)
        if Fraction(sizes[rest[0]]) * left < total:
            break
        found[rest.pop(0)] = Fraction(1)
        left -= 1
    for i in rest:
        found[i] = Fraction(sizes[i]) * left / sum(Fraction(sizes[j]) for j in rest)
    return [float(each) for each in found]


@given(SIZES, st.data())
def test_probabilities_are_those_of_the_definition(sizes: list[float], data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, sum(size > 0 for size in sizes)))
    found = inclusion_probabilities(sizes, budget)
    np.testing.assert_allclose(found, by_hand(sizes, budget), atol=1e-9)
    assert found.max() <= 1
    assert abs(found.sum() - budget) < 1e-9


@given(SIZES, st.data(), st.integers(0, 2**70))
def test_exactly_the_budget_is_drawn_with_the_certain_rows_and_none_of_the_impossible(
    sizes: list[float], data: st.DataObject, seed: int
) -> None:
    budget = data.draw(st.integers(1, sum(size > 0 for size in sizes)))
    chances = inclusion_probabilities(sizes, budget)
    drawn = systematic_sample(chances, budget, seed)
    assert len(drawn) == len(set(drawn.tolist())) == budget
    assert (np.diff(drawn) > 0).all()
    assert set(np.flatnonzero(chances == 1)) <= set(drawn.tolist())
    assert (chances[drawn] > 0).all()
    np.testing.assert_array_equal(drawn, systematic_sample(chances, budget, seed))


def drawn_share(chances: npt.NDArray[np.float64], budget: int, draws: int) -> npt.NDArray[np.float64]:
    counts = np.zeros(len(chances))
    for seed in range(draws):
        counts[systematic_sample(chances, budget, seed)] += 1
    return counts / draws


@pytest.mark.parametrize("budget", [1, 7, 20])
def test_rows_are_drawn_as_often_as_their_probability_says(budget: int) -> None:
    sizes = np.random.default_rng(0).pareto(1.5, 40) + 0.05
    chances = inclusion_probabilities(sizes, budget)
    draws = 4000
    spread = np.sqrt(chances * (1 - chances) / draws)
    assert (np.abs(drawn_share(chances, budget, draws) - chances) <= 4.5 * spread + 1e-12).all()


def test_the_expected_weighted_gradient_is_that_of_all_the_data() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 4, generator=generator), torch.randint(3, (30,), generator=generator)
    model = torch.nn.Linear(4, 3)
    gradients = []
    for i in range(30):
        loss = torch.nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        gradients.append(torch.autograd.grad(loss, model.weight)[0].flatten())
    each, whole = torch.stack(gradients).double().numpy(), torch.stack(gradients).double().sum(0).numpy()
    chances = inclusion_probabilities(np.linalg.norm(each, axis=1), 10)
    estimates = []
    for seed in range(3000):
        drawn = systematic_sample(chances, 10, seed)
        estimates.append((each[drawn] / chances[drawn, None]).sum(0))
    error = np.mean(estimates, axis=0) - whole
    assert (np.abs(error) <= 4.5 * np.std(estimates, axis=0) / np.sqrt(len(estimates)) + 1e-9).all()


def test_rounding_is_settled_at_a_million_rows() -> None:
    chances = inclusion_probabilities(np.random.default_rng(1).random(1_000_000), 333_333)
    assert len(np.unique(systematic_sample(chances, 333_333, 5))) == 333_333


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inclusion_probabilities([0.5, -1], 1), "probabilities must be .* finite numbers >= 0"),
        (lambda: inclusion_probabilities([0.5, np.inf], 1), "probabilities must be .* finite numbers >= 0"),
        (lambda: inclusion_probabilities([0.5, 0.0], 2), r"budget must be an int in \[1, 1\], got 2"),
        (lambda: systematic_sample([1.5, 0.5], 2, 0), r"probabilities must be .* numbers in \[0, 1\]"),
        (lambda: systematic_sample([0.5, 0.5], 2, 0), "probabilities must add up to the budget, 2, got 1.0"),
    ],
)
def test_what_is_no_probability_or_budget_is_refused(call: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()  # type: ignore[operator]
