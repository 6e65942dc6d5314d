from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import cifar10_targets as targets

# arm, length, scoring and training cost, accuracy by seed
RUNS = [
    ("full", 1.0, 0.0, 1.0, [0.90, 0.92]),
    ("full", 0.5, 0.0, 0.5, [0.80, 0.84]),
    ("full", 1.5, 0.0, 1.5, [0.95]),  # longer than the full run: no target
    ("random", 1.0, 0.0, 0.5, [0.81, 0.82]),
    ("random", 2.0, 0.0, 1.0, [0.85, 0.87]),
    ("el2n-stratified", 1.0, 0.3, 0.5, [0.93]),
    ("tune", 1.0, 0.0, 0.1, [0.99]),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, length, scoring, training, accuracies in RUNS:
        for seed, accuracy in enumerate(accuracies):
            arm = {"name": name, "keep": 1.0, "budget": "epochs", "length": length}
            result = {"arm": arm, "accuracy": accuracy, "cost": {"scoring": scoring, "training": training}}
            (tmp_path / f"{name}_{length}_{seed}.json").write_text(json.dumps(result))
    return tmp_path


def test_costs_of_equal_accuracy(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cifar10_targets.py", str(folder), "--out", str(folder / "out.json")])
    targets.main()
    told = capsys.readouterr().out
    report = json.loads((folder / "out.json").read_text())
    full, half = report["targets"]
    assert [each["accuracy"] for each in (full, half)] == pytest.approx([0.91, 0.82])
    assert [each["cost"] for each in (full, half)] == [1.0, 0.5]
    assert set(full["arms"]) == {"random", "el2n-stratified"}

    # Scoring counts; 0.86 is the best that random comes to.
    assert full["arms"]["el2n-stratified"]["reached"]
    assert full["arms"]["el2n-stratified"]["cost"] == full["arms"]["el2n-stratified"]["of_full_data"] == 0.8
    assert full["arms"]["el2n-stratified"]["short_of_it_error"] is None
    assert not full["arms"]["random"]["reached"]
    assert full["arms"]["random"]["cost"] == 1.0
    assert full["arms"]["random"]["short_of_it"] == pytest.approx(0.05)
    # Of two seeds that are 0.02 apart the mean has a standard error of 0.01.
    assert full["arms"]["random"]["short_of_it_error"] == pytest.approx((0.01**2 + 0.01**2) ** 0.5)
    # The cheaper run of random falls short of the half's 0.82 by 0.005: what reaches it costs twice as much.
    assert (half["arms"]["random"]["cost"], half["arms"]["random"]["of_full_data"]) == (1.0, 2.0)

    assert "not reached at 1.00: best 86.00 % (-5.00 ± 1.41) | **1.00** (+4.00 ± 2.24) |" in told
    assert "**0.80** (+2.00, one seed)" in told
    assert (folder / "out.md").read_text() in told
