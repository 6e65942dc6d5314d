"""Files that are written whole or not at all, and read only if they are files."""

from __future__ import annotations

import errno
import glob
import io
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from prunesampler.errors import UnsupportedError, WriteError

_FAILED = (errno.EIO, errno.ENOSPC, errno.EDQUOT)


class OutputFile(io.RawIOBase):
    """A file that is being written, whose failures name ``path``, the one that it will become."""

    def __init__(self, file: BinaryIO, path: object) -> None:
        self._file, self._path = file, path

    def writable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """As the file is."""
        return self._file.seekable()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """As the file does."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """How many bytes there are before the next."""
        return self._file.tell()

    def fileno(self) -> int:
        """The file's."""
        return self._file.fileno()

    def write(self, block: Any) -> int:
        """Write all of it; WriteError where the disk is full."""
        with naming(self._path):
            return self._file.write(block)

    def flush(self) -> None:
        """Hand what is buffered to the system."""
        if not self._file.closed:
            with naming(self._path):
                self._file.flush()

    def close(self) -> None:
        """Flush and close."""
        with naming(self._path):
            self._file.close()
        super().close()


@contextmanager
def naming(path: object) -> Iterator[None]:
    """Raise an ``OSError`` of the folder or the disk as a WriteError of ``path``."""
    try:
        yield
    except OSError as error:
        raise WriteError.of(error, path) from error


def check_regular_file(path: str | os.PathLike[str]) -> None:
    """Refuse a pipe or a device, which a reader would wait for; OSError where there is no file."""
    mode = os.stat(os.fspath(path)).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        raise UnsupportedError(f"{os.fspath(path)} is a pipe or a device, not a file: copy what it gives into a file")


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Let a new name in a folder outlive a crash, where the system lets us: some file systems and folders do not."""
    try:
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    except OSError as error:
        if error.errno in _FAILED:
            raise


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a binary file that appears under ``path`` complete, on disk, or not at all.

    The bytes go to a hidden file in the same folder; leaving the block syncs it, renames it to ``path`` and syncs the
    folder. If the block or the disk fails, the hidden file is removed and whatever was at ``path`` stays as it was.
    A symbolic link is followed, not replaced. An ``OSError`` of the folder or the disk is raised as a WriteError, one
    of the block itself as it is.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with naming(path):
            if target.exists() and not target.is_file():
                raise FileExistsError(errno.EEXIST, "it is not a file", str(path))
            output = OutputFile(open(temporary, "xb"), path)  # noqa: SIM115
        with output as file:
            yield file  # type: ignore[misc]
            file.flush()
            with naming(path):
                os.fsync(file.fileno())
        with naming(path):
            os.replace(temporary, target)
            sync_folder(target.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def remove_unfinished(path: str | os.PathLike[str]) -> None:
    """Remove the hidden files that killed processes left when they were writing ``path``."""
    target = Path(os.path.realpath(path))
    for left in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 16}.tmp"):
        left.unlink(missing_ok=True)
