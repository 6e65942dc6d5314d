from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.pictures import write_parquet

pytest.importorskip("timm")
import vit_tokens

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_an_arm_leaves_a_file_and_is_not_run_again(tmp_path: Path, run: Callable[..., str]) -> None:
    write_parquet(tmp_path, train=128, test=20)
    out = tmp_path / "vit"
    given = ["--data", tmp_path, "--out", out, "--smoke", "--arms", "tokens 0.7"]
    told = run("vit_tokens.py", *given)
    (file,) = out.iterdir()
    found = json.loads(file.read_text())
    assert (found["steps"], found["rows"], found["test_rows"]) == (2, 128, 20)
    assert 0.7 < found["petaflop"] / found["petaflop_dense"] < 1  # the first step is dense
    assert "| tokens 0.7 | 2 | 0.8" in told
    assert out.with_suffix(".md").read_text() == told
    file.write_text(json.dumps({**found, "accuracy_all_tokens": 0.123}))
    assert "| 12.3 % |" in run("vit_tokens.py", *given)


def test_the_table_is_that_of_the_results() -> None:
    lines = vit_tokens.table(BENCHMARKS / "results/vit")
    assert (BENCHMARKS / "results/vit.md").read_text(encoding="utf-8") == "\n".join(lines) + "\n"
    assert all(any(line.startswith(f"| {arm} |") for line in lines) for arm in vit_tokens.ARMS)
