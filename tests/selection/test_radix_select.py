from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import pytest

from prunesampler.selection import radix_select
from prunesampler.selection.radix_select import Ranked, find_limits, first_digits, tie_keys
from tests.helpers.blockfiles import THREADS

N, GROUPS = 200, 4
BLOCKS = [(0, 70), (70, 71), (71, 200)]


def drawn(seed: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """The group and the value of each row."""
    rng = np.random.default_rng(seed)
    values = rng.choice(np.array([-1.5, -0.0, 0.0, 2, np.inf, -np.inf, 1e-3, 1.0001, 1.0002], "f4"), N)
    return rng.integers(0, groups, N), values


def ranked(seed: int, groups: int, block: int) -> Iterator[Ranked]:
    group, values = drawn(seed, groups)
    row = 3 * np.arange(N)
    for part in np.array_split(np.arange(*BLOCKS[block]), 2):
        of_groups = group[part] if groups > 1 else None
        if seed % 3:
            yield Ranked.by_float(of_groups, values[part], row[part], seed)
        else:
            yield Ranked.at_random(of_groups, row[part], seed)


def all_of(seed: int, groups: int) -> list[tuple[int, float, int]]:
    """Of each row its group, its value if that decides, and its key."""
    keys = tie_keys(seed, 3 * np.arange(N)).tolist()
    return [(int(g), float(v) if seed % 3 else 0.0, k) for g, v, k in zip(*drawn(seed, groups), keys, strict=True)]


@pytest.mark.parametrize("groups", [1, GROUPS])
@pytest.mark.parametrize("held", [-100, 5, 50, 10**6])
@pytest.mark.parametrize("seed", range(6))
def test_limits_are_those_of_sorting(seed: int, held: int, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(radix_select, "HELD", held)
    whole = all_of(seed, groups)
    sizes = [sum(g == group for g, _, _ in whole) for group in range(groups)]
    rng = np.random.default_rng(seed)
    layers = [[int(rng.integers(-2, size + 3)) for size in sizes] for _ in range(2)]

    ranking = functools.partial(ranked, seed, groups)
    counts = first_digits(THREADS.map, ranking, range(3), groups, rows=N)
    assert counts.sum(axis=1).tolist() == sizes
    found = find_limits(THREADS.map, ranking, range(3), counts, [np.array(layer) for layer in layers])
    for layer, each in zip(layers, found, strict=True):
        expected: set[int] = set()
        for group, count in enumerate(layer):
            its = [place for place in range(N) if whole[place][0] == group]
            expected |= set(sorted(its, key=lambda place: whole[place][1:])[: max(0, count)])
        parts = [part for block in range(3) for part in ranked(seed, groups, block)]
        rows = np.concatenate([part.row[each.within(part)] for part in parts])
        assert {row // 3 for row in rows.tolist()} == expected


def test_few_rows_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(radix_select, "HELD", 3)
    collected = []

    def watched(function, items):  # type: ignore[no-untyped-def]
        results = list(map(function, items))
        if function.func is radix_select._collect:
            collected.append(sum(len(target) for target, _, _ in results))
        return results

    ranking = functools.partial(ranked, 1, GROUPS)
    counts = first_digits(map, ranking, range(3), GROUPS, rows=N)
    find_limits(watched, ranking, range(3), counts, [np.array([20] * GROUPS)])
    assert 4 <= collected[0] <= 16  # four are allowed for each group, as three are too few for them
