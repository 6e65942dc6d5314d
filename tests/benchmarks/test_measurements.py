from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import readme
import selection

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
Script = Callable[..., str]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_samplers_beside_their_peers(tmp_path: Path, run: Script) -> None:
    pair = ["PrunedSampler, keep 0.5", "SubsetRandomSampler, list"]
    told = run("sampler_overhead.py", "--smoke", "--arms", *pair, "--out", tmp_path / "sampler.json")
    arms_found = json.loads((tmp_path / "sampler.json").read_text())["sizes"]["1000"]
    assert not any("error" in figures for figures in arms_found.values())
    assert arms_found[pair[0]]["times_peer"] > 0
    assert all(name in told for name in pair)
    again = run("sampler_overhead.py", "--smoke", "--arms", *pair, "--out", tmp_path / "sampler.json")
    assert again == told, "what is there is not measured again"


def test_the_tracker_beside_cross_entropy(tmp_path: Path, run: Script) -> None:
    told = run("tracker_overhead.py", "--smoke", "--out", tmp_path / "tracker.json")
    report_found = json.loads((tmp_path / "tracker.json").read_text())
    assert report_found["update"]["128 × 10"]["ScoreTracker, EL2N and forgetting"]["us_a_step"] > 0
    assert "InfoBatch, update with given losses" not in report_found["update"]["128 × 10"]
    assert all("us_a_step" in run or "error" in run for run in report_found["update"]["128 × 10"].values())
    assert report_found["attach"]["attached"]["us_a_step"] > 0
    assert "| attached |" in told


def test_scores_of_the_model_beside_a_plain_loop(tmp_path: Path, run: Script) -> None:
    told = run("model_scores.py", "--smoke", "--out", tmp_path / "model-scores.json")
    seconds = json.loads((tmp_path / "model-scores.json").read_text())["seconds"]
    assert seconds["grand"] > 0
    assert all(f"| {name} |" in told for name in seconds)


def test_draws_between_epochs_are_right(tmp_path: Path, run: Script) -> None:
    told = run("between_epochs.py", "--smoke", "--out", tmp_path / "between.json")
    found = json.loads((tmp_path / "between.json").read_text())["ns_a_row"]["20000"]
    assert all(f"| {name} |" in told and times[0] > 0 for name, times in found.items())


def test_the_figures_of_the_data_diet(tmp_path: Path, run: Script) -> None:
    told = run("data_diet_figures.py", "--smoke", "--out", tmp_path / "figures.json")
    found = json.loads((tmp_path / "figures.json").read_text())["noise"]["0.1"]
    assert len(found["window"]["accuracy"]) == len(found["window"]["offsets"]) == 2
    assert all(0 <= value <= 1 for values in found["velocity"]["velocity"].values() for value in values)
    assert all(len(found["barrier"][rows]) == 2 for rows in ("lowest", "highest", "random"))
    assert "| barrier, highest EL2N |" in told
    assert (tmp_path / "figures.png").stat().st_size > 10_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_soak_counts_handles_and_threads(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "soak.py"), "--smoke", "--out", str(tmp_path / "soak.json")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    report_found = json.loads((tmp_path / "soak.json").read_text())
    for name, epochs in (("no workers", 36), ("a worker", 12), ("a persistent worker", 12)):
        assert f"over {epochs} epochs" in told
        assert report_found[name]["series"]["epochs"] == list(range(6, epochs + 1, 6))
    for figure in ("file_handles", "threads"):  # after the first life; all others are for more epochs
        assert len(set(report_found["no workers"]["series"][figure][1:])) == 1


def test_the_arms_of_tar_shards_deliver_what_they_should(tmp_path: Path, run: Script) -> None:
    pytest.importorskip("webdataset")
    told = run("shards.py", "--smoke", "--out", tmp_path / "shards.json")
    report = json.loads((tmp_path / "shards.json").read_text())
    assert not [arm for arm in [*report["epochs"], *report["peers"], *report["http"]] if "error" in arm]
    assert [arm["samples"] for arm in report["epochs"] if arm["arm"] == "IndexedShards"] == [75, 45, 15]
    assert [each["pixels"] for each in report["repack"]] == [48, 288]
    assert all(each["samples"] > 0 for each in report["repack"])
    assert "| HTTP: IndexedShards | 0.5 | " in told
    assert run("shards.py", "--table", tmp_path / "shards.json") == told


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_merges_are_timed_and_their_bytes_counted(tmp_path: Path, run: Script) -> None:
    run("merge.py", "--smoke", "--out", tmp_path / "merge.json")
    (found,) = json.loads((tmp_path / "merge.json").read_text())["merges"]
    assert (found["rows"], found["ranks"]) == (1000, 2)
    assert all(count > 4 for count in found["all_reduce of one column"]["bytes_a_row_sent_by_each_rank"])
    assert len(found["merge"]["seconds"]) == 3


def test_the_pages_have_the_tables_of_the_results() -> None:
    shown: set[str] = set()
    assert readme.RATIOS.read_text(encoding="utf-8") == readme.ratios()
    for path in readme.PAGES:
        page = path.read_text(encoding="utf-8")
        assert readme.filled(page) == page
        shown |= set(re.findall(r"<!-- (results/\S+) -->", page))
    assert shown == {f"results/{path.name}" for path in (BENCHMARKS / "results").glob("*.md")}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_selections_beside_numpy(tmp_path: Path, run: Script) -> None:
    out = tmp_path / "selection.json"
    given = ["--smoke", "--methods", "stratified", "--out", out, "--arms", "prunesampler"]
    run("selection.py", *given)
    told = run("selection.py", *given[:-1], "numpy")  # adds to the file
    found = json.loads(out.read_text())["sizes"]["20000"]["stratified"]
    assert all(found[name].get("seconds", 0) > 0 for name in ("prunesampler", "numpy")), found
    assert (tmp_path / "selection.md").read_text() == told == run("selection.py", "--table", out)


def test_a_wrong_selection_is_found(tmp_path: Path) -> None:
    scores, out = tmp_path / "scores.parquet", tmp_path / "coreset.parquet"
    selection.write_scores(scores, 2000)
    for method in selection.OFFSETS:
        selection.of_numpy(scores, method, out)
        selection.check(method, scores, out)
    for method in ("top", "window", "stratified"):
        selection.of_numpy(scores, "random", out)
        with pytest.raises(AssertionError):
            selection.check(method, scores, out)


def test_files_beside_feather(tmp_path: Path, run: Script) -> None:
    told = run("files.py", "--smoke", "--out", tmp_path / "files.json")
    found = json.loads((tmp_path / "files.json").read_text())
    for kind in ("scores", "coreset"):
        assert found[kind]["prunesampler"]["bytes_a_row"] < found[kind]["Feather, zstd"]["bytes_a_row"]
    assert (tmp_path / "files.md").read_text() == told
