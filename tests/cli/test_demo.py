from __future__ import annotations

import dataclasses
import io
import statistics
from pathlib import Path

import pytest
import torch
from rich.console import Console

from prunesampler.cli.demo import ARMS, KEPT, RANDOM, Result, check_free, print_report, run
from prunesampler.cli.demo_data import Split, load_digits
from prunesampler.cli.demo_training import DIGITS, Recipe
from prunesampler.errors import ArgumentError, StateError
from prunesampler.tables.score_table import Coreset, ScoreTable

TINY = dataclasses.replace(DIGITS, epochs=4, score_epochs=1, seeds=2)


@pytest.fixture(scope="module")
def split() -> Split:
    return load_digits().first(300)


def demo(split: Split, out: Path, recipe: Recipe = TINY, keep: float = 0.5) -> list[Result]:
    return run(split, recipe, keep, out, quiet=True)


def test_the_arms_and_their_steps(split: Split, tmp_path: Path) -> None:
    results = demo(split, tmp_path)
    assert [(each.seed, each.arm) for each in results] == [(seed, arm) for seed in (0, 1) for arm in ARMS]
    # 300 rows are 5 batches of 64, 150 are 3: one scored epoch and three pruned ones.
    assert [each.steps for each in results] == [20, 14, 14, 14] * 2
    assert [each.rows for each in results] == [300, 150, 150, 300] * 2
    assert all(0 <= each.worst_class <= each.accuracy <= 1 and each.seconds > 0 for each in results)


def test_it_runs_alike_twice_and_touches_no_global_state(split: Split, tmp_path: Path) -> None:
    before = torch.get_rng_state(), torch.get_num_threads()
    outcomes = [[(each.arm, each.accuracy) for each in demo(split, tmp_path / name)] for name in "ab"]
    assert outcomes[0] == outcomes[1]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    for name in ("scores.parquet", "coreset.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_files_are_the_kept_arms(split: Split, tmp_path: Path) -> None:
    demo(split, tmp_path, keep=0.3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coreset.parquet", "scores.parquet"]
    coreset, table = Coreset.load(tmp_path / "coreset.parquet"), ScoreTable.load(tmp_path / "scores.parquet")
    assert len(coreset) == 90
    assert coreset.selection["options"]["method"] == "stratified"
    assert coreset.scores_digest == table.digest
    assert table.labels is not None
    assert table.presentations is not None
    assert table.labels.tolist() == split.train.targets.tolist()
    assert set(table.presentations.tolist()) == {1}


def test_files_of_an_earlier_demo_are_replaced(split: Split, tmp_path: Path) -> None:
    for name in ("scores.parquet", "coreset.parquet"):
        (tmp_path / name).write_bytes(b"old")
    with pytest.raises(StateError, match=r"holds scores.parquet and coreset.parquet already.*--force"):
        check_free(tmp_path, force=False)
    check_free(tmp_path, force=True)
    demo(split, tmp_path, dataclasses.replace(TINY, seeds=1))
    assert len(Coreset.load(tmp_path / "coreset.parquet")) == 150


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StateError, match="cannot be a folder"):
            check_free(out, force=True)


@pytest.mark.parametrize("keep", [0.0, 1.5, 301])
def test_a_bad_keep_writes_nothing(keep: float, split: Split, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="keep"):
        demo(split, tmp_path / "out", keep=keep)
    assert not (tmp_path / "out").exists()


def report(results: list[Result], split: Split, recipe: Recipe, keep: float) -> str:
    console = Console(file=io.StringIO(), width=80)
    print_report(results, split, recipe, keep, Path("somewhere"), console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_report_says_what_was_measured(split: Split) -> None:
    accuracy = {arm: (0.9 + i / 100, 0.92 + i / 100) for i, arm in enumerate(ARMS)}
    results = [
        Result(arm, seed, 150, 14, 1.5 + seed, accuracy[arm][seed], accuracy[arm][seed] - 0.1)
        for seed in (0, 1)
        for arm in ARMS
    ]
    text = report(results, split, TINY, 0.5)
    spread = f"{statistics.stdev([90, 92]):.1f}"
    for expected in (
        "handwritten digits: 300 training and 300 test images",
        "kept half",
        "random half",
        f"91.0 ± {spread}",
        f"81.0 ± {spread}",
        "standard deviation over 2 seeds",
        "4 epochs, the first 1 scored",
        "mechanics, not the benefit",
        "training shorter on all the data: -2.0 points",
        f"torch {torch.__version__}, CPU with 1 thread, float32",
        str(Path("somewhere/scores.parquet")),
        str(Path("somewhere/coreset.parquet")),
    ):
        assert expected in text
    (row,) = [line for line in text.splitlines() if "full data, shorter" in line]
    assert row.split() == [
        "full",
        "data,",
        "shorter",
        "150",
        "14",
        "2.0",
        "94.0",
        "±",
        spread,
        "84.0",
        "±",
        spread,
    ]


def test_one_seed_has_no_spread(split: Split) -> None:
    results = [Result(arm, 0, 150, 14, 1.5, 0.9, 0.8) for arm in ARMS]
    text = report(results, split, dataclasses.replace(TINY, seeds=1), 100)
    assert "±" not in text
    assert "kept 33%" in text
    assert KEPT in text
    assert RANDOM in text
