"""The two files of a run: refused, taken up, or written, the coreset last."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunesampler.errors import ArgumentError, CorruptFileError, MismatchError, StateError, WriteError
from prunesampler.selection.select import Selection
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.score_table import ScoreTable
from prunesampler.tracking.ranks import Group
from prunesampler.training.run_folder import RunFolder


def opened(path: Path | None, *, resume: bool = False, num_rows: int = 3, fingerprint: str | None = None) -> RunFolder:
    return RunFolder(path, resume=resume, num_rows=num_rows, fingerprint=fingerprint, group=Group.create())


KEEP_TWO = Selection(keep=2, method="bottom")


def saved(path: Path) -> None:
    opened(path).conclude(table(), KEEP_TWO)


def table(value: float = 0.5) -> ScoreTable:
    return ScoreTable({"el2n": [value, 0.2, 0.3]}, fingerprint="mine", provenance={"scoring": {"epochs": 2}})


def test_nothing_is_kept_without_a_folder() -> None:
    run = opened(None)
    assert (run.finished, run.scores_path) == (False, None)
    coreset = run.conclude(table(), KEEP_TWO)
    assert coreset is not None
    assert coreset.rows.tolist() == [1, 2]


def test_a_run_is_taken_up_only_when_asked_and_under_the_same_options(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    saved(folder)
    first = Coreset.load(folder / "coreset.parquet")
    with pytest.raises(StateError, match="resume=True"):
        opened(folder)
    run = opened(folder, resume=True, fingerprint="mine")
    assert run.finished
    assert run.table == table()
    assert run.take_up({"epochs": 2}, KEEP_TWO) == first
    assert run.take_up({"epochs": 2}, Selection(keep=3)) is None
    with pytest.raises(StateError, match="epochs"):
        run.take_up({"epochs": 3}, KEEP_TWO)
    other = run.conclude(None, Selection(keep=3))
    assert Coreset.load(folder / "coreset.parquet") == other
    assert ScoreTable.load(folder / "scores.parquet") == table()


def test_another_threshold_selects_again(tmp_path: Path) -> None:
    scored = ScoreTable(
        {"el2n": [0.05, 0.2, 0.9], "el2n_spread": [0.0] * 3},
        forgetting_events=[0] * 3,
        learned=[True] * 3,
        provenance={"scoring": {"epochs": 2}},
    )
    first = opened(tmp_path).conclude(scored, Selection("auto", threshold=0.1))
    assert first is not None
    assert first.rows.tolist() == [1, 2]
    run = opened(tmp_path, resume=True)
    assert run.take_up({"epochs": 2}, Selection("auto", threshold=0.1)) == first
    assert run.take_up({"epochs": 2}, Selection("auto", threshold=0.2)) is None
    again = run.conclude(None, Selection("auto", threshold=0.2))
    assert again is not None
    assert again.rows.tolist() == [2]


def test_a_run_cut_off_between_its_two_files_selects_again(tmp_path: Path) -> None:
    saved(tmp_path)
    table(0.9).save(tmp_path / "scores.parquet")  # as though the coreset's turn had not come yet
    run = opened(tmp_path, resume=True)
    assert run.table == table(0.9)
    assert run.take_up({"epochs": 2}, KEEP_TWO) is None
    opened(tmp_path, resume=True).conclude(table(), None)
    assert not (tmp_path / "coreset.parquet").exists()


def test_scores_are_kept_where_nothing_can_be_selected_from_them(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="labels"):
        opened(tmp_path).conclude(table(), Selection(keep=2, class_balanced=True))
    assert [path.name for path in tmp_path.iterdir()] == ["scores.parquet"]
    assert opened(tmp_path, resume=True).conclude(None, KEEP_TWO) is not None


def test_what_cannot_be_taken_up_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(MismatchError):
        opened(tmp_path, resume=True, fingerprint="another")
    with pytest.raises(MismatchError, match="3 rows, and this dataset has 4"):
        opened(tmp_path, resume=True, num_rows=4)
    (tmp_path / "scores.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(CorruptFileError):
        opened(tmp_path, resume=True)
    (tmp_path / "scores.parquet").unlink()
    with pytest.raises(MismatchError, match=r"no scores\.parquet beside it"):
        opened(tmp_path, resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="file"):
        opened(tmp_path / "file")
