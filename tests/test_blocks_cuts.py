from __future__ import annotations

import functools

import numpy as np
import pytest

from prunesampler.blocks import cuts
from prunesampler.blocks.engine import Serial
from prunesampler.order import hash64

N, GROUPS = 200, 4


def candidates(seed: int, rows: tuple[int, int]) -> cuts.Candidates:
    rng = np.random.default_rng(seed)
    values = rng.choice(np.array([-1.5, -0.0, 0.0, 2, np.inf, -np.inf, 1e-3, 1.0001, 1.0002], "f4"), N)
    group, part = rng.integers(0, GROUPS, N), slice(*rows)
    return cuts.Candidates(group[part], values[part], hash64(seed, np.arange(N))[part])


@pytest.mark.parametrize("held", [0, 5, 50, 10**6])
@pytest.mark.parametrize("seed", range(8))
def test_against_sorting(seed: int, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "HELD", held)
    whole = candidates(seed, (0, N))
    sizes = np.bincount(whole.group, minlength=GROUPS).tolist()
    counts = [int(np.random.default_rng(seed + group).integers(-2, size + 3)) for group, size in enumerate(sizes)]
    rank = [(float(value), int(key)) for value, key in zip(whole.value, whole.key, strict=True)]
    expected: set[int] = set()
    for group, count in enumerate(counts):
        expected |= set(sorted(np.flatnonzero(whole.group == group), key=rank.__getitem__)[: max(0, count)])
    blocks = [(0, 70), (70, 71), (71, 200)]
    found = cuts.find_cuts(Serial(), functools.partial(candidates, seed), blocks, counts, sizes)
    assert set(np.flatnonzero(found.within(whole))) == expected


def test_few_rows_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "HELD", 3)
    collected = []

    class Watched(Serial):
        def map(self, function, items):  # type: ignore[no-untyped-def]
            blocks = super().map(function, items)
            if function.func is cuts._collected:
                collected.append(sum(len(part) for part in blocks.parts()))
            return blocks

    cuts.find_cuts(Watched(), functools.partial(candidates, 0), [(0, 100), (100, 200)], [20] * 4, [50] * 4)
    assert collected == [4]  # one for each group: three are too few for them
