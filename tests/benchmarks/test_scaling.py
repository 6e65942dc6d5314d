from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
import common
import scaling

# Limits the memory of its process, or starts another.
OWN_PROCESS = ("sampler, an epoch", "sampler, an epoch at keep 0.5", "selection, file to file")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_growth_with_the_rows_is_measured_and_drawn(tmp_path: Path, run: Callable[..., str]) -> None:
    out = tmp_path / "scaling.json"
    told = run("scaling.py", "--smoke", "--arms", "coreset read", "--out", out)
    report = json.loads(out.read_text())
    assert list(report) == ["coreset read"]
    assert set(report["coreset read"]["sizes"]) == {"1000"}
    assert report["coreset read"]["sizes"]["1000"]["seconds"] > 0
    assert out.with_suffix(".md").read_text() == told
    assert out.with_suffix(".svg").stat().st_size > 1000 < out.with_suffix(".png").stat().st_size


@pytest.mark.parametrize("arm", [arm for arm in scaling.ARMS if arm not in OWN_PROCESS])
def test_every_arm_asserts_its_answer(arm: str) -> None:
    found = scaling.ARMS[arm](1000)
    assert found["seconds"] > 0 <= found["megabytes"]


def test_exponents() -> None:
    def sizes(*seconds: float) -> dict[str, scaling.Figures]:
        return {str(10 ** (5 + place)): {"seconds": each} for place, each in enumerate(seconds)}

    assert scaling.exponent(sizes(99.0, 1.0, 10.0, 100.0), "seconds") == 1  # the smallest does not count
    assert scaling.exponent(sizes(99.0, 3.0, 3.0), "seconds") == 0
    assert scaling.exponent(sizes(0.0, 1.0, 100.0), "seconds") == 2
    assert scaling.exponent(sizes(1.0, 1.0), "seconds") is None


def test_the_peak_of_memory_begins_anew() -> None:
    before = common.reset_peak()
    np.ones(10 * 2**20)  # 80 MB, gone at once
    assert 75 < common.megabytes() - before < 90
    assert common.reset_peak() < before + 40
    assert common.megabytes() < before + 40
