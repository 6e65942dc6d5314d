from __future__ import annotations

import math
from collections import Counter
from itertools import chain, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler

from prunesampler._random import hash64, mix
from prunesampler.errors import ArgumentError
from prunesampler.sampling import permutation as order
from prunesampler.sampling.permutation import Permutation, by_pass, rank_length, rank_positions, stream_rows

GOLDEN = 0x9E3779B97F4A7C15
KEYS = st.integers(-(2**70), 2**70)

MIXED = [0, 6791897765849424158, 7552993510117244372, 12035550249420947055, 16613338946343043936, 11281211996929514862]
HASHED = [12100477452831230990, 12793040940332582595, 15441945887411553116]
SMALL_ORDER = [4, 0, 5, 6, 8, 7, 1, 3, 2, 9]
LARGE_ORDER = [811485639, 436365452, 140340780, 556022501, 51335189]


@pytest.fixture
def network(monkeypatch):
    """Small orders come out of the network too, instead of being held outright."""
    monkeypatch.setattr(order, "_SMALL", 0)


def splitmix(value):
    """The finaliser of SplitMix64 as published, one int at a time."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
    return value ^ (value >> 31)


def assert_even(counts, expected, sigmas=5.0):
    """χ² of the counts is what chance would give."""
    counts, expected = np.asarray(counts, float), np.broadcast_to(expected, np.shape(counts))
    freedom = counts.size - 1
    surprise = (((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)
    assert abs(surprise) < sigmas, f"{surprise:.1f} standard deviations from even"


def all_of(n, key):
    return Permutation(n, key)(np.arange(n))


# --- mix and hash64 ---------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_first_release():
    assert [mix(), mix(0), mix(0, 1), mix(-1), mix(2**64), mix(2**200, -7)] == MIXED
    assert hash64(0, [0, 1, 2**62]).tolist() == HASHED
    assert all_of(10, mix(0)).tolist() == SMALL_ORDER
    assert Permutation(10**9, mix(0))(np.arange(5)).tolist() == LARGE_ORDER


def test_every_part_and_the_order_of_parts_matter():
    parts = [(), (0,), (0, 0), (0, 1), (1, 0), (1,), (-1,), (2**63,), (2**64,), (2**64 - 1,), (0, -1), (0, 0, 0)]
    assert len({mix(*each) for each in parts}) == len(parts)
    grid = {mix(seed, epoch) for seed, epoch in product(range(100), repeat=2)}
    assert len(grid) == 100 * 100


@given(st.lists(KEYS, max_size=3), st.integers(0, 2), st.integers(0, 63))
def test_one_bit_changes_about_half_of_the_bits(parts, place, bit):
    parts = [*parts, 0, 0, 0]
    changed = list(parts)
    changed[place] ^= 1 << bit
    assert 8 <= (mix(*parts) ^ mix(*changed)).bit_count() <= 56


@given(KEYS, st.lists(st.integers(0, 2**63 - 1), max_size=20))
def test_the_hash_agrees_with_the_published_steps(key, values):
    expected = [splitmix((value * GOLDEN + mix(key)) % 2**64) for value in values]
    hashed = hash64(key, np.array(values, dtype=np.int64))
    assert hashed.dtype == np.uint64
    assert hashed.tolist() == expected


def test_the_hash_is_even_and_leaves_its_input_alone():
    values = np.arange(100_000)
    hashed = hash64(3, values)
    assert (values == np.arange(100_000)).all()
    assert len(np.unique(hashed)) == len(values)
    assert_even(np.bincount((hashed >> np.uint64(56)).astype(int)), len(values) / 256)
    assert_even(np.bincount((hashed & np.uint64(255)).astype(int)), len(values) / 256)


# --- Permutation ------------------------------------------------------------------------------------------


def test_it_is_a_bijection_at_every_small_size():
    for n in range(1, 301):
        orders = [all_of(n, key).tolist() for key in range(3)]
        assert all(sorted(each) == list(range(n)) for each in orders)
        assert n < 6 or len(set(map(tuple, orders))) == 3


def test_the_network_is_a_bijection_at_every_small_size(network):
    for n in range(1, 301):
        assert sorted(all_of(n, 5).tolist()) == list(range(n))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60_000), KEYS)
def test_it_is_a_bijection_at_any_size(n, key):
    rows = all_of(n, key)
    assert rows.dtype == np.int64
    assert (np.bincount(rows, minlength=n) == 1).all()


@pytest.mark.parametrize("n", [4096, 4097, 10**6, 1000**2 + 1, 10**9, 2**36 + 7])
def test_large_sizes_stay_in_range_and_repeat_nothing(n):
    positions = np.unique(np.linspace(0, n - 1, 20_000).astype(np.int64).clip(0, n - 1))
    rows = Permutation(n, 11)(positions)
    assert rows.min() >= 0
    assert rows.max() < n
    assert len(np.unique(rows)) == len(positions)
    shuffled = np.random.default_rng(0).permutation(len(positions))
    assert (Permutation(n, 11)(positions[shuffled]) == rows[shuffled]).all()


@pytest.mark.parametrize("n", [5003, 71 * 71, 71 * 71 + 1, 10**6 + 3])
def test_the_network_agrees_with_a_plain_one(n):
    permutation = Permutation(n, 42)
    high = next(a for a in range(n) if a * a >= n)
    low = -(-n // high)

    def tables(number, entries, modulus):
        return [splitmix((i * GOLDEN + mix(mix(42, number))) % 2**64) % modulus for i in range(entries)]

    rounds = [tables(number, *((high, low) if number % 2 else (low, high))) for number in range(6)]

    def shuffled(position):
        left, right = divmod(position, low)
        for number, table in enumerate(rounds):
            if number % 2:
                right = (right + table[left]) % low
            else:
                left = (left + table[right]) % high
        row = left * low + right
        return row if row < n else shuffled(row)

    positions = [0, 1, 2, n // 2, n - 2, n - 1, *range(100, 300)]
    assert permutation(np.array(positions)).tolist() == [shuffled(position) for position in positions]


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_orders_are_equally_likely_at_tiny_sizes(n):
    draws = 200 * math.factorial(n)
    seen = Counter(tuple(all_of(n, mix(7, key)).tolist()) for key in range(draws))
    assert_even([seen[each] for each in permutations(range(n))], 200)


def test_the_network_puts_every_row_anywhere(network):
    n, keys = 30, 3000
    orders = np.array([all_of(n, mix(key)) for key in range(keys)])
    for position in (0, 1, 14, 29):
        assert_even(np.bincount(orders[:, position], minlength=n), keys / n)
    pairs = np.bincount(orders[:, 3] * n + orders[:, 4], minlength=n * n).reshape(n, n)
    assert_even(pairs[~np.eye(n, dtype=bool)], keys / (n * (n - 1)))


@pytest.mark.parametrize("n", [100_003, 2**18, 317**2 + 1])
def test_no_correlation_with_the_position_or_between_neighbours(n):
    rows = all_of(n, mix(0))
    bound = 5 / math.sqrt(n)
    for lag in (1, 2, 3, 317, 512):
        assert abs(np.corrcoef(rows[:-lag], rows[lag:])[0, 1]) < bound
        steps = (rows[lag:] - rows[:-lag]) % n
        assert_even(np.bincount(steps * 50 // n, minlength=50), len(steps) / 50)
    assert abs(np.corrcoef(rows, np.arange(n))[0, 1]) < bound
    assert_even(np.bincount((rows * 20 // n) * 20 + np.arange(n) * 20 // n, minlength=400), n / 400)
    assert_even(np.bincount((rows % 16) * 16 + np.arange(n) % 16, minlength=256), n / 256)
    assert (rows == np.arange(n)).sum() < 10


def test_orders_of_neighbouring_keys_are_unrelated():
    n = 100_003
    for one, other in ((mix(0, 1), mix(1, 0)), (0, 1), (mix(5, 1), mix(5, 2))):
        first, second = all_of(n, one), all_of(n, other)
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(n)
        assert (first == second).sum() < 10


def test_a_billion_rows_need_less_than_two_megabytes():
    permutation = Permutation(10**9, 0)
    assert sum(table.nbytes for table in permutation._tables) < 2_000_000


def test_sizes_outside_the_range_are_refused():
    for n in (0, -1, 2**40 + 1):
        with pytest.raises(ArgumentError, match="n must be"):
            Permutation(n, 0)


# --- streams ----------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(0, 5), st.lists(st.integers(0, 100), max_size=30), st.booleans())
def test_a_stream_repeats_passes_at_positions_in_any_order(size, seed, positions, shuffle):
    rows = stream_rows(np.array(positions, dtype=np.int64), size=size, seed=seed, shuffle=shuffle)
    orders = [all_of(size, mix(seed, number)) if shuffle else np.arange(size) for number in range(101)]
    assert rows.dtype == np.int64
    assert rows.tolist() == [orders[t // size][t % size] for t in positions]


def test_a_stream_is_the_same_in_chunks():
    whole = stream_rows(np.arange(20_000), size=4999, seed=1, shuffle=True)
    parts = [stream_rows(np.arange(at, at + 100), size=4999, seed=1, shuffle=True) for at in range(0, 20_000, 100)]
    assert (whole == np.concatenate(parts)).all()


def test_seeds_and_passes_are_mixed_not_added():
    def order_of(seed, number):
        return stream_rows(np.arange(500) + 500 * number, size=500, seed=seed, shuffle=True).tolist()

    orders = [order_of(seed, number) for seed in range(8) for number in range(8)]
    assert len(set(map(tuple, orders))) == 64
    assert order_of(0, 1) != order_of(1, 0)


def test_by_pass_looks_up_each_pass_once_where_neighbours_share_it():
    asked = []

    def order_of(number):
        asked.append(number)
        return lambda within: within

    by_pass(np.arange(100), 25, order_of)
    assert asked == [0, 1, 2, 3]


# --- ranks ------------------------------------------------------------------------------------------------


def of_rank(start, length, rank, world, drop_last):
    steps = rank_length(length, world, drop_last, start)
    return rank_positions(0, steps, start=start, length=length, rank=rank, num_replicas=world).tolist()


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world", range(1, 6))
def test_ranks_split_rows_as_distributed_sampler_does(world, drop_last):
    for length, rank in product(range(1, 24), range(world)):
        if drop_last and length < world:
            continue  # torch gives such a rank −0 or fewer rows
        theirs = DistributedSampler(range(length), world, rank, shuffle=False, drop_last=drop_last)
        assert of_rank(0, length, rank, world, drop_last) == list(theirs)


@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 5), st.booleans())
def test_the_unread_rest_is_split_evenly(length, start, world, drop_last):
    start = min(start, length)
    shares = [of_rank(start, length, rank, world, drop_last) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    dealt = [position for step in zip(*shares, strict=True) for position in step]
    rest = list(range(start, length))
    if drop_last:
        assert dealt == rest[: len(rest) // world * world]
    else:
        padding = dealt[len(rest) :]
        assert dealt[: len(rest)] == rest
        assert len(padding) < world
        assert padding == [number % length for number in range(len(padding))]


def test_positions_in_parts_join_to_the_whole():
    options = {"start": 5, "length": 20, "rank": 1, "num_replicas": 2}
    parts = [rank_positions(at, at + 2, **options).tolist() for at in (0, 2, 4, 6)]
    assert rank_positions(0, 8, **options).tolist() == [*chain(*parts)] == [6, 8, 10, 12, 14, 16, 18, 0]
