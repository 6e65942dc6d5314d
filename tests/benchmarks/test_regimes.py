from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regimes
import regimes_arms
import torch

from prunesampler.cli.training import Images
from tests.helpers.pictures import pictures


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> regimes_arms.Data:
    """Pictures without anything to learn, of which only 40 are distinct."""
    rows = torch.from_numpy(np.random.default_rng(0).integers(0, 40, 1200))
    images = Images.of(pictures(40)[rows, :, ::2, ::2], rows % 10)
    parts = images.subset(slice(300)), images.subset(slice(300, 1100)), images.subset(slice(1100, None))
    return regimes_arms.Data(*parts, regimes_arms.Size(300, 2, 100), tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(
    ("regime", "arms"),
    [
        ("imbalance", ["random, class floors", "all rows, balanced sampler", "stratified, class floors"]),
        ("duplicates", ["one of each, cost 1", "oracle, cost 0.5"]),
        ("wrong labels, 20 %", ["oracle", "easiest, in one run", "easiest, trained anew", "SmallLoss"]),
        ("growing data", ["carried over", "scored anew", "shorter, by the cost of scoring anew"]),
    ],
)
def test_arms_of_a_regime_cost_what_they_say(regime: str, arms: list[str], data: regimes_arms.Data) -> None:
    found = {arm: regimes.REGIMES[regime].perform(data, arm, 0) for arm in arms}
    for arm, result in found.items():
        assert 0 <= result["worst_class"] <= result["balanced"] <= 1, arm
        assert result["cost"] > 0.4
    if regime.startswith("wrong"):
        assert found["oracle"]["wrong_labels_left"] == 0
        assert found["oracle"]["rows"] == found["easiest, in one run"]["rows"] == 240
        assert 0 <= found["easiest, trained anew"]["wrong_labels_left"] <= 0.25
    if regime == "duplicates":
        assert found["oracle, cost 0.5"]["rows"] == 90
    if regime == "growing data":
        assert found["carried over"]["cost"] == pytest.approx(0.5 + 60 / 300 / 3 / 2)
        assert found["scored anew"]["cost"] == pytest.approx(found["shorter, by the cost of scoring anew"]["cost"])


def test_copies_are_of_what_they_are_said_to_be(data: regimes_arms.Data) -> None:
    images, source = regimes_arms.with_duplicates(data.train, 60, 200, 0)
    counts = torch.bincount(source)
    assert (len(images), len(counts), counts.min().item()) == (200, 60, 1)
    assert 3 < counts.max() <= 10
    assert torch.equal(images.targets, data.train.targets[source])
    first = np.unique(source.numpy(), return_index=True)[1]
    assert torch.equal(images.padded[first], data.train.padded[:60])
    assert len(images.padded.flatten(1).unique(dim=0)) > 140


def test_one_of_each_is_kept() -> None:
    kept = regimes_arms.one_of_each(torch.tensor([[1.0, 0], [0.99, 0.1], [-1, 0], [0, 1], [-1, 0.01]]), 0.9)
    assert 3 <= len(kept) < 5
    assert kept[0] == 0


def test_the_table_and_the_summary_are_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(regime: str, arm: str, seed: int, **figures: Any) -> None:
        size = {"rows": 100, "epochs": 2, "test": 10}
        result = {"regime": regime, "arm": arm, "seed": seed, "size": size, "cost": 1.0, "seconds": 3.0, **figures}
        (folder / regimes.file_of(regime, arm, seed)).write_text(json.dumps(result))

    folder = tmp_path / "regimes"
    folder.mkdir()
    for seed in range(3):
        for arm, accuracy in {"full": 0.5, "random": 0.48, "oracle": 0.56, "SmallLoss": 0.53}.items():
            write("wrong labels, 20 %", arm, seed, accuracy=accuracy + 0.001 * seed * len(arm), rows=80)
        for arm, values in {"full": [0.1, 0.5, 0.4], "kept": [0.2, 0.4, 0.3], "random": [0.9, 0.1, 0.2]}.items():
            write("many runs", arm, seed, validation=values, test=[v + 0.01 for v in values], rows=50)
    monkeypatch.setattr(sys, "argv", ["regimes.py", "--table", str(folder)])
    regimes.main()
    told = (tmp_path / "regimes.md").read_text()
    assert "| **SmallLoss** | 3 | 1.00 | 53.90 ± 0.90 | 80 |" in told
    assert "| random | 3 | 1.00 | 10.00" not in told
    lines = {line.split(" | ")[1]: line for line in (tmp_path / "regimes-summary.md").read_text().splitlines()[2:]}
    assert "| **+5.3 ± 0.7** | **+3.5 ± 1.2** | 56% | 3 |" in lines["SmallLoss"]
    runs = regimes.collected(folder)["many runs"]
    assert [run["regret"] for run in runs["kept"]] == [0, 0, 0]
    assert runs["random"][0]["regret"] == pytest.approx(0.4)
    assert runs["kept"][0]["rank_correlation"] == 1
    assert (tmp_path / "regimes.png").stat().st_size > 1000
