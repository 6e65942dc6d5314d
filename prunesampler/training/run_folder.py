"""The folder of one run: its scores and its coreset."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from prunesampler.errors import MismatchError, StateError, WriteError
from prunesampler.selection.select import Selection
from prunesampler.tables.atomic import remove_unfinished
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.score_table import ScoreTable
from prunesampler.tracking.ranks import Group

__all__ = ["RunDir"]


class RunDir:
    """``scores.parquet`` and ``coreset.parquet`` in one folder, which only rank 0 touches.

    Args:
        path: the folder, made where it is missing; None keeps nothing.
        resume: whether the files of an earlier run may be there, and are taken up.
        num_rows: of the dataset that they must belong to.
        fingerprint: of that dataset; None accepts any.
        group: the ranks of the run.

    Raises:
        StateError: files are there and ``resume`` is false; on every rank.
        FileError: ``resume``, and they are damaged or of another dataset; on every rank.
        WriteError: an ``OSError``: the folder cannot be made or written; on every rank.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        resume: bool,
        num_rows: int,
        fingerprint: str | None,
        group: Group,
    ) -> None:
        self._folder = None if path is None else Path(path)
        self._group = group
        self.table: ScoreTable | None = None
        self.coreset: Coreset | None = None
        failure = None
        if self._folder is not None and group.rank == 0:
            try:
                self._open(self._folder, resume, num_rows, fingerprint)
            except Exception as error:
                failure = error
        failure = group.broadcast_object(failure)
        if failure is not None:
            raise failure
        self.finished = bool(group.broadcast_object(self.table is not None))

    @property
    def scores_path(self) -> Path | None:
        """Where the scores are, or will be."""
        return None if self._folder is None else self._folder / "scores.parquet"

    def conclude(
        self, table: ScoreTable | None, selection: Selection | None, *, eligible: NDArray[np.int64] | None
    ) -> Coreset | None:
        """Write the scores, select, and write the coreset, on rank 0; all ranks call it and get the coreset.

        Scores are safe before anything can go wrong in selecting from them.

        Args:
            table: the scores; rank 0's count. None: those of the run that is taken up.
            selection: how to select; None selects nothing.
            eligible: the rows that may be kept; None: all.
        """
        coreset, failure = None, None
        if self._group.rank == 0:
            try:
                if table is not None:
                    self.table = table
                    self._save("coreset.parquet", None)  # the one that is there belongs to other scores
                    self._save("scores.parquet", table)
                if selection is not None and self.table is not None:
                    coreset = selection(self.table, eligible=eligible)
                    self._save("coreset.parquet", coreset)
            except Exception as error:
                failure = error
        failure, self.coreset = self._group.broadcast_object((failure, coreset))
        if failure is not None:
            raise failure
        return self.coreset

    def take_up(self, scoring: dict[str, Any], selection: Selection | None) -> Coreset | None:
        """The coreset of the finished run; None where these options select another one from its scores.

        Raises:
            StateError: the run's scores were made under other options than ``scoring``; on every rank.
        """
        failure, same = None, False
        if self.table is not None:
            found = self.table.provenance.get("scoring")
            if found != scoring:
                failure = StateError(
                    f"{self.scores_path} was scored with {found}, and this run asks for {scoring}: give the same "
                    "scoring options, or another save_dir"
                )
            wanted = None if selection is None else selection.to_dict()
            same = self.coreset is not None and self.coreset.selection.get("options") == wanted
        failure, coreset = self._group.broadcast_object((failure, self.coreset if same else None))
        if failure is not None:
            raise failure
        return cast("Coreset | None", coreset)

    def _save(self, name: str, what: ScoreTable | Coreset | None) -> None:
        if self._folder is None:
            return
        path = self._folder / name
        if what is not None:
            what.save(path)
            return
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise WriteError.of(error, path) from error

    def _open(self, folder: Path, resume: bool, num_rows: int, fingerprint: str | None) -> None:
        _check_writable(folder)
        scores, coreset = folder / "scores.parquet", folder / "coreset.parquet"
        found = [str(path) for path in (scores, coreset) if path.exists()]
        if not found:
            remove_unfinished(scores)
            return
        if not resume:
            raise StateError(
                f"save_dir holds the files of another run ({', '.join(found)}): give another folder, or resume=True "
                "to take them up"
            )
        if not scores.exists():
            raise MismatchError(f"{coreset} stands without the scores.parquet that it was selected from: remove it")
        table = ScoreTable.load(scores, fingerprint=fingerprint)
        if table.num_rows != num_rows:
            raise MismatchError(f"{scores} is of a dataset of {table.num_rows} rows, this one has {num_rows}")
        remove_unfinished(scores)
        remove_unfinished(coreset)
        self.table = table
        if coreset.exists():
            self.coreset = Coreset.load(coreset, fingerprint=fingerprint)
            if self.coreset.scores_digest != self.table.digest:
                self.coreset = None  # cut off between the two writes: select again


def _check_writable(folder: Path) -> None:
    """Make the folder, and find out before any work is done whether a file can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"prunesampler")
    except OSError as error:
        raise WriteError.of(error, folder) from error
