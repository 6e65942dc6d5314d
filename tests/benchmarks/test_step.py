from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torchvision")
import step_overhead as step


def test_steps_with_attach_beside_steps_without(tmp_path: Path, run: Callable[..., str]) -> None:
    out = tmp_path / "step.json"
    told = run("step_overhead.py", "--smoke", "--out", out)
    assert out.with_suffix(".md").read_text() == told
    found = json.loads(out.read_text())["smoke"]
    assert found["rounds"] == 3
    assert {len(times) for times in found["rounds_ms_a_step"].values()} == {3}
    operators = {name: arm["counts"]["operators"] for name, arm in found["arms"].items()}
    assert operators[step.BASE] == operators[step.AGAIN] > 0
    assert operators["pruned"] - operators[step.BASE] < 5 < operators["scoring"] - operators[step.BASE]
    assert run("step_overhead.py", "--table", out) == told

    run("step_overhead.py", "--smoke", "--out", out)
    again = json.loads(out.read_text())["smoke"]["rounds_ms_a_step"]
    assert {len(times) for times in again.values()} == {6}
    assert all(again[name][:3] == times for name, times in found["rounds_ms_a_step"].items())


def test_ratios_are_of_the_same_round() -> None:
    found = step.beside([2.0, 6.0, 30.0], [1.0, 2.0, 15.0])  # 2, 3 and 2 times as long
    assert found["ratio"] == 2
    assert found["interval"] == [2, 3]
    assert found["more_us"] == 4000


def test_kernels_and_waits_are_counted_from_a_trace() -> None:
    events = [
        *({"cat": "kernel", "name": name} for name in ("gemm", "take", "take", "add")),
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD"},
        {"cat": "gpu_memset", "name": "Memset"},
        {"cat": "cpu_op", "name": "aten::take"},
        {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "dur": 50},
        {"cat": "cuda_runtime", "name": "cudaMemcpyAsync", "dur": 7},
        {"cat": "cuda_runtime", "name": "cudaMemcpyAsync", "dur": 3},
        {"cat": "cuda_runtime", "name": "cudaStreamSynchronize", "dur": 9},
        {"name": "process_name"},
    ]
    assert step.counted(events, 2) == {
        "operators": 0.5,
        "kernels": 2,
        "copies": 1,
        "host_syncs": 0.5,
        "longest_copy_call_us": 7,
    }
