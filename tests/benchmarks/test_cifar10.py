from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunesampler.cli.training import Images, new_model
from tests.helpers.pictures import pictures, write_parquet

pytest.importorskip("matplotlib")
import cifar10_arms as arms
import cifar10_report as report
import cifar10_targets as targets
from cifar10_arms import Arm
from cifar10_recipes import milestones, resnet18, small_plain


@pytest.mark.timeout(900)
def test_the_experiment_goes_on_where_it_stopped_and_makes_its_page(tmp_path: Path, run: Callable[..., str]) -> None:
    write_parquet(tmp_path, train=160, test=100)
    out, page = tmp_path / "out", tmp_path / "page"
    given = ["--data", tmp_path, "--out", out, "--epochs", 3, "--seeds", 1, "--keep", 0.5, "--budgets", "epochs"]
    given += ["--arms", "el2n-stratified", "attach", "auto", "--device", "cpu", "--threads", 1]
    assert "left out for want of time: full_seed0" in run("cifar10.py", *given, "--hours", 0)
    assert not list(out.glob("*.json"))

    told = run("cifar10.py", *given)
    results = {file.stem: json.loads(file.read_text()) for file in out.glob("*.json")}
    assert set(results) == {
        *("full_seed0", "full_length0.500_seed0", "full_length1.278_seed0"),
        *("score_seed0", "score_transfer_seed0", "auto_equal-epochs_seed0", "attach-auto_equal-steps_seed0"),
        *("el2n-stratified_keep0.5_equal-epochs_seed0", "attach_keep0.5_equal-epochs_seed0"),
        *(arm.id for arm in arms.tuning(0.5, "stratified")),
    }
    assert all(name in told for name in results)
    # 160 rows are 2 steps of 64; 2 of 3 epochs are scored.
    assert results["full_seed0"]["steps"] == 6
    assert results["el2n-stratified_keep0.5_equal-epochs_seed0"]["steps"] == 3
    assert results["el2n-stratified_keep0.5_equal-epochs_seed0"]["cost"]["scoring"] == pytest.approx((2 + 1 / 3) / 3)
    assert results["attach_keep0.5_equal-epochs_seed0"]["steps"] == 2 * 2 + 1
    assert results["attach_keep0.5_equal-epochs_seed0"]["rows"] == 80
    assert results["full_length1.278_seed0"]["steps"] == round(6 * 1.278)

    (out / "full_seed0.json").unlink()
    again = run("cifar10.py", *given)
    assert again.count(" steps, ") == 1
    assert "full_seed0" in again

    run("cifar10_report.py", out, "--out", page)
    text = (page / "README.md").read_text()
    assert "| EL2N, stratified | 0.5 | equal epochs | 80 | 3 |" in text
    assert "Below the floor of 85 %" in text
    assert len(list((page / "arms").iterdir())) == len(results)
    assert (page / "accuracy.svg").stat().st_size > 1000 < (page / "accuracy.png").stat().st_size


@pytest.mark.parametrize("script", ["cifar10.py", "vit_tokens.py"])
def test_without_data_it_says_that_it_skips(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., str]
) -> None:
    monkeypatch.delenv("PRUNESAMPLER_DATA", raising=False)
    assert run(script, "--out", tmp_path / "out").startswith("skipped: ")
    assert not (tmp_path / "out").exists()


def test_no_arm_comes_before_what_it_needs_and_none_twice() -> None:
    planned = arms.plan(arms.ALL, (0.5, 0.3, 0.7), ("epochs", "steps"), range(3), 0.3)
    ids = [arm.id for arm in planned]
    assert len(set(ids)) == len(ids)
    for place, arm in enumerate(planned):
        assert all(need in planned[:place] for need in arm.needs), arm.id
    full = sorted(arm.length for arm in planned if arm.name == "full" and arm.seed == 0)
    assert full == [0.3, 0.5, 0.6, 0.7, 0.8, 1.0, 1.3]


def test_fresh_subsets_differ_from_pass_to_pass_and_hold_each_row_once() -> None:
    sampler = arms.FreshSubsets(100, 30, seed=3)
    passes = [list(sampler) for _ in range(40)]
    assert all(len(set(rows)) == len(rows) == len(sampler) == 30 for rows in passes)
    assert len({tuple(rows) for rows in passes}) == 40
    assert {row for rows in passes for row in rows} == set(range(100))


def test_the_offset_is_chosen_without_the_rows_that_validate() -> None:
    fitted, held_out = arms.fitting_rows(1000)
    assert len(held_out) == 100
    assert sorted([*fitted.tolist(), *held_out.tolist()]) == list(range(1000))
    table = report.ScoreTable({"el2n": torch.rand(1000, generator=torch.Generator().manual_seed(0))})
    coreset = arms.coreset_of(Arm("tune", 0.5, method="window", offset=0.1), table, table, 0.1)
    assert len(coreset) == 450
    assert not set(coreset.rows.tolist()) & set(held_out.tolist())


def test_the_rate_falls_at_60_120_and_160_of_200_epochs() -> None:
    assert [milestones(step, 200) for step in (0, 59, 60, 119, 120, 159, 160, 199)] == pytest.approx(
        [1, 1, 0.2, 0.2, 0.04, 0.04, 0.008, 0.008]
    )


@pytest.mark.parametrize("network", [resnet18, small_plain])
def test_networks_answer_and_learn(network: Callable[[Tensor], nn.Module]) -> None:
    images = Images.of(pictures(32), torch.arange(32) % 10)
    model = new_model(network, 0, images)
    logits = model(images.__getitems__([0, 1])[0])
    assert logits.shape == (2, 10)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


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
