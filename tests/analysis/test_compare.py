from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from scipy import stats

from prunesampler.analysis.compare import Gain, compare, t_quantile
from prunesampler.errors import ArgumentError, CorruptFileError, MismatchError
from prunesampler.selection.select import select
from prunesampler.tables.score_table import Coreset, ScoreTable

TABLE = ScoreTable({"el2n": np.linspace(0, 1, 40)})


class Trainer:
    """Gives what it is told by arm, and remembers its calls."""

    def __init__(self, kept: float = 0.8, random: float = 0.7, other: float = 0.75) -> None:
        self.values = {"kept": kept, "random": random, "other": other}
        self.calls: list[tuple[Any, int, float]] = []

    def __call__(self, rows: Any, *, seed: int, share: float) -> float:
        self.calls.append((rows, seed, share))
        arm = (
            "other" if rows is None or callable(rows) else "kept" if len(set(rows) & set(range(20))) == 20 else "random"
        )
        noise = 0.001 * ((7 * seed + len(arm)) % 3)
        return self.values[arm] + noise


def test_each_control_costs_what_the_kept_rows_and_their_scores_do() -> None:
    train = Trainer()
    arms = ("random", "shorter", "fresh", "full")
    found = compare(train, TABLE, keep=0.5, method="bottom", arms=arms, seeds=[4, 9, 2], scoring=0.1)
    assert [seed for _, seed, _ in train.calls] == [4] * 5 + [9] * 5 + [2] * 5
    for kept, random, shorter, fresh, full in zip(*[iter(train.calls)] * 5, strict=True):
        assert kept[0].tolist() == list(range(20))
        assert len(set(random[0].tolist())) == 20
        assert (np.diff(random[0]) > 0).all()
        assert shorter[0] is full[0] is None
        epochs = [fresh[0](epoch).tolist() for epoch in range(4)]
        assert sorted(epochs[0] + epochs[1]) == sorted(epochs[2] + epochs[3]) == list(range(40))
        assert epochs[0] != epochs[2]
        assert [call[2] for call in (kept, random, shorter, fresh, full)] == pytest.approx([0.5, 0.6, 0.6, 0.6, 1])
    assert len({tuple(random[0]) for random in train.calls[1::5]}) == 3
    frame = found.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.groupby("arm").cost.first().to_dict() == pytest.approx(
        dict.fromkeys(arms, 0.6) | {"kept": 0.6, "full": 1}
    )
    assert frame.groupby("arm").rows.first()[["kept", "random", "full"]].tolist() == [20, 20, 40]
    assert found.metrics["kept"] == frame[frame.arm == "kept"].metric.tolist()


def test_rows_that_no_sampler_draws_belong_to_no_arm() -> None:
    train = Trainer()
    compare(train, TABLE.only(range(0, 40, 2)), keep=10, arms=("shorter", "random"), seeds=1, share=0.9)
    kept, shorter, random = (rows for rows, _, _ in train.calls)
    assert shorter.tolist() == list(range(0, 40, 2))
    assert set(random) | set(kept) <= set(shorter)
    assert [share for _, _, share in train.calls] == [0.9] * 3


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.02, 0.03, 0.04], "beats"),
        ([0.02, 0.03, -0.01], "undecided"),
        ([0.0, 0.01, -0.01], "does not beat"),
        ([-0.3, -0.31, -0.32], "does not beat"),
        ([0.02, 0.021], "undecided"),
        ([-0.02, -0.021], "undecided"),
        ([0.1], "undecided"),
        ([0.1, 0.1, 0.1], "undecided"),
    ],
)
def test_a_verdict_is_that_of_the_t_interval_of_paired_differences(differences: list[float], verdict: str) -> None:
    gain = Gain.of(differences, 0.95)
    assert gain.verdict == verdict
    if len(set(differences)) > 2:
        low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
        assert (gain.mean - gain.half_width, gain.mean + gain.half_width) == pytest.approx((low, high))
        assert (gain.verdict == "beats") == (low > 0)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 100])
def test_quantiles_are_those_of_scipy(degrees: int) -> None:
    for confidence in (0.5, 0.9, 0.95, 0.99):
        assert t_quantile(confidence, degrees) == pytest.approx(stats.t.ppf((1 + confidence) / 2, degrees), rel=1e-6)


def test_it_says_what_to_make_of_it() -> None:
    found = compare(Trainer(), TABLE, keep=0.5, method="bottom", arms=("random", "shorter", "full"))
    differences = [100 * (a - b) for a, b in zip(found.metrics["kept"], found.metrics["random"], strict=True)]
    half = stats.t.ppf(0.975, 2) * statistics.stdev(differences) / 3**0.5
    assert f"Beats random by {statistics.mean(differences):.1f} ± {half:.1f} points at equal cost." in found.sentences
    assert found.pays
    assert "Against the full training, at cost 1: +" in repr(found)
    assert "nothing of it to score, as scoring=0 says" in repr(found)
    assert [line.split()[0] for line in repr(found).splitlines()[1:5]] == ["kept", "random", "shorter", "full"]

    worse = compare(Trainer(kept=0.6), TABLE, keep=0.5, method="bottom", arms=("shorter",))
    assert "Does not beat training shorter on all rows (-15.0 ± " in repr(worse)
    assert "do not prune by this score." in repr(worse)
    single = compare(Trainer(), TABLE, keep=0.5, method="bottom", seeds=1)
    assert "Undecided against random (+10.1 points at equal cost): run three seeds or more" in repr(single)
    assert not worse.pays
    assert not single.pays

    loss = compare(Trainer(-1.5, -2.25, -3), TABLE, keep=0.5, method="bottom")
    assert "Beats random by 0.75 ± 0.00 at equal cost." in loss.sentences


def test_a_run_that_is_finished_is_not_run_again(tmp_path: Path) -> None:
    class Interrupted(Trainer):
        def __call__(self, rows: Any, *, seed: int, share: float) -> float:
            if len(self.calls) == 4:
                raise KeyboardInterrupt
            return super().__call__(rows, seed=seed, share=share)

    options: dict[str, Any] = {"keep": 0.5, "method": "bottom", "save_dir": tmp_path / "new" / "runs"}
    with pytest.raises(KeyboardInterrupt):
        compare(Interrupted(), TABLE, **options)
    rest = Trainer()
    found = compare(rest, TABLE, **options)
    assert len(rest.calls) == 5
    assert found.metrics == compare(Trainer(), TABLE, keep=0.5, method="bottom").metrics
    files = sorted((tmp_path / "new/runs").iterdir())
    assert [file.name for file in files] == [
        f"{arm}-seed{seed}.json" for arm in ("kept", "random", "shorter") for seed in (0, 1, 2)
    ]
    assert json.loads(files[0].read_text())["metric"] == found.metrics["kept"][0]
    for change in ({"method": "top"}, {"scoring": 0.3}, {"keep": 0.6}):
        with pytest.raises(MismatchError, match="another save_dir"):
            compare(rest, TABLE, **(options | change))
    files[0].write_text('{"arm": "kept"')
    with pytest.raises(CorruptFileError, match=r"kept-seed0\.json is damaged"):
        compare(rest, TABLE, **options)
    assert len(rest.calls) == 5


def test_a_coreset_is_compared_as_it_is() -> None:
    train = Trainer()
    coreset = select(TABLE, 0.25, method="window")
    compare(train, coreset, seeds=2)
    assert [rows.tolist() for rows, _, _ in train.calls[::3]] == [coreset.rows.tolist()] * 2
    assert [share for _, _, share in train.calls] == [0.25] * 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": 3}, "train must be a function"),
        ({"train": lambda rows: 0.5}, "train must be a function"),
        ({"train": lambda rows, *, seed, share: None}, "train must return a finite number"),
        ({"train": lambda rows, *, seed, share: float("nan")}, "train must return a finite number"),
        ({"train": lambda rows, *, seed, share: "0.9"}, "train must return a finite number"),
        ({"table": "scores.parquet"}, "table must be a ScoreTable or a Coreset"),
        ({"table": Coreset([1, 2], num_rows=4)}, "keep cannot be chosen for a coreset"),
        ({"table": Coreset([1, 2], num_rows=4, weights=[1, 2]), "keep": None}, "without weights"),
        ({"keep": None}, "keep must be given"),
        ({"keep": 1}, "keep must be a float"),
        ({"by": "loss"}, "by must be a score"),
        ({"arms": "random"}, "arms must be distinct names of random, shorter"),
        ({"arms": ()}, "arms must be distinct"),
        ({"arms": ("random", "longer")}, "arms must be one of"),
        ({"seeds": 0}, "seeds must be an int >= 1"),
        ({"seeds": [1, 1]}, "seeds must be distinct"),
        ({"share": 0}, "share must be a finite number > 0"),
        ({"scoring": -0.1}, "scoring must be a finite number >= 0"),
        ({"confidence": 1}, "confidence must be below 1"),
    ],
)
def test_misuse_is_refused(changes: dict[str, Any], message: str) -> None:
    train = Trainer()
    with pytest.raises(ArgumentError, match=message):
        compare(**{"train": train, "table": TABLE, "keep": 0.5, **changes})
    assert not train.calls
