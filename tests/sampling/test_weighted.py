from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from prunesampler._random import hash64, mix
from prunesampler.sampling.weighted import Weighted, draw_rows
from tests.sampling.test_permutation import assert_even

WEIGHTS = np.array([0.0, 1.0, 2.0, 0.0, 4.0, 0.5, 0.0])
DRAWABLE = [1, 2, 4, 5]


def test_uniform_draws_are_even_and_independent():
    draws = draw_rows(np.arange(60_000), size=12, seed=3)
    assert draws.dtype == np.int64
    assert_even(np.bincount(draws, minlength=12), 5000)
    assert_even(np.bincount(draws[:-1] * 12 + draws[1:], minlength=144), (len(draws) - 1) / 144)
    assert (draws != draw_rows(np.arange(60_000), size=12, seed=4)).any()


def test_any_position_is_drawn_alone():
    weighted = Weighted(WEIGHTS, seed=2, replacement=True)
    passes = Weighted(WEIGHTS, seed=2, replacement=False)
    positions = np.arange(200)
    for draw in (weighted, passes, lambda t: draw_rows(t, size=9, seed=2)):
        whole = draw(positions).tolist()
        assert whole == [int(draw([t])[0]) for t in positions.tolist()]
        assert whole[::-1] == draw(positions[::-1]).tolist()


def test_draws_with_replacement_follow_the_weights():
    draws = Weighted(WEIGHTS, seed=0, replacement=True)(np.arange(75_000))
    counts = np.bincount(draws, minlength=len(WEIGHTS))
    assert (counts[WEIGHTS == 0] == 0).all()
    assert_even(counts[DRAWABLE], 75_000 * WEIGHTS[DRAWABLE] / WEIGHTS.sum())


def test_draws_with_replacement_agree_with_a_plain_search():
    draws = Weighted(WEIGHTS, seed=5, replacement=True)(np.arange(300))
    for t, draw in enumerate(draws.tolist()):
        target = ((int(hash64(mix(5), [t])[0]) >> 12) + 0.5) / 2**52 * WEIGHTS.sum()
        assert draw == next(row for row in range(len(WEIGHTS)) if target < WEIGHTS[: row + 1].sum())


@pytest.mark.parametrize("power", [0, 1, 6, 20])
def test_draws_of_many_uneven_weights_agree_with_a_search(power: int) -> None:
    weights = np.random.default_rng(power).random(5000) ** power
    weights[[0, 10, 4999]] = 0, 50, 0  # thousands share what little is left, more than a guide leads to
    draws = Weighted(weights, seed=4, replacement=True)(np.arange(20_000))
    uniform = ((hash64(mix(4), np.arange(20_000)) >> np.uint64(12)).astype(float) + 0.5) * 2.0**-52
    assert (draws == np.searchsorted(np.cumsum(weights), uniform * np.cumsum(weights)[-1], side="right")).all()


def test_passes_without_replacement_hold_every_row_with_a_weight_once():
    draws = Weighted(WEIGHTS, seed=0, replacement=False)(np.arange(40)).reshape(10, 4)
    assert (np.sort(draws) == DRAWABLE).all()
    assert len({tuple(each) for each in draws.tolist()}) > 3


def test_passes_without_replacement_follow_successive_sampling():
    passes = 20_000
    draws = Weighted(WEIGHTS, seed=1, replacement=False)(np.arange(4 * passes)).reshape(passes, 4)
    seen = Counter(map(tuple, draws.tolist()))
    expected = {}
    for each in itertools.permutations(DRAWABLE):
        left, chance = WEIGHTS.sum(), 1.0
        for row in each:
            chance *= WEIGHTS[row] / left
            left -= WEIGHTS[row]
        expected[each] = passes * chance
    assert_even([seen[each] for each in expected], list(expected.values()))


def test_a_short_pass_starts_anew():
    draws = Weighted(WEIGHTS, seed=0, replacement=False, longest_pass=1)(np.arange(15_000))
    counts = np.bincount(draws, minlength=len(WEIGHTS))
    assert_even(counts[DRAWABLE], 15_000 * WEIGHTS[DRAWABLE] / WEIGHTS.sum())
