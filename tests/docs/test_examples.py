"""The scripts of examples/ run as their pages say, and what they print is true."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from prunesampler import Coreset

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_an_example_runs(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    told = capsys.readouterr().out
    last = told.splitlines()[-1]
    if script.stem == "wrong_labels":
        found, wrong = map(int, re.findall(r"\d+", told)[:2])
        assert wrong * 0.7 < found <= wrong
    elif script.stem == "proxy_filter":
        arms = re.findall(r"accuracy ([\d.]+)  cost ([\d.]+)", told)
        assert len(arms) == 4
        assert all(float(accuracy) > 0.8 for accuracy, _ in arms)
        costs = [float(cost) for _, cost in arms]
        assert costs[0] == 1 < costs[2] == costs[3] < costs[1] < 2
    elif script.stem == "training_loop":
        assert float(re.findall(r"accuracy ([\d.]+)", last)[0]) > 0.8
        assert len(Coreset.load(tmp_path / "runs/training_loop/coreset.parquet")) == 650
    elif script.stem == "compare":
        clean, noisy = told.split("\n\n")
        assert "Does not beat random" in clean
        assert "Beats random" in noisy
        assert "Beats training shorter" in noisy
    else:
        assert script.stem == "tar_shards"
        assert len(Coreset.load(tmp_path / "runs/tar_shards/run/coreset.parquet")) == 800
        assert (tmp_path / "runs/tar_shards/kept/000000.tar").stat().st_size > 0


def test_the_page_of_examples_names_each() -> None:
    page = (ROOT / "examples/README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| \[([\w.]+)\]\(\1\)", page, re.MULTILINE)) == {script.name for script in SCRIPTS}
