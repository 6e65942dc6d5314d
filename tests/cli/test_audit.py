from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import prunesampler as ps
from prunesampler.cli.app import main
from tests.analysis.test_audit import N, audited
from tests.helpers.command_line import assert_refused
from tests.helpers.pictures import pictures, png


@pytest.fixture(autouse=True)
def table(here: Path) -> ps.ScoreTable:
    found = audited()
    found.save("scores.parquet")
    ps.ScoreTable({"el2n": [0.1, 0.2]}, labels=[0, 1]).save("old.parquet")
    return found


def run(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["audit", "scores.parquet", *args]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_the_lines_say_how_many_and_which(table: ps.ScoreTable, capsys: pytest.CaptureFixture[str]) -> None:
    issues = ps.audit(table)
    text = run(capsys)
    assert f"scores.parquet: about {issues.noise_rate} of 600 labels wrong" in text
    assert f"{len(issues)} flagged" in text
    (pair,) = (line for line in text.splitlines() if line.split()[:2] == ["cat", "eel"])
    assert int(pair.split()[-1]) == next(each.flagged for each in issues.confusions if each.label == 0)
    assert "prunesampler audit scores.parquet --images FOLDER -o issues.html" in text
    said = json.loads(run(capsys, "--json"))
    assert (said["flagged"], said["rows"]) == (len(issues), N)
    assert said["noise_rate"]["rate"] == pytest.approx(issues.noise_rate.rate, abs=1e-6)
    assert len(said["classes"]) == 3


def test_files_and_a_page_with_images_by_their_keys(table: ps.ScoreTable, capsys: pytest.CaptureFixture[str]) -> None:
    issues = ps.audit(table)
    Path("images").mkdir()
    for row in issues.rows.tolist():
        (Path("images") / f"{row}.png").write_bytes(png(pictures(1, row)[0]))
    assert run(capsys, "-o", "issues.html", "--images", "images", "--limit", "20").endswith("written to issues.html\n")
    text = Path("issues.html").read_text(encoding="utf-8")
    assert text.count("<img") == 20
    assert "eel" in text
    run(capsys, "-o", "issues.csv")
    run(capsys, "-o", "issues.parquet", "--threshold", "0.9")
    assert Path("issues.csv").read_text().count("\n") == len(issues) + 1
    assert pq.read_table("issues.parquet")["row"].to_pylist() == ps.audit(table, threshold=0.9).rows.tolist()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["scores.parquet", "-o", "issues.txt"], "out must end in one of .html, .csv, .parquet"),
        (["scores.parquet", "-o", "scores.parquet", "--force"], "is read by this command"),
        (["scores.parquet", "-o", "old.parquet"], "exists already"),
        (["scores.parquet", "--images", "."], "images belongs to a page"),
        (["scores.parquet", "-o", "a.html", "--images", "nowhere"], "images must hold CIFAR-10"),
        (["scores.parquet", "--threshold", "2"], "threshold must be"),
        (["scores.parquet", "--method", "magic"], "method must be one of disagreement, mixture"),
        (["scores.parquet", "--limit", "0"], "limit must be"),
        (["old.parquet"], "must hold the column suggested_label"),
    ],
)
def test_misuse_is_one_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, ["audit", *args], message)


def test_clean_selects_all_but_the_flagged(table: ps.ScoreTable, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["select", "scores.parquet", "-o", "clean.parquet", "--keep", "clean"]) == 0
    said: Any = capsys.readouterr().out
    issues = ps.audit(table)
    assert f"all but {len(issues)} rows whose label is likely wrong" in said
    assert f"about {issues.noise_rate.rate:.0%}"[:-1] in said
    assert len(ps.Coreset.load("clean.parquet")) == N - len(issues)


def test_inspect_and_report_say_where_labels_look_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    audited(noise=0.0).save("clean.parquet")
    for file, noisy in (("scores.parquet", True), ("clean.parquet", False)):
        assert main(["inspect", file]) == 0
        assert ("prunesampler audit scores.parquet" in capsys.readouterr().out) == noisy
        assert main(["report", file, "-o", f"{file}.html"]) == 0
        text = Path(f"{file}.html").read_text(encoding="utf-8")
        assert ("of the labels look wrong" in text) == noisy
        capsys.readouterr()
