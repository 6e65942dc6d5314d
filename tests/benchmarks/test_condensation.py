from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

Script = Callable[..., str]


def test_condensed_images_stand_beside_as_many_real_ones(tmp_path: Path, run: Script) -> None:
    out = tmp_path / "condensation.json"
    given = ["--smoke", "--sizes", 1, "--out", out]
    run("condensation.py", *given, "--methods", "dm")
    run("condensation.py", *given, "--methods")  # what was measured before is kept
    arms = json.loads(out.read_text())["sizes"]["1"]
    assert list(arms) == ["dm", "random", "herding", "k_center"]
    assert all(len(each["accuracies"]) == 2 for each in arms.values())
    assert arms["dm"]["made"]["iterations"] == 2
    told = run("condensation.py", "--table", out)
    assert out.with_suffix(".md").read_text() == told
    assert "| DM | 2 |" in told
