from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunesampler.analysis.compare import t_quantile
from prunesampler.analysis.sweep import RANDOM, sweep
from prunesampler.errors import ArgumentError
from prunesampler.selection.select import select
from prunesampler.tables.score_table import ScoreTable

TABLE = ScoreTable({"el2n": np.random.default_rng(0).permutation(200) / 200, "margin": np.arange(200.0)})
OFFSETS = (0.0, 0.25, 100)


def around(best: float, worth: float = 1.0, noise: float = 0.001) -> Any:
    """A training in which rows of one score are best; every seed has its luck, which all arms share, and more."""

    def train(rows: Any, *, seed: int, share: float) -> float:
        luck = np.random.default_rng([seed, int(rows.sum())]).standard_normal()
        return float(0.5 + 0.05 * seed - worth * abs(TABLE.scores["el2n"][rows].mean() - best) + noise * luck)

    return train


def test_the_best_start_is_found_and_random_rows_are_beaten() -> None:
    seen: list[Any] = []

    def train(rows: Any, *, seed: int, share: float) -> float:
        seen.append((seed, share, rows.tolist()))
        return around(0.6)(rows, seed=seed, share=share)

    found = sweep(train, TABLE, keep=0.3, offsets=OFFSETS, seeds=[4, 5, 6])
    assert found.best == "offset-0.25"
    assert found.pays
    assert found.selection is not None
    assert found.selection.offset == 0.25
    assert found.sentence.startswith("Take offset 0.25: it beats random rows by +0.1")
    assert len(seen) == 12
    for (seed, share, rows), offset in zip(seen[4:7], OFFSETS, strict=True):
        assert (seed, share) == (5, 0.3)
        assert rows == select(TABLE, 0.3, method="window", offset=offset, seed=5).rows.tolist()
    assert len({tuple(rows) for _, _, rows in seen[3::4]}) == 3
    assert [line[:2] for line in found.cells()] == [["0", "60"], ["0.25", "60"], ["100", "60"], [RANDOM, "60"]]
    assert repr(found).splitlines()[-1] == found.sentence


def test_the_gate_is_as_wide_as_several_offsets_need() -> None:
    found = sweep(around(0.6, noise=0.03), TABLE, keep=0.3, offsets=OFFSETS, seeds=4, confidence=0.9)
    gains = np.subtract(found.metrics(found.best), found.metrics(RANDOM))
    half = t_quantile(1 - 0.1 / 3, 3) * gains.std(ddof=1) / 2
    assert found.gain.half_width == pytest.approx(half)
    assert found.pays == (gains.mean() > half)


@pytest.mark.parametrize(
    ("train", "seeds", "said"),
    [
        (around(0.5, worth=1.0), 3, "Random is as good (the best offset, 0.25, gains -"),
        (around(0.6, worth=0.0, noise=0.2), 3, ""),
        (around(0.6), 2, "which may be chance: run 3 seeds or more."),
    ],
)
def test_a_score_that_does_not_beat_random_is_not_recommended(train: Any, seeds: int, said: str) -> None:
    found = sweep(train, TABLE, keep=0.3, offsets=OFFSETS, seeds=seeds)
    assert not found.pays
    assert found.selection is None
    assert said in found.sentence
    assert "Take" not in found.sentence


def test_finished_runs_are_not_run_again(tmp_path: Path) -> None:
    first = sweep(around(0.6), TABLE, keep=0.3, offsets=OFFSETS, save_dir=tmp_path)
    again = sweep(lambda rows, *, seed, share: 1 / 0, TABLE, keep=0.3, offsets=OFFSETS, save_dir=tmp_path)
    assert again.trials == first.trials
    more = sweep(around(0.6), TABLE, keep=0.3, offsets=(*OFFSETS, 0.5), save_dir=tmp_path)
    assert len(more.trials) == 15


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("offsets", {"offsets": ()}),
    ("offsets", {"offsets": (0.1, 0.1)}),
    ("offsets", {"offsets": (0.71,)}),
    ("offsets", {"offsets": (141,)}),
    ("offset", {"offsets": (-0.1,)}),
    ("offset", {"method": "top"}),
    ("by", {"by": "loss"}),
    ("keep", {"keep": 1}),
    ("seeds", {"seeds": 0}),
    ("confidence", {"confidence": 1}),
    ("share", {"share": 0}),
    ("train", {"train": lambda rows: 1.0}),
    ("table", {"table": None}),
]


@pytest.mark.parametrize(("argument", "options"), REFUSED)
def test_what_is_refused(argument: str, options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError) as caught:
        sweep(**{"train": around(0.6), "table": TABLE, "keep": 0.3, "offsets": (0.1,), **options})
    assert caught.value.argument == argument
