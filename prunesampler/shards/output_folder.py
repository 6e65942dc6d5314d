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
_STEP = 1 << 20


class Written:
    """A file being written to, wherever it is.

    Attributes:
        size: bytes so far.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self.size = self._checksum = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append."""
        self._append(memoryview(data))
        self.size += len(data)

    def holds(self, file: Any) -> bool:
        """Whether a file has what was written: as many bytes, with the same CRC-32."""
        size = checksum = 0
        while block := file.read(_BLOCK):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
        return (size, checksum) == (self.size, self._checksum)

    def _append(self, data: memoryview) -> None:
        self._file.write(data)
        self._checksum = zlib.crc32(data, self._checksum)


class _LocalWritten(Written):
    """A local file, unbuffered, of which every MiB is read back and compared at once."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self._back = bytearray(_STEP)
        self._same = True

    def holds(self, file: Any) -> bool:
        return self._same and os.fstat(file.fileno()).st_size == self.size

    def _append(self, data: memoryview) -> None:
        file = self._file.fileno()
        for start in range(0, len(data), _STEP):
            rest = step = data[start : start + _STEP]
            while rest:
                rest = rest[os.write(file, rest) :]
            back = self._back if len(step) == _STEP else bytearray(len(step))
            self._same &= os.preadv(file, [back], self.size + start) == len(step) and back == step
        if hasattr(os, "posix_fadvise"):  # the disk starts on it now: the fsync at the end has less to wait for
            os.posix_fadvise(file, self.size, len(data), os.POSIX_FADV_DONTNEED)


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

    def modified(self, name: str) -> int:
        """When a local file was written, in nanoseconds since 1970; −1 elsewhere."""
        return os.stat(self._at(name)).st_mtime_ns if self._system is None else -1

    def read(self, name: str) -> bytes:
        """A small file."""
        with self._open(name) as file:
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
            with self._create(part) as file:
                written = Written(file) if self._system is not None else _LocalWritten(file)
                yield written
                if self._system is None:
                    os.fsync(file.fileno())
            with self._open(part) as file:
                if not written.holds(file):
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

    def _create(self, name: str) -> Any:
        return open(self._at(name), "xb+", 0) if self._system is None else self._system.open(self._at(name), "wb")

    def _open(self, name: str) -> Any:
        return open(self._at(name), "rb") if self._system is None else self._system.open(self._at(name), "rb")

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
