"""The files that commands read and write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prunesampler.errors import MismatchError, StateError
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.score_table import ScoreTable

__all__ = ["check_output", "load_file"]


def load_file(path: Path) -> ScoreTable | Coreset:
    """Read a file of either kind.

    Raises:
        FileNotFoundError: no such file.
        CorruptFileError: damaged, cut short, edited, or not a file of ours.
        MismatchError: of a newer format.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Coreset([1], num_rows=2).save(f"{folder}/coreset.parquet")
    ...     load_file(Path(folder) / "coreset.parquet")
    Coreset(kept=1, of=2, method=None)
    """
    try:
        return ScoreTable.load(path)
    except MismatchError:  # of the other kind; a newer format is refused again
        return Coreset.load(path)


def check_output(out: Path, inputs: Sequence[Path], force: bool) -> None:
    """Refuse a file that cannot, or should not, be written, before any work is done.

    Raises:
        StateError: it exists and ``force`` is false, it is one of the ``inputs``, or a folder, or would lie in none.

    >>> check_output(Path("no such file"), [], force=False)
    """
    if out.is_dir():
        raise StateError(f"{out} is a folder: give a file as --out")
    if not out.parent.is_dir():
        raise StateError(f"{out} cannot be written: {out.parent} is no folder")
    if not out.exists():
        return
    if any(path.exists() and path.samefile(out) for path in inputs):
        raise StateError(f"{out} is read by this command: give another --out")
    if not force:
        raise StateError(f"{out} exists already: give another --out, or --force to replace it")
