"""The folder of one run: its scores, its coreset, its schedule."""

from __future__ import annotations

import itertools
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prunesampler._logging import log
from prunesampler.errors import ArgumentError, MismatchError, StateError, WriteError
from prunesampler.selection.select import Selection
from prunesampler.tables.atomic import remove_unfinished
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.schedule import Schedule
from prunesampler.tables.score_table import ScoreTable
from prunesampler.tracking.ranks import Group
from prunesampler.training.folder_claim import FolderClaim

_NUMBER = "{n}"
_FILES = ("scores.parquet", "coreset.parquet", "schedule.parquet")
_Stat = tuple[int, int, int, int] | None


class RunFolder:
    """``scores.parquet``, ``coreset.parquet`` and ``schedule.parquet`` in one folder, which only rank 0 touches.

    The folder is claimed until they are written; files of anybody else are never overwritten.

    Attributes:
        begun, finished: whether files of a run were there when it was opened, and scores among them.
        table: the scores that were read or written last.
        schedule: what was recorded when it was opened, on rank 0.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        resume: bool,
        num_rows: int,
        fingerprint: str | None,
        group: Group,
        overwrite: bool = False,
    ) -> None:
        if path is not None and (not isinstance(path, str | os.PathLike) or not os.fspath(path)):
            raise ArgumentError("save_dir", "must be a path that is not empty, or None", path)
        if overwrite and resume:
            raise ArgumentError("overwrite", "must be False with resume=True, which goes on with what is there", True)
        self._group, self._overwrite = group, overwrite
        if path is not None and _NUMBER in os.fspath(path):
            pattern = os.fspath(path)
            path = group.on_rank_0(lambda: _numbered(pattern, newest=resume))
        # Absolute from now on: a loop may change its working folder.
        self._folder = None if path is None else Path(path).absolute()
        self.path = path
        self._claim: FolderClaim | None = None
        self._known: dict[str, _Stat] = {}  # the files that this run has read or written
        self.table: ScoreTable | None = None
        self.schedule: Schedule | None = None
        self._coreset: Coreset | None = None
        self.begun, self.finished = group.on_rank_0(lambda: self._open(resume, num_rows, fingerprint))

    @property
    def shown(self) -> str:
        """How a sentence goes on that says what was written."""
        return "" if self.path is None else f", written to {self.path}"

    @property
    def not_written(self) -> str:
        """The same of what was not."""
        return "" if self.path is None else f" and nothing was written to {self.path}"

    @property
    def scores_path(self) -> Path | None:
        """Where the scores are, or will be."""
        return None if self._folder is None else self._folder / "scores.parquet"

    def conclude(
        self, table: ScoreTable | None, draw: Callable[[ScoreTable], Coreset] | None, *, keep_coreset: bool = True
    ) -> Coreset | None:
        """Write the scores, select, and write the coreset, on rank 0; all ranks call it and get the coreset.

        Scores are safe before anything can go wrong in selecting from them.
        """

        def concluded() -> Coreset | None:
            if table is not None:
                self.table = table
            with self._claimed():
                if table is not None:
                    self._save("coreset.parquet", None)  # the one that is there belongs to other scores
                    self._save("scores.parquet", table)
                if draw is None or self.table is None:
                    return None
                coreset = draw(self.table)
                if keep_coreset:
                    self._save("coreset.parquet", coreset)
                return coreset

        return self._group.on_rank_0(concluded)

    def save(self, what: ScoreTable | Schedule) -> None:
        """Write the scores, or what was recorded, in the middle of a run; on rank 0."""
        if isinstance(what, ScoreTable):
            self.table = what
        with self._claimed():
            self._save("schedule.parquet" if isinstance(what, Schedule) else "scores.parquet", what)

    def take_up(self, scoring: dict[str, Any], selection: Selection | None) -> Coreset | None:
        """The coreset of the finished run; None where these options select another one from its scores."""

        def taken_up() -> Coreset | None:
            found = None if self.table is None else self.table.provenance.get("scoring")
            if found != scoring:
                raise StateError(
                    f"{self.scores_path} was scored with {found}, and this run asks for {scoring}: give the same "
                    "scoring options, or another save_dir"
                )
            wanted = None if selection is None else selection.to_dict()
            same = self._coreset is not None and self._coreset.selection.get("options") == wanted
            return self._coreset if same else None

        return self._group.on_rank_0(taken_up)

    def _save(self, name: str, what: ScoreTable | Coreset | Schedule | None) -> None:
        if self._folder is None:
            return
        path = self._folder / name
        if what is not None:
            what.save(path)
            self._known[name] = _stat(path)
            return
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise WriteError.of(error, path) from error
        self._known[name] = None

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        """While files are written the folder is this run's, and they are those that it knows."""
        if self._folder is None:
            yield
            return
        if self._claim is None:
            self._claim = FolderClaim(self._folder)
        try:
            self._claim.check()
            for name in _FILES:
                if _stat(self._folder / name) != self._known.get(name):
                    raise StateError(
                        f"{self._folder / name} is not this run's, but has appeared or changed since attach, and is "
                        "left alone: move it away, and the next pass writes; or save the scores elsewhere, by "
                        "loader.pruning.tracker.table().save(path)"
                    )
            if self._overwrite:  # what an earlier run has left
                for name in _FILES:
                    self._save(name, None)
                self._overwrite = False
            yield
        except OSError:
            raise  # a full disk: the run may try again, and the folder stays its own
        except BaseException:
            self.release()
            raise
        self.release()

    def release(self) -> None:
        """Another run may have the folder; until this one writes again."""
        claim, self._claim = self._claim, None
        if claim is not None:
            claim.release()

    def _open(self, resume: bool, num_rows: int, fingerprint: str | None) -> tuple[bool, bool]:
        """Whether the folder holds files of a run, and whether scores are among them; they are then read."""
        if self._folder is None:
            return False, False
        _check_writable(self._folder)
        paths = scores, coreset, schedule = [self._folder / name for name in _FILES]
        if self._overwrite or not any(path.exists() for path in paths):
            self._claim = FolderClaim(self._folder)
            if self._claim.taken_over:
                log.warning("save_dir %s was %s, which is dead: taken over", self._folder, self._claim.taken_over)
        found = [str(path) for path in paths if path.exists()]
        self._known = {name: _stat(self._folder / name) for name in _FILES}
        if self._overwrite or not found:
            for path in paths:
                remove_unfinished(path)
            return False, False
        self.release()
        if not resume:
            raise StateError(
                f"save_dir holds the files of another run ({', '.join(found)}): give resume=True to continue that run, "
                f"overwrite=True to replace its files, or another folder (save_dir='runs/{_NUMBER}' numbers them)"
            )
        FolderClaim.clear_up(self._folder)
        if coreset.exists() and not scores.exists():
            raise MismatchError(f"{coreset} has no scores.parquet beside it, which it was selected from: remove it")
        if schedule.exists():
            self.schedule = Schedule.load(schedule, fingerprint, num_rows)
        if scores.exists():
            self.table = ScoreTable.load(scores, fingerprint, num_rows)
        for path in paths:
            remove_unfinished(path)
        if self.table is None:
            self._claim = FolderClaim(self._folder)
            return True, False
        if coreset.exists():
            kept = Coreset.load(coreset, fingerprint=fingerprint)
            if kept.scores_digest == self.table.digest:  # else cut off between the two writes: select again
                self._coreset = kept
        return True, True


def _numbered(path: str, *, newest: bool) -> str:
    """The path with the number of the newest folder of this name in the place of ``{n}``, or of a new one, made now."""
    before, _, after = path.partition(_NUMBER)
    if _NUMBER in after or os.sep in after.rstrip(os.sep):
        raise ArgumentError("save_dir", f"must hold {_NUMBER} once, in its last part", path)
    parent, name = os.path.split(os.path.abspath(before + "x"))
    pattern = re.compile(re.escape(name[:-1]) + r"(\d+)" + re.escape(after.rstrip(os.sep)))
    try:
        os.makedirs(parent, exist_ok=True)
        numbers = [int(found[1]) for each in os.listdir(parent) if (found := pattern.fullmatch(each))]
        if newest and numbers:
            return path.replace(_NUMBER, str(max(numbers)))
        for number in itertools.count(max(numbers, default=0) + 1):
            with suppress(FileExistsError):  # another process was faster
                os.mkdir(made := path.replace(_NUMBER, str(number)))
                return made
    except OSError as error:
        raise WriteError.of(error, path) from error
    raise AssertionError


def _stat(path: Path) -> _Stat:
    """What tells a file from another one under its name; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _check_writable(folder: Path) -> None:
    """Make the folder, and find out before any work is done whether a file can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"prunesampler")
    except OSError as error:
        raise WriteError.of(error, folder) from error
