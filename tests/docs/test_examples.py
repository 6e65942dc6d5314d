"""The scripts of examples/ run as their pages say, and what they print is true."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

from prunesampler import Coreset
from tests.helpers.ranks import run_script

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
LAST = {  # what their last line tells, in order
    "accelerate_loop": r"phase='pruned', kept='898 of 1,797 rows'",
    "ddp": r"rank [01], epoch 6: 449 rows",
    "hf_trainer": r"el2n of the kept rows: [\d.]+ to [\d.]+",
    "image_folder": r"el2n of the kept rows: [\d.]+ to [\d.]+",
    "lightning_module": r"el2n of the kept rows: [\d.]+ to [\d.]+",
    "sweep": r"random +0\.3 +0\.[89]",
    "timm_model": r"epoch 4: cost so far [23]\.\d\d passes",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_an_example_runs(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if script.stem == "ddp":
        copied = shutil.copy(script, tmp_path)
        told = "".join(run_script(2, Path(copied)))
    else:
        runpy.run_path(str(script), run_name="__main__")
        told = capsys.readouterr().out
    last = told.splitlines()[-1]
    if script.stem in LAST:
        assert re.search(LAST[script.stem], last), told
        assert script.stem != "image_folder" or len(re.findall(r"digit \d/\d{3}\.png", told)) == 5
    elif script.stem == "wrong_labels":
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


def test_the_notebook_runs_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "examples/first_look.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for code in 2 * ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "len.loader. is")
            exec(code, names)
    assert len(names["coreset"]) == 539
    assert names["table"] == names["loader"].pruning.table
    names["pyplot"].close("all")


def test_the_page_of_examples_names_each() -> None:
    page = (ROOT / "examples/README.md").read_text(encoding="utf-8")
    assert "[first_look.ipynb](first_look.ipynb)" in page
    assert set(re.findall(r"^\| \[(\w+\.py)\]\(\1\)", page, re.MULTILINE)) == {script.name for script in SCRIPTS}
