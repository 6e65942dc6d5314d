from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunesampler._format import percent
from prunesampler.cli.app import main
from prunesampler.selection.select import select
from prunesampler.tables.score_table import Coreset, ScoreTable
from tests.helpers.command_line import assert_refused, score_table


@pytest.fixture(autouse=True)
def files(here: Path) -> None:
    score_table().save("scores.parquet")


@pytest.mark.parametrize(
    ("args", "options"),
    [
        (["--keep", "0.5"], {"keep": 0.5}),
        (["--keep", "70", "--by", "margin", "--method", "window"], {"keep": 70, "by": "margin", "method": "window"}),
        (["--keep", "0.8", "--method", "top", "--unscored", "drop"], {"method": "top", "unscored": "drop"}),
        (["--keep", "0.3", "--method", "random", "--seed", "3"], {"keep": 0.3, "method": "random", "seed": 3}),
        (["--keep", "0.3", "--offset", "0.2"], {"keep": 0.3, "offset": 0.2}),
        (["--keep", "0.3", "--offset", "5", "--class-balanced"], {"keep": 0.3, "offset": 5, "class_balanced": True}),
        (["--keep", "0.3", "--by", "forgetting", "--min-per-class", "4"], {"by": "forgetting", "min_per_class": 4}),
        (["--keep", "auto"], {"keep": "auto"}),
        (["--keep", "auto", "--threshold", "0.2"], {"keep": "auto", "threshold": 0.2}),
    ],
)
def test_the_file_is_what_select_gives(
    args: list[str], options: dict[str, Any], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["select", "scores.parquet", "-o", "coreset.parquet", *args]) == 0
    options = {"keep": float(args[1]) if "." in args[1] else args[1]} | options
    expected = select(ScoreTable.load("scores.parquet"), **options)
    assert Coreset.load("coreset.parquet") == expected
    captured = capsys.readouterr()
    assert captured.err == ""
    share = percent(len(expected) / 200)
    assert captured.out.startswith(f"kept {len(expected)} of 200 rows ({share}): ")
    assert captured.out.endswith("\nwritten to coreset.parquet\n")
    assert sorted(path.name for path in here.iterdir()) == ["coreset.parquet", "scores.parquet"]


def lines(capsys: pytest.CaptureFixture[str], *args: str) -> list[str]:
    assert main(["select", "scores.parquet", "-o", "out", "--force", *args]) == 0
    return capsys.readouterr().out.splitlines()


def test_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    coreset = select(table := ScoreTable.load("scores.parquet"), keep=0.5)
    kept = np.isin(table.rows, coreset.rows)
    assert table.labels is not None
    shares = [kept[table.labels == label].mean() for label in range(10)]
    finite = table.scores["el2n"][kept]
    found = lines(capsys, "--keep", "0.5")
    assert found[:4] == [
        "kept 100 of 200 rows (50 %): stratified by el2n",
        "left out the hardest 10 %",
        f"el2n of the kept rows: {np.nanmin(finite):.4g} to {np.nanmax(finite):.4g}",
        "kept without a score: 1",
    ]
    shown = re.fullmatch(r"of 10 classes: (.*) \(class (\d)\) to (.*) \(class (\d)\) kept", found[4])
    assert shown is not None
    assert shown.group(1, 3) == (percent(min(shares)), percent(max(shares)))
    assert [shares[int(shown[group])] for group in (2, 4)] == [min(shares), max(shares)]


def test_what_it_says_of_other_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, "--keep", "0.5", "--offset", "12")[1] == "left out the hardest 12"
    assert lines(capsys, "--keep", "100", "--method", "random")[:2] == [
        "kept 100 of 200 rows (50 %): random",
        lines(capsys, "--keep", "100", "--method", "random", "--seed", "0")[1],
    ]
    table = ScoreTable.load("scores.parquet")
    for extra in ([], ["--min-per-class", "20"]):
        found = lines(capsys, "--keep", "auto", *extra)
        gone = len(table) - len(Coreset.load("out"))
        assert found[0].endswith(f"all but {gone} superfluous rows by el2n")
        assert found[1] == "superfluous: learned, never forgotten, el2n at most 0.05 in both halves"
    assert gone == 0
    score_table(labels=None).save("scores.parquet")
    assert not any("class" in line for line in lines(capsys, "--keep", "0.5"))


def test_a_warning_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["select", "scores.parquet", "-o", "out", "--keep", "0.3", "--method", "top"]) == 0
    error = capsys.readouterr().err
    assert error.startswith('prunesampler: method="top" at keep 0.3: ')
    assert error.count("\n") == 1


def test_an_output_is_replaced_only_on_demand(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").write_text("precious")
    assert main(["select", "scores.parquet", "-o", "out", "--keep", "0.5"]) == 2
    assert "out exists already: give another --out, or --force" in capsys.readouterr().err
    assert Path("out").read_text() == "precious"
    assert main(["select", "scores.parquet", "-o", "out", "--keep", "0.5", "--force"]) == 0
    assert len(Coreset.load("out")) == 100
    before = Path("scores.parquet").read_bytes()
    assert main(["select", "scores.parquet", "-o", "./scores.parquet", "--keep", "0.5", "--force"]) == 2
    assert Path("scores.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["scores.parquet", "--keep", "0.5"], "--out"),
        (["scores.parquet", "-o", "out"], "keep must be a float"),
        (["none", "-o", "out", "--keep", "0.5"], "No such file or directory: 'none'"),
        (["/", "-o", "out", "--keep", "0.5"], "No such file or directory: '/scores.parquet'"),
        (["text", "-o", "out", "--keep", "0.5"], "text is damaged or cut short"),
        (["cut", "-o", "out", "--keep", "0.5"], "cut is damaged or cut short"),
        (["coreset", "-o", "out", "--keep", "0.5"], "coreset holds 'coreset', not 'scores'"),
        (["scores.parquet", "-o", "none/out", "--keep", "0.5"], "none/out cannot be written: none is not a folder"),
        (["scores.parquet", "-o", ".", "--keep", "0.5"], "is a folder"),
        (["scores.parquet", "-o", "out", "--keep", "half"], "keep must be a fraction"),
        (["scores.parquet", "-o", "out", "--keep", "1"], "keep must be"),
        (["scores.parquet", "-o", "out", "--keep", "0"], "keep must be"),
        (["scores.parquet", "-o", "out", "--keep", "nan"], "keep must be"),
        (["scores.parquet", "-o", "out", "--keep", "1.5"], "keep must be"),
        (["scores.parquet", "-o", "out", "--keep", "201"], "keep must be at most the number of eligible rows, 200"),
        (["scores.parquet", "-o", "out", "--keep", "0.5", "--by", "loss"], "by must be a score of the table"),
        (["scores.parquet", "-o", "out", "--keep", "0.5", "--method", "best"], "method must be one of"),
        (["scores.parquet", "-o", "out", "--keep", "0.5", "--offset", "most"], "offset must be a fraction"),
        (["scores.parquet", "-o", "out", "--keep", "0.5", "--offset", "1.5"], "offset must be"),
        (["scores.parquet", "-o", "out", "--keep", "0.5", "--offset", "-1"], "offset must be"),
        (["scores.parquet", "-o", "out", "--keep", "0.5", "--offset", "500"], "offset must be below"),
        (["scores.parquet", "-o", "out", "--keep", "0.5", "--unscored", "x"], "unscored must be"),
        (["scores.parquet", "-o", "out", "--keep", "0.5", "--seed", "-1"], "seed must be"),
        (["scores.parquet", "-o", "out", "--keep", "0.5", "--min-per-class", "11"], "min_per_class needs 110 rows"),
        (["scores.parquet", "-o", "out", "--keep", "0.5", "--threshold", "0.1"], "threshold belongs to"),
        (["scores.parquet", "-o", "out", "--keep", "auto", "--threshold", "0"], "threshold must be"),
        (["scores.parquet", "-o", "out", "--keep", "auto", "--method", "top"], "method cannot be chosen"),
    ],
)
def test_misuse_is_refused_in_one_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text").write_text("row,el2n\n0,0.5\n")
    Path("cut").write_bytes(Path("scores.parquet").read_bytes()[:-100])
    Coreset([1], num_rows=2).save("coreset")
    assert_refused(capsys, ["select", *args], message)


def test_a_disk_that_fails_leaves_nothing_behind(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert main(["select", "scores.parquet", "-o", "out", "--keep", "0.5"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "prunesampler: out cannot be written: No space left on device\n"
    assert [path.name for path in here.iterdir()] == ["scores.parquet"]
