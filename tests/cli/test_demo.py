from __future__ import annotations

import dataclasses
import os
import re
import statistics
import sys
from pathlib import Path

import pytest
import torch

from prunesampler.cli.app import main
from prunesampler.cli.console import write
from prunesampler.cli.demo_arms import ARMS, DIGITS, NOISY_ARMS, Demo, Result, noisy_report, report, run, run_noisy
from prunesampler.cli.training import Images, load_digits
from prunesampler.errors import ArgumentError
from prunesampler.tables.score_table import Coreset, ScoreTable
from tests.helpers.command_line import assert_refused
from tests.helpers.pictures import write_parquet

TINY = dataclasses.replace(DIGITS, epochs=4, score_epochs=1, seeds=2)
QUICK = ["--seeds", "1", "--epochs", "2", "--score-epochs", "1", "--quiet"]
FILES = ["coreset.parquet", "scores.parquet"]


@pytest.fixture(scope="module")
def split() -> tuple[Images, Images]:
    train, test = load_digits()
    return train.subset(slice(300)), test.subset(slice(300))


def test_the_arms_run_alike_twice_and_touch_no_global_state(split: tuple[Images, Images], tmp_path: Path) -> None:
    before = torch.get_rng_state(), torch.get_num_threads()
    results = run(TINY, *split, 0.5, tmp_path / "a", quiet=True)
    again = run(dataclasses.replace(TINY, seeds=1), *split, 0.5, tmp_path / "b", quiet=True)
    assert [(each.seed, each.arm) for each in results] == [(seed, arm) for seed in (0, 1) for arm in ARMS]
    # 300 rows are 5 batches of 64, 150 are 3: one scored epoch and three pruned ones.
    assert [each.steps for each in results] == [20, 14, 14, 14] * 2
    assert [each.rows for each in results] == [300, 150, 150, 300] * 2
    assert all(0 <= each.worst_class <= each.accuracy <= 1 and each.seconds > 0 for each in results)
    assert [each.accuracy for each in again] == [each.accuracy for each in results[: len(ARMS)]]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_wrong_labels_are_trained_on_for_as_many_steps_in_every_arm(split: tuple[Images, Images]) -> None:
    train, test = split
    results = run_noisy(dataclasses.replace(TINY, seeds=1), train, test, quiet=True)
    assert [each.arm for each in results] == list(NOISY_ARMS)
    assert [each.rows for each in results] == [300, 240, 240, 240]
    assert {each.steps for each in results} == {20}
    told = [part for part in noisy_report(results, TINY) if isinstance(part, str)]
    gain = 100 * (results[1].accuracy - results[0].accuracy)
    assert f"At equal steps, pruning against all the data: {gain:+.1f} points." in told


def test_the_files_are_the_kept_arms(split: tuple[Images, Images], here: Path) -> None:
    for name in FILES:
        Path(name).write_bytes(b"of an earlier demo")
    run(dataclasses.replace(TINY, seeds=1), *split, 0.3, here, quiet=True)
    assert sorted(path.name for path in here.iterdir()) == FILES
    coreset, table = Coreset.load("coreset.parquet"), ScoreTable.load("scores.parquet")
    assert len(coreset) == 90
    assert coreset.selection["options"]["method"] == "stratified"
    assert coreset.scores_digest == table.digest
    assert table.labels is not None
    assert table.presentations is not None
    assert table.labels.tolist() == split[0].targets.tolist()
    assert set(table.presentations.tolist()) == {1}


@pytest.mark.parametrize("keep", [0.0, 1.5, 301])
def test_a_bad_keep_writes_nothing(keep: float, split: tuple[Images, Images], tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="keep"):
        run(TINY, *split, keep, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_the_report_says_what_was_measured(split: tuple[Images, Images], capsys: pytest.CaptureFixture[str]) -> None:
    def told(demo: Demo, keep: float) -> str:
        write(report(results, demo, *split, keep, Path("somewhere")))
        return capsys.readouterr().out

    accuracy = {arm: (0.9 + i / 100, 0.92 + i / 100) for i, arm in enumerate(ARMS)}
    results = [
        Result(arm, seed, 150, 14, 1.5 + seed, accuracy[arm][seed], accuracy[arm][seed] - 0.1)
        for seed in (0, 1)
        for arm in ARMS
    ]
    text = told(TINY, 0.5)
    spread = f"{statistics.stdev([90, 92]):.1f}"
    for expected in (
        "handwritten digits: 300 training and 300 test images",
        *("kept half", "random half", f"91.0 ± {spread}", f"81.0 ± {spread}", "standard deviation over 2 seeds"),
        *("4 epochs, the first 1 scored", "mechanics, not the benefit"),
        "training shorter on all the data: -2.0 points",
        f"torch {torch.__version__}, CPU with 1 thread",
        *("somewhere/scores.parquet", "somewhere/coreset.parquet"),
    ):
        assert expected in text
    (row,) = [line for line in text.splitlines() if "full data, shorter" in line]
    assert row.split() == f"full data, shorter 150 14 2.0 94.0 ± {spread} 84.0 ± {spread}".split()

    results = [Result(arm, 0, 150, 14, 1.5, 0.9, 0.8) for arm in ARMS]
    text = told(dataclasses.replace(TINY, seeds=1), 100)
    assert "±" not in text
    assert "kept 33 %" in text


def test_the_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *QUICK, "--rows", "200", "--batch-size", "50"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    rows = (re.match(r" *((?:full|kept|random).*?)  +(\d+) +(\d+) ", line) for line in lines)
    steps = {row[1]: row[3] for row in rows if row}
    assert steps == {"full data": "8", "kept half": "6", "random half": "6", "full data, shorter": "6"}
    assert lines[-2:] == ["scores:  prunesampler-demo/scores.parquet", "coreset: prunesampler-demo/coreset.parquet"]
    assert len(Coreset.load("prunesampler-demo/coreset.parquet")) == 100
    assert len(ScoreTable.load("prunesampler-demo/scores.parquet")) == 200

    assert main(["demo", *QUICK, "--rows", "200"]) == 2
    assert "holds scores.parquet and coreset.parquet already" in capsys.readouterr().err
    assert main(["demo", *QUICK, "--rows", "200", "--force", "--keep", "30"]) == 0
    assert len(Coreset.load("prunesampler-demo/coreset.parquet")) == 30


@pytest.mark.parametrize("real", [False, True])
def test_the_command_on_cifar10(real: bool, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if real and "PRUNESAMPLER_DATA" not in os.environ:
        pytest.skip("PRUNESAMPLER_DATA names no folder of CIFAR-10")
    write_parquet(tmp_path)
    root = os.environ["PRUNESAMPLER_DATA"] if real else str(tmp_path)
    given = ["--data", "cifar10", "--root", root, "--rows", "100", "--batch-size", "50", "--out", "run"]
    assert main(["demo", *QUICK, *given]) == 0
    assert "CIFAR-10: 100 training and 100 test images" in capsys.readouterr().out
    assert len(Coreset.load("run/coreset.parquet")) == 50


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--keep", "1"], "keep must be a float in (0, 1], the fraction, or an int >= 2"),
        (["--keep", "-3"], "keep must be"),
        (["--keep", "nan"], "keep must be"),
        (["--keep", "half"], "keep must be a fraction in (0, 1], a number of rows, auto or clean, got 'half'"),
        (["--keep", "auto"], "keep must be a number here"),
        (["--keep", "5000"], "keep must be at most the number of eligible rows, 1347, got 5000"),
        (["--epochs", "3"], "score_epochs must be below epochs, 3, got 6"),
        (["--epochs", "0"], "epochs must be an int >= 1, got 0"),
        (["--score-epochs", "0"], "score_epochs must be an int >= 1, got 0"),
        (["--seeds", "0"], "seeds must be an int >= 1, got 0"),
        (["--batch-size", "-1"], "batch_size must be an int >= 1, got -1"),
        (["--rows", "5"], "rows must be an int >= 100, got 5"),
        (["--epochs", "many"], "--epochs"),
        (["--data", "mnist"], "--data"),
        (["--data", "cifar10"], "root must be given with --data cifar10"),
        (["--data", "cifar10", "--root", "nowhere"], "root must hold"),
        (["--root", "."], "root and download belong to --data cifar10"),
        (["--download"], "root and download belong to --data cifar10"),
        (["--out", "../file"], "cannot be a folder"),
        (["--out", "../file/below"], "cannot be a folder"),
        ([*QUICK, "--out", "/proc/nothing/here"], "/proc/nothing"),
    ],
)
def test_misuse_is_refused_in_one_line(
    args: list[str], message: str, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert_refused(capsys, ["demo", *args], message)


@pytest.mark.parametrize("module", ["sklearn", "torchvision"])
def test_a_missing_extra_is_one_line(
    module: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (here / "cifar-10-batches-py").mkdir()
    args = ["demo"] if module == "sklearn" else ["demo", "--data", "cifar10", "--root", "."]
    assert_refused(capsys, args, "pip install 'prunesampler[demo]'")
