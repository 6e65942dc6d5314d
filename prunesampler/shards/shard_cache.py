"""Shards on a local disk: shared by the processes of a machine, used last thrown away last, never above a limit.

A folder of plain files, and no service. What keeps processes apart are file locks (``flock``), which the system takes
back from a process that dies. A file under its final name is complete. It is locked (shared) by whoever has it open,
and only a file that nobody has open is thrown away. A file that is being written has its final size in its name, and is
locked (exclusive) by its writer; without a lock it is left over from a process that was killed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from prunesampler.errors import WriteError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FINAL = re.compile(r"[0-9a-f]+\.shard")
_WRITTEN = re.compile(r"[0-9a-f]+\.([0-9]+)\.tmp")
_BLOCK = 4096  # what a disk gives out at least

Added = Literal["here", "busy", "no room"]


class ShardCache:
    """Files by name (hexadecimal digits), of at most ``limit`` bytes on disk together, those being written included.

    Several objects, of any processes, may have the same folder; the lowest limit that is asked for when a file is added
    counts. Files of other names in the folder are left alone.

    Raises:
        WriteError: the folder cannot be made or written to.
    """

    def __init__(self, folder: str, limit: int) -> None:
        self.folder, self.limit = os.path.abspath(folder), limit
        try:
            os.makedirs(self.folder, exist_ok=True)
            with self._alone():
                pass
        except OSError as error:
            raise WriteError.of(error, folder) from error

    def open(self, name: str) -> int | None:
        """A descriptor of a complete file, which is not thrown away before it is closed; None where it is not here."""
        while True:
            try:
                file = os.open(self._final(name), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            fcntl.flock(file, fcntl.LOCK_SH)
            if os.fstat(file).st_nlink:  # else it was thrown away meanwhile
                with suppress(OSError):  # of another user
                    _use(file)
                return file
            os.close(file)

    def touch(self, name: str) -> bool:
        """Whether a file is here; if so, it counts as used now."""
        try:
            _use(self._final(name))
        except OSError:
            return os.path.exists(self._final(name))
        return True

    def add(self, name: str, size: int, write: Callable[[int], None], *, wait: bool) -> Added:
        """Have a file here, which ``write`` writes to a descriptor, unless it is here already.

        Args:
            name: of the file.
            size: bytes on disk, at most.
            write: called without any lock of others' files, at most twice.
            wait: where another process or thread writes the file: until it is done, or dead.

        Returns:
            ``"no room"`` where too many files are in use, or it is larger than the limit.

        Raises:
            WriteError: the disk is full, or fails.
        """
        size = -(-size // _BLOCK) * _BLOCK
        path = os.path.join(self.folder, f"{name}.{size}.tmp")
        while True:
            with self._alone():
                if os.path.exists(self._final(name)):
                    return "here"
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    busy = not _locked(file)
                    if not busy and not self._make_room(size, but=path):
                        os.unlink(path)
                        os.close(file)
                        return "no room"
                except BaseException:
                    os.close(file)
                    raise
            if busy:
                if wait:
                    fcntl.flock(file, fcntl.LOCK_SH)
                os.close(file)
                if not wait:
                    return "busy"
                continue
            try:
                self._write(file, size, write)
                _use(file)
                with self._alone():
                    os.rename(path, self._final(name))
            except BaseException:
                with self._alone(), suppress(OSError):
                    os.unlink(path)
                raise
            finally:
                os.close(file)
            return "here"

    def remove(self, name: str) -> None:
        """Throw a file away that is not what it should be; who has it open goes on reading it."""
        with self._alone(), suppress(FileNotFoundError):
            os.unlink(self._final(name))

    def used(self) -> int:
        """Bytes on disk now, files that are being written counted in full."""
        return sum(size for _, size, _ in self._files()) + sum(size for _, size in self._unfinished())

    def _write(self, file: int, size: int, write: Callable[[int], None]) -> None:
        try:
            _write_anew(file, write)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            with self._alone():
                freed = self._throw_away(size)
            if not freed:
                raise WriteError.of(error, self.folder) from error
            try:
                _write_anew(file, write)
            except OSError as again:
                raise WriteError.of(again, self.folder) if again.errno in _FULL else again from again

    def _final(self, name: str) -> str:
        return os.path.join(self.folder, f"{name}.shard")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Only one process, and one thread of it, counts and changes names at a time."""
        lock = os.open(os.path.join(self.folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _files(self) -> list[tuple[int, int, str]]:
        """Complete files: when they were used last, bytes on disk, path; the one used longest ago first."""
        found = []
        for name in filter(_FINAL.fullmatch, os.listdir(self.folder)):
            with suppress(FileNotFoundError):
                path = os.path.join(self.folder, name)
                status = os.stat(path)
                found.append((status.st_mtime_ns, status.st_blocks * 512, path))
        return sorted(found)

    def _unfinished(self) -> list[tuple[str, int]]:
        names = filter(None, map(_WRITTEN.fullmatch, os.listdir(self.folder)))
        return [(os.path.join(self.folder, found[0]), int(found[1])) for found in names]

    def _make_room(self, size: int, but: str) -> bool:
        """Whether so many bytes may be added; what is not in use is thrown away for it."""
        used = size + sum(each for _, each, _ in self._files())
        for path, reserved in self._unfinished():
            if path == but:
                continue
            with suppress(FileNotFoundError):
                file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    if _locked(file):  # its writer is dead
                        os.unlink(path)
                    else:
                        used += reserved
                finally:
                    os.close(file)
        return size <= self.limit and used - self._throw_away(used - self.limit) <= self.limit

    def _throw_away(self, wanted: int) -> int:
        """Throw files away that nobody has open, until so many bytes are free; returns how many became free."""
        freed = 0
        for _, size, path in self._files() if wanted > 0 else ():
            with suppress(FileNotFoundError):
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if _locked(file):
                        os.unlink(path)
                        freed += size
                finally:
                    os.close(file)
            if freed >= wanted:
                break
        return freed


def _use(file: str | int) -> None:
    """Note the time: by this clock, as that of the file system calls all of a few milliseconds one moment."""
    now = time.time_ns()
    os.utime(file, ns=(now, now))


def _write_anew(file: int, write: Callable[[int], None]) -> None:
    os.ftruncate(file, 0)
    write(file)
    os.fdatasync(file)


def _locked(file: int) -> bool:
    """Lock a file for oneself, unless somebody has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
