from __future__ import annotations

from pathlib import Path

import pytest

from prunesampler.cli.app import main
from prunesampler.tables.merge import merge
from prunesampler.tables.score_table import Coreset, ScoreTable
from tests.helpers.command_line import ONLINE, assert_refused, score_table

NAMES = ["a.parquet", "b.parquet", "c.parquet"]


@pytest.fixture(autouse=True)
def files(here: Path) -> None:
    for seed, name in enumerate(NAMES):
        score_table(seed).save(name)


def test_the_file_is_what_merge_gives(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", *NAMES, "-o", "merged.parquet"]) == 0
    expected = merge([score_table(seed) for seed in range(3)])
    assert ScoreTable.load("merged.parquet") == expected
    captured = capsys.readouterr()
    assert captured.err == ""
    found = captured.out.splitlines()
    assert found[:3] == [
        f"{name} is the mean of 3 runs, which correlate by {expected.protocols[name]['between_runs']:.3f} (Spearman)"
        for name in ("el2n", "margin", "forgetting")
    ]
    assert found[3:] == ["merged 3 files, with scores of every row of the dataset, into merged.parquet"]
    assert sorted(path.name for path in here.iterdir()) == [*NAMES, "merged.parquet"]
    assert main(["select", "merged.parquet", "-o", "coreset.parquet", "--keep", "auto"]) == 0


def test_constant_scores_have_no_correlation_to_show(capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES[:2]:
        ScoreTable({"el2n": [0.5, 0.5]}, provenance={"name": name}).save(name)
    assert main(["merge", *NAMES[:2], "-o", "merged"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "el2n is the mean of 2 runs"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([*NAMES], "--out"),
        (["-o", "out"], "Missing argument"),
        (["a.parquet", "-o", "out"], "tables must be at least two ScoreTables"),
        (["a.parquet", "none", "-o", "out"], "No such file or directory: 'none'"),
        (["a.parquet", "text", "-o", "out"], "text is damaged or cut short"),
        (["a.parquet", "coreset", "-o", "out"], "coreset holds 'coreset', not 'scores'"),
        (["a.parquet", "b.parquet", "a.parquet", "-o", "out"], "tables must not hold a run twice"),
        (["a.parquet", "other", "-o", "out"], "different datasets: number 1 has 200 rows, number 2 has 100"),
        (["a.parquet", "rescored", "-o", "out"], "tables must have the same kinds of protocol"),
        (["a.parquet", "b.parquet", "-o", "none/out"], "none is not a folder"),
        (["a.parquet", "b.parquet", "-o", "c.parquet"], "c.parquet exists already"),
        ([*NAMES, "-o", "a.parquet", "--force"], "a.parquet is read by this command"),
    ],
)
def test_misuse_is_refused_in_one_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text").write_text("row,el2n\n0,0.5\n")
    Coreset([1], num_rows=2).save("coreset")
    score_table(5, rows=100).save("other")
    score_table(5, protocols={"el2n": {**ONLINE, "kind": "rescored"}}).save("rescored")
    assert_refused(capsys, ["merge", *args], message)
