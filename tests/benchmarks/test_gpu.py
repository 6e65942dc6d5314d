from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import gpu
import pytest
import torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="is no dry run on a GPU")
def test_without_a_gpu_parts_run_dry_and_only_what_is_not_done_runs_again(
    tmp_path: Path, run: Callable[..., str]
) -> None:
    told = run("gpu.py", tmp_path, "--parts", "tracker")
    assert "No GPU here" in told
    assert "| done |" in told
    assert "| 128 × 10 | ScoreTracker, EL2N and forgetting |" in told
    written = (tmp_path / "tracker.json").stat().st_mtime_ns
    assert run("gpu.py", tmp_path, "--parts", "tracker").splitlines()[4:] == told.splitlines()[4:]
    assert (tmp_path / "tracker.json").stat().st_mtime_ns == written
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["dry"]
    assert list(found["parts"]) == ["tracker"]


def test_a_part_that_fails_or_takes_too_long_is_told_and_ended(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()

    def part(code: str, done: bool = False) -> gpu.Part:
        return gpu.Part("step: one", ["-c", code], 60, lambda: done)

    assert gpu.perform(part("print('out')"), tmp_path, 60)["state"] == "done"
    failed = gpu.perform(part("print('why'); raise SystemExit(3)"), tmp_path, 60)
    assert (failed["state"], failed["said"]) == ("failed", ["why"])
    began = time.monotonic()
    endless = "import time; time.sleep(600)"
    assert gpu.perform(part(endless), tmp_path, 0.1)["state"] == "out of time"
    assert gpu.perform(part(endless, done=True), tmp_path, 0.1)["state"] == "done", "its file was written"
    assert time.monotonic() - began < 300


def test_every_part_for_a_gpu_is_named_once_and_comes_before_the_endless_one(tmp_path: Path) -> None:
    names = [part.name for part in gpu.parts(tmp_path, None, True, 30)]
    assert names[0] == "tests"
    assert names.index("NCCL") < names.index("step: ResNet-18, 512, compiled")
    assert names[-1].startswith("CIFAR-10")
    assert len(names) == len(set(names)) == 4 + len(gpu.step_overhead.SETTINGS["cuda"])
