from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunesampler.cli.options import check_output, keep_option, load_file
from prunesampler.errors import ArgumentError, CorruptFileError, MismatchError, StateError
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.parquet import FORMAT, write_columns
from prunesampler.tables.score_table import ScoreTable


@pytest.mark.parametrize(
    ("text", "keep"), [("0.5", 0.5), ("1.0", 1.0), ("300", 300), ("1", 1), ("1e-3", 0.001), ("auto", "auto")]
)
def test_a_point_makes_it_a_fraction_and_auto_is_itself(text: str, keep: float | int | str) -> None:
    assert keep_option(text) == keep
    assert type(keep_option(text)) is type(keep)


@pytest.mark.parametrize("text", ["Auto", "", "half", "0,5", "50%"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match="keep must be a fraction in"):
        keep_option(text)


def test_a_file_of_either_kind(tmp_path: Path) -> None:
    path = tmp_path / "file"
    table, coreset = ScoreTable({"el2n": [0.5, 0.25]}), Coreset([1], num_rows=2)
    table.save(path)
    assert load_file(path) == table
    coreset.save(path)
    assert load_file(path) == coreset


def test_files_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        load_file(path)
    path.write_text("row,el2n\n0,0.5\n")
    with pytest.raises(CorruptFileError):
        load_file(path)
    write_columns(path, {"kind": "weights"}, {"row": np.arange(2)})
    with pytest.raises(MismatchError, match="holds 'weights'"):
        load_file(path)
    monkeypatch.setattr("prunesampler.tables.parquet.FORMAT", FORMAT + 1)
    ScoreTable({"el2n": [0.5]}).save(path)
    monkeypatch.undo()
    with pytest.raises(MismatchError, match="update prunesampler"):
        load_file(path)


def test_an_output_is_free_or_replaced_on_demand(tmp_path: Path) -> None:
    out, scores = tmp_path / "out", tmp_path / "scores"
    check_output(out, [scores], force=False)
    out.touch()
    check_output(out, [scores], force=True)
    with pytest.raises(StateError, match="exists already: give another --out, or --force"):
        check_output(out, [scores], force=False)


@pytest.mark.parametrize("force", [True, False])
def test_outputs_that_nothing_can_force(tmp_path: Path, force: bool) -> None:
    scores, link = tmp_path / "scores", tmp_path / "link"
    scores.touch()
    link.symlink_to(scores)
    for out in (scores, link):
        with pytest.raises(StateError, match="is read by this command"):
            check_output(out, [tmp_path / "none", scores], force)
    with pytest.raises(StateError, match="is a folder"):
        check_output(tmp_path, [], force)
    with pytest.raises(StateError, match="none is not a folder"):
        check_output(tmp_path / "none/out", [], force)
    with pytest.raises(StateError, match="scores is not a folder"):
        check_output(scores / "out", [], force)
