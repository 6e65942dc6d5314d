"""A folder whose files appear complete or not at all: on this machine, or anywhere that fsspec can write."""

from __future__ import annotations

import fcntl
import os
import posixpath
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

from prunesampler.errors import CorruptFileError, StateError
from prunesampler.shards.urls import local_path, remote_file_system, url_kind
from prunesampler.tables.atomic import OutputFile, check_regular_file, naming, sync_folder

_BUFFER = 1 << 20


class OutputFolder:
    """A folder, made if it is not there; ``path`` is None where it is not local. Names are of files directly in it."""

    def __init__(self, url: str) -> None:
        self.url, self.path = url, local_path(url)
        self._system, self._root = remote_file_system(url if self.path is None else os.path.abspath(self.path))
        with naming(url):
            self._system.makedirs(self._root, exist_ok=True)

    def sizes(self) -> dict[str, int]:
        """The files in it, name → bytes."""
        self._system.invalidate_cache()
        listed = self._system.ls(self._root, detail=True)
        return {entry["name"].rstrip("/").rpartition("/")[2]: int(entry.get("size") or 0) for entry in listed}

    def modified(self, name: str) -> int:
        """When a local file was written, in nanoseconds since 1970; −1 elsewhere."""
        return -1 if self.path is None else os.stat(self._at(name)).st_mtime_ns

    def read(self, name: str) -> bytes:
        """A small file."""
        if self.path is not None:
            check_regular_file(self._at(name))
        content: bytes = self._system.cat_file(self._at(name))
        return content

    def holds(self, url: str) -> bool:
        """Whether a file, by whatever name it goes, lies directly in this folder."""
        path = local_path(url)
        if path is not None:
            folders = {os.path.dirname(os.path.abspath(path)), os.path.dirname(os.path.realpath(path))}
            return self.path is not None and any(map(self._is_root, folders))
        if self.path is not None or url_kind(url) == "pipe":
            return False
        system, place = remote_file_system(url)
        return bool(system == self._system) and posixpath.dirname(posixpath.normpath(place)) == self._root.rstrip("/")

    def links_to(self, urls: Iterable[str]) -> list[str]:
        """The local files in this folder that are also among ``urls``, under whatever name."""
        if self.path is None:
            return []
        read = {(status.st_dev, status.st_ino) for url in urls if (status := _status(local_path(url)))}
        here = ((name, _status(self._at(name))) for name in self.sizes())
        return [name for name, each in here if each and (each.st_dev, each.st_ino) in read]

    def _is_root(self, folder: str) -> bool:
        here, there = _status(self._root), _status(folder)
        return here is not None and there is not None and os.path.samestat(here, there)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            self._system.rm_file(self._at(name))

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """A file to write, called ``.name.part`` until it is complete and on disk; it replaces an older one.

        WriteError, which names the file, where the disk or the store fails.
        """
        part, whole = f".{name}.part", f"{self.url.rstrip('/')}/{name}"
        self.remove(part)
        try:
            with naming(whole):
                output = OutputFile(self._create(part), whole)
            with output as file:
                yield file  # type: ignore[misc]
                size = file.tell()
                if self.path is not None:
                    file.flush()
                    with naming(whole):
                        os.fsync(file.fileno())
            with naming(whole):
                self._rename(part, name, size)
        except BaseException:
            self.remove(part)
            raise

    def start_writeback(self, file: BinaryIO) -> None:
        """Let the disk begin on what was written, so that the final fsync has less to wait for."""
        if self.path is not None and hasattr(os, "posix_fadvise"):
            file.flush()
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes of this machine out of a local folder; StateError where one is in already."""
        if self.path is None:
            yield
            return
        folder = os.open(self._root, os.O_RDONLY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateError(f"another process is writing to {self.url}") from None
            yield
        finally:
            os.close(folder)

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _create(self, part: str) -> Any:
        path = self._at(part)
        return self._system.open(path, "wb") if self.path is None else open(path, "xb", _BUFFER)

    def _rename(self, part: str, name: str, size: int) -> None:
        if self.path is None:
            stored = self._system.info(self._at(part))["size"]
            if stored != size:
                raise CorruptFileError(f"{self.url}/{name}: {size} bytes were written and {stored} are there")
            self.remove(name)
            self._system.mv(self._at(part), self._at(name))
            return
        os.replace(self._at(part), self._at(name))
        sync_folder(self._root)


def _status(path: str | None) -> os.stat_result | None:
    if path is None:
        return None
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
