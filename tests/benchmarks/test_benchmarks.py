from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.helpers.pictures import pictures, write_parquet

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import cifar10_arms as arms  # noqa: E402
import cifar10_report as report  # noqa: E402
import readme  # noqa: E402
from cifar10_arms import Arm  # noqa: E402
from cifar10_training import RECIPES, Images, class_accuracies, milestones, one_cycle  # noqa: E402


def run(script: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.mark.timeout(900)
def test_the_experiment_goes_on_where_it_stopped_and_makes_its_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_parquet(tmp_path, train=256, test=100)
    out, page = tmp_path / "out", tmp_path / "page"
    given = ["--data", tmp_path, "--out", out, "--epochs", 3, "--seeds", 1, "--keep", 0.5, "--budgets", "epochs"]
    given += ["--arms", "el2n-stratified", "attach", "auto", "--device", "cpu", "--threads", 1]
    assert "left out for want of time: full_seed0" in run("cifar10.py", *given, "--hours", 0).stdout
    assert not list(out.glob("*.json"))

    told = run("cifar10.py", *given).stdout
    results = {file.stem: json.loads(file.read_text()) for file in out.glob("*.json")}
    assert set(results) == {
        *("full_seed0", "full_length0.500_seed0", "full_length1.278_seed0"),
        *("score_seed0", "score_transfer_seed0", "auto_equal-epochs_seed0", "attach-auto_equal-steps_seed0"),
        *("el2n-stratified_keep0.5_equal-epochs_seed0", "attach_keep0.5_equal-epochs_seed0"),
        *(arm.id for arm in arms.tuning(0.5, "stratified")),
    }
    assert all(name in told for name in results)
    # 256 rows are 4 steps of 64; 2 of 3 epochs are scored.
    assert results["full_seed0"]["steps"] == 12
    assert results["el2n-stratified_keep0.5_equal-epochs_seed0"]["steps"] == 6
    assert results["el2n-stratified_keep0.5_equal-epochs_seed0"]["cost"]["scoring"] == pytest.approx((2 + 1 / 3) / 3)
    assert results["attach_keep0.5_equal-epochs_seed0"]["steps"] == 2 * 4 + 2
    assert results["attach_keep0.5_equal-epochs_seed0"]["rows"] == 128
    assert results["full_length1.278_seed0"]["steps"] == round(12 * 1.278)

    (out / "full_seed0.json").unlink()
    again = run("cifar10.py", *given).stdout
    assert again.count(" steps, ") == 1
    assert "full_seed0" in again

    run("cifar10_report.py", out, "--out", page)
    text = (page / "README.md").read_text()
    assert "| EL2N, stratified | 0.5 | equal epochs | 128 | 6 |" in text
    assert "Below the floor of 85 %" in text
    assert len(list((page / "arms").iterdir())) == len(results)
    assert (page / "accuracy.svg").stat().st_size > 1000 < (page / "accuracy.png").stat().st_size


def test_without_data_it_says_that_it_skips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRUNESAMPLER_DATA", raising=False)
    assert run("cifar10.py", "--out", tmp_path / "out").stderr.startswith("skipped: ")
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


def test_schedules_end_where_they_should() -> None:
    assert [milestones(step, 200) for step in (0, 59, 60, 119, 120, 159, 160, 199)] == pytest.approx(
        [1, 1, 0.2, 0.2, 0.04, 0.04, 0.008, 0.008]
    )
    rates = [one_cycle(step, 100) for step in range(100)]
    assert max(rates) == rates[25] == 1
    assert rates[-1] < 0.002
    assert rates == [*sorted(rates[:26]), *sorted(rates[26:], reverse=True)]


def test_images_are_crops_of_the_reflected_picture_or_its_mirror_image() -> None:
    plain = Images.padded(pictures(6), torch.arange(6), torch.device("cpu"))
    whole = nn.functional.pad(pictures(6).float(), (4,) * 4, mode="reflect")
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)))
    inputs, targets = plain.__getitems__([4, 1])
    assert targets.tolist() == [4, 1]
    assert torch.allclose(inputs[0] * std + mean, pictures(6)[4].float(), atol=1e-3)
    augmented = plain.augmented(0)
    for _ in range(20):
        moved = augmented.__getitems__([5])[0][0] * std + mean
        crops = [whole[5, :, i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
        assert any(torch.allclose(moved, each, atol=1e-3) for crop in crops for each in (crop, crop.flip(-1)))


def test_class_accuracies_against_counting() -> None:
    images = Images.padded(pictures(50), torch.arange(50) % 4, torch.device("cpu"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        answers = model(images.__getitems__(list(range(50)))[0]).argmax(1).tolist()
    expected = [
        sum(answers[i] == c for i in range(50) if i % 4 == c) / sum(i % 4 == c for i in range(50)) for c in range(4)
    ]
    assert class_accuracies(model, images, torch.device("cpu")) == pytest.approx(expected)


@pytest.mark.parametrize("name", RECIPES)
def test_networks_answer_and_learn(name: str) -> None:
    images = Images.padded(pictures(32), torch.arange(32) % 10, torch.device("cpu"))
    for network in RECIPES[name].networks:
        model = RECIPES[name].model(network, 0, images)
        logits = model(images.__getitems__([0, 1])[0])
        assert logits.shape == (2, 10)
        logits.sum().backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_samplers_beside_their_peers(tmp_path: Path) -> None:
    pair = ["PrunedSampler, keep 0.5", "SubsetRandomSampler, list"]
    told = run("sampler_overhead.py", "--smoke", "--arms", *pair, "--out", tmp_path / "sampler.json").stdout
    arms_found = json.loads((tmp_path / "sampler.json").read_text())["sizes"]["1000"]
    assert not any("error" in figures for figures in arms_found.values())
    assert arms_found[pair[0]]["times_peer"] > 0
    assert all(name in told for name in pair)
    again = run("sampler_overhead.py", "--smoke", "--arms", *pair, "--out", tmp_path / "sampler.json").stdout
    assert again == told, "what is there is not measured again"


def test_the_tracker_beside_cross_entropy(tmp_path: Path) -> None:
    told = run("tracker_overhead.py", "--smoke", "--out", tmp_path / "tracker.json").stdout
    report_found = json.loads((tmp_path / "tracker.json").read_text())
    assert report_found["update"]["128 × 10"]["ScoreTracker, EL2N and forgetting"]["us_a_step"] > 0
    assert "InfoBatch, update with given losses" not in report_found["update"]["128 × 10"]
    assert all("us_a_step" in run or "error" in run for run in report_found["update"]["128 × 10"].values())
    assert report_found["attach"]["attached"]["us_a_step"] > 0
    assert "| attached |" in told


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_soak_counts_handles_and_threads(tmp_path: Path) -> None:
    told = run("soak.py", "--smoke", "--out", tmp_path / "soak.json").stdout
    report_found = json.loads((tmp_path / "soak.json").read_text())
    for name, epochs in (("no workers", 36), ("a worker", 12), ("a persistent worker", 12)):
        assert f"over {epochs} epochs" in told
        assert report_found[name]["series"]["epochs"] == list(range(6, epochs + 1, 6))
    for figure in ("file_handles", "threads"):  # after the first life; all others are for more epochs
        assert len(set(report_found["no workers"]["series"][figure][1:])) == 1


def test_the_arms_of_tar_shards_deliver_what_they_should(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    told = run("shards.py", "--smoke", "--out", tmp_path / "shards.json").stdout
    report = json.loads((tmp_path / "shards.json").read_text())
    assert not [arm for arm in [*report["epochs"], *report["peers"], *report["http"]] if "error" in arm]
    assert [arm["samples"] for arm in report["epochs"] if arm["arm"] == "IndexedShards"] == [75, 45, 15]
    assert [each["pixels"] for each in report["repack"]] == [48, 288]
    assert all(each["samples"] > 0 for each in report["repack"])
    assert "| HTTP: IndexedShards | 0.5 | " in told
    assert run("shards.py", "--table", tmp_path / "shards.json").stdout == told


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_merges_are_timed_and_their_bytes_counted(tmp_path: Path) -> None:
    run("merge.py", "--smoke", "--out", tmp_path / "merge.json")
    (found,) = json.loads((tmp_path / "merge.json").read_text())["merges"]
    assert (found["rows"], found["ranks"]) == (1000, 2)
    assert all(count > 4 for count in found["all_reduce of one column"]["bytes_a_row_sent_by_each_rank"])
    assert len(found["merge"]["seconds"]) == 3


def test_the_page_has_the_tables_of_the_results() -> None:
    page = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert readme.filled(page) == page
    shown = set(re.findall(r"<!-- (results/\S+) -->", page))
    assert shown == {f"results/{path.name}" for path in (BENCHMARKS / "results").glob("*.md")}
