"""Files that are written whole or not at all."""

from __future__ import annotations

import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from prunesampler.errors import WriteError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a binary file that appears under ``path`` complete, on disk, or not at all.

    The bytes go to a hidden file in the same folder; leaving the block syncs it, renames it to ``path`` and syncs the
    folder. If the block or the disk fails, the hidden file is removed and whatever was at ``path`` stays as it was.
    A symbolic link is followed, not replaced. An ``OSError`` of the folder or the disk is raised as a WriteError.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise WriteError.of(error, path) from error
        raise


def remove_unfinished(path: str | os.PathLike[str]) -> None:
    """Remove the hidden files that killed processes left when they were writing ``path``."""
    target = Path(os.path.realpath(path))
    for left in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 16}.tmp"):
        left.unlink(missing_ok=True)
