from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *args: object) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_selections_beside_numpy(tmp_path: Path) -> None:
    out = tmp_path / "selection.json"
    given = ["--smoke", "--methods", "top", "stratified", "--out", out, "--arms", "prunesampler"]
    run("selection.py", *given)
    told = run("selection.py", *given[:-1], "numpy")  # adds to the file
    methods = json.loads(out.read_text())["sizes"]["20000"]
    for method in ("top", "stratified"):
        for name in ("prunesampler", "numpy"):
            assert methods[method][name].get("seconds", 0) > 0, methods[method][name]
    assert (tmp_path / "selection.md").read_text() == told == run("selection.py", "--table", out)


def test_a_wrong_selection_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import selection

    scores, out = tmp_path / "scores.parquet", tmp_path / "coreset.parquet"
    selection.write_scores(scores, 2000)
    for method in selection.OFFSETS:
        selection.of_numpy(scores, method, out)
        selection.check(method, scores, out)
    for method in ("top", "window", "stratified"):
        selection.of_numpy(scores, "random", out)
        with pytest.raises(AssertionError):
            selection.check(method, scores, out)


def test_files_beside_feather(tmp_path: Path) -> None:
    told = run("files.py", "--smoke", "--out", tmp_path / "files.json")
    found = json.loads((tmp_path / "files.json").read_text())
    for kind in ("scores", "coreset"):
        assert found[kind]["prunesampler"]["bytes_a_row"] < found[kind]["Feather, zstd"]["bytes_a_row"]
    assert (tmp_path / "files.md").read_text() == told
