"""A folder that files appear in whole: on this machine, or wherever fsspec can write."""

from __future__ import annotations

import fcntl
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from prunesampler.errors import CorruptFileError, StateError
from prunesampler.shards.urls import local_path

__all__ = ["Folder", "Written"]

_BLOCK = 4 << 20


class Written:
    """A file being written, and the CRC-32 of what was written to it.

    Attributes:
        checksum: of all bytes so far.
        size: how many.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self.checksum = self.size = 0

    def write(self, data: bytes) -> None:
        """Append."""
        self.checksum = zlib.crc32(data, self.checksum)
        self.size += len(data)
        self._file.write(data)


class Folder:
    """A folder, made if it is not there. Names are of files directly in it.

    Args:
        url: a local path, ``file:``, or what fsspec can write to.

    Raises:
        OSError: it cannot be made.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as path:
    ...     folder = Folder(path)
    ...     with folder.writing("note.txt") as file:
    ...         file.write(b"whole")
    ...     folder.sizes()
    {'note.txt': 5}
    """

    def __init__(self, url: str) -> None:
        self.url = url
        path = local_path(url)
        self._system: Any = None
        if path is None:
            import fsspec

            self._system, self._path = fsspec.core.url_to_fs(url)
            self._system.makedirs(self._path, exist_ok=True)
        else:
            self._path = path or "."
            os.makedirs(self._path, exist_ok=True)

    @property
    def path(self) -> str | None:
        """The path of a local folder."""
        return self._path if self._system is None else None

    def sizes(self) -> dict[str, int]:
        """The files in it, name → bytes."""
        if self._system is None:
            with os.scandir(self._path) as entries:
                return {entry.name: entry.stat(follow_symlinks=False).st_size for entry in entries}
        self._system.invalidate_cache()
        listed = self._system.ls(self._path, detail=True)
        return {entry["name"].rstrip("/").rpartition("/")[2]: int(entry.get("size") or 0) for entry in listed}

    def read(self, name: str) -> bytes:
        """A small file."""
        with self._open(name, "rb") as file:
            content: bytes = file.read()
            return content

    def remove(self, name: str) -> None:
        """Take a file away, if it is there."""
        if self._system is None:
            with suppress(FileNotFoundError):
                os.unlink(self._at(name))
        elif self._system.exists(self._at(name)):
            self._system.rm_file(self._at(name))

    @contextmanager
    def writing(self, name: str) -> Iterator[Written]:
        """A file that appears under its name when it is complete, on disk, and reads back as it was written.

        Until then it is called ``.name.part``; one that an earlier process left is replaced.

        Raises:
            OSError: it cannot be written.
            CorruptFileError: it reads back otherwise.
        """
        part = f".{name}.part"
        self.remove(part)
        try:
            with self._open(part, "xb" if self._system is None else "wb") as file:
                written = Written(file)
                yield written
                if self._system is None:
                    file.flush()
                    os.fsync(file.fileno())
            if self._checksum(part) != written.checksum:
                raise CorruptFileError(f"{self.url}/{name} does not read back as it was written")
            self._rename(part, name)
        except BaseException:
            self.remove(part)
            raise

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes of this machine out; a process that dies lets go. Only local folders are locked.

        Raises:
            StateError: another process is in.
        """
        if self._system is not None:
            yield
            return
        folder = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateError(f"{self.url} is being written by another process") from None
            yield
        finally:
            os.close(folder)

    def _at(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}" if self._system is not None else os.path.join(self._path, name)

    def _open(self, name: str, mode: str) -> Any:
        return open(self._at(name), mode) if self._system is None else self._system.open(self._at(name), mode)

    def _checksum(self, name: str) -> int:
        checksum = 0
        with self._open(name, "rb") as file:
            while block := file.read(_BLOCK):
                checksum = zlib.crc32(block, checksum)
        return checksum

    def _rename(self, part: str, name: str) -> None:
        if self._system is not None:
            self.remove(name)
            self._system.mv(self._at(part), self._at(name))
            return
        os.replace(self._at(part), self._at(name))
        folder = os.open(self._path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
