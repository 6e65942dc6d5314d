from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from prunesampler.cli.app import main
from prunesampler.selection.near_duplicates import similar_pairs
from prunesampler.selection.select import select
from prunesampler.tables.score_table import Coreset, ScoreTable
from tests.helpers.command_line import assert_refused
from tests.helpers.pictures import write_parquet
from tests.helpers.plain_geometry import blobs


@pytest.fixture(autouse=True)
def files(here: Path) -> None:
    np.save("features.npy", blobs(120, spread=0.1)[0])


def test_the_pairs_at_several_similarities(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["duplicates", "features.npy", "--similarity", "0.999,0.9", "--examples", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["similarities"]
    expected = similar_pairs("features.npy", [0.999, 0.9], examples=2)
    assert [(each["similarity"], each["share"]) for each in found] == [each[:2] for each in expected]
    assert main(["duplicates", "features.npy"]) == 0
    out = capsys.readouterr().out
    for each in similar_pairs("features.npy"):
        assert all(f"{a}–{b}" in out for a, b, _ in each.pairs)


def test_near_duplicates_are_left_out_from_the_command_line() -> None:
    options = ["--features", "features.npy", "--method", "deduplicate", "--threshold", "0.99"]
    assert main(["select", "-o", "out.parquet", *options]) == 0
    assert Coreset.load("out.parquet") == select(features="features.npy", method="deduplicate", threshold=0.99)
    assert 4 <= len(Coreset.load("out.parquet")) < 100


def test_the_report_shows_the_pairs(here: Path) -> None:
    (here / "data").mkdir()
    write_parquet(here / "data", train=120)
    ScoreTable({"el2n": np.linspace(0, 1, 120)}, labels=np.arange(120) % 10).save("scores.parquet")
    given = ["report", "scores.parquet", "-o", "report.html", "--images", "data", "--features", "features.npy"]
    assert main(given) == 0
    text = (here / "report.html").read_text(encoding="utf-8")
    pairs = [pair for each in similar_pairs("features.npy") for pair in each.pairs]
    assert text.count("data:image/png;base64,") == 60 + 2 * len(pairs) > 70


def test_misuse_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, ["duplicates", "none.npy"], "none.npy")
    assert_refused(capsys, ["duplicates", "features.npy", "--similarity", "high"], "similarity must be numbers")
    assert_refused(capsys, ["duplicates", "features.npy", "--similarity", "1"], "threshold must be below 1")
    assert_refused(capsys, ["select", "-o", "out", "--keep", "5", "--method", "k_center"], "table must be given")
