"""A folder belongs to one run at a time: a lock file in it says whose it is."""

from __future__ import annotations

import json
import os
import secrets
import socket
import weakref
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, ClassVar

from prunesampler.errors import StateError, WriteError

LOCK = ".lock"
"""The name of the lock file, beside the files of the run."""


class FolderClaim:
    """The right of one run to write into a folder, from its making to :meth:`release`, or to the end of the process.

    The lock file holds, as JSON, the host, the process and when that started. One that a dead process of this host has
    left is taken over; ``taken_over`` says so.

    Raises:
        StateError: the folder is claimed by a run that lives, or may live on another host.
        WriteError: the lock file cannot be written.
    """

    _alive: ClassVar[weakref.WeakValueDictionary[str, FolderClaim]] = weakref.WeakValueDictionary()

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._token = secrets.token_hex(8)
        self.taken_over = ""
        while not self._create():
            found = _read(self._path)
            if found is None:
                continue  # just released
            self._refuse_living(found)
            self._remove_stale(found)
            self.taken_over = _described(found)
        for left in folder.glob(f"{LOCK}.*.tmp"):
            with suppress(OSError):
                left.unlink()
        self._alive[self._token] = self
        self._finalizer = weakref.finalize(self, _remove, self._path, self._token, os.getpid())

    @classmethod
    def clear_up(cls, folder: Path) -> None:
        """Remove what a dead process has left in a folder that nobody is to write to."""
        if (folder / LOCK).exists():
            with suppress(StateError):
                cls(folder).release()

    def check(self) -> None:
        """Look again whether it still holds, right before something is written."""
        found = _read(self._path)
        if found is None:  # somebody has cleared up
            with suppress(WriteError):
                self._create()
            found = _read(self._path)
        if found is None:  # what is written will say why it cannot be
            return
        if found.get("token") != self._token:
            raise StateError(
                f"{self._path.parent} is {_described(found)} now, so nothing is written there: save the scores "
                "elsewhere, by loader.pruning.tracker.table().save(path)"
            )

    def release(self) -> None:
        """Another run may have the folder."""
        self._alive.pop(self._token, None)
        self._finalizer()

    def _create(self) -> bool:
        """The lock file appears with its content, or not at all."""
        content = {"host": _host(), "pid": os.getpid(), "process_start": _start(os.getpid()), "token": self._token}
        content["start"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        draft = self._path.with_name(f"{LOCK}.{self._token}.tmp")
        try:
            draft.write_text(json.dumps(content))
            try:
                os.link(draft, self._path)
            except FileExistsError:
                return False
            except OSError:  # a file system without links
                with open(self._path, "x") as file:
                    json.dump(content, file)
        except FileExistsError:
            return False
        except OSError as error:
            raise WriteError.of(error, self._path) from error
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
        return True

    def _remove_stale(self, found: dict[str, Any]) -> None:
        """Remove the lock file that was read, not one that another run has made since."""
        grave = self._path.with_name(f"{LOCK}.{self._token}.tmp")
        with suppress(OSError):
            self._path.rename(grave)
            if (_read(grave) or {}).get("token") != found.get("token"):
                os.link(grave, self._path)
            grave.unlink()

    def _refuse_living(self, found: dict[str, Any]) -> None:
        cure = "give another save_dir"
        if found.get("host") != _host():
            cure += f", or remove {self._path} if that run is dead"
        elif found.get("pid") == os.getpid() and found.get("process_start") == _start(os.getpid()):
            if found.get("token") not in self._alive:
                return
            cure += ", or detach() the handle (loader.pruning) of that run"
        elif not _lives(found.get("pid"), found.get("process_start")):
            return
        raise StateError(f"save_dir is in use: {self._path.parent} is {_described(found)}: {cure}")


def _read(path: Path) -> dict[str, Any] | None:
    """What a lock file says; None where there is none, and an unknown host where it cannot be understood."""
    try:
        found = json.loads(path.read_bytes()[:4096])
        return found if isinstance(found, dict) else {}
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}


def _described(found: dict[str, Any]) -> str:
    names = ("process {pid}", "on {host}", "since {start}")
    said = [
        name.format(**{key: str(value)[:80] for key, value in found.items()}) for name in names if _has(found, name)
    ]
    return "claimed by " + (" ".join(said) or "somebody unknown")


def _has(found: dict[str, Any], name: str) -> bool:
    return name[name.index("{") + 1 : -1] in found


def _host() -> str:
    # Containers may share a name, and have processes of their own.
    with suppress(OSError):
        return f"{socket.gethostname()} ({os.stat('/proc/self/ns/pid').st_ino})"
    return socket.gethostname()


def _start(pid: int) -> int | None:
    """When a process started, in ticks since the boot; None where it is dead, or the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _lives(pid: Any, start: Any) -> bool:
    """Whether a process of this host lives, and is not a younger one with the same number."""
    if type(pid) is not int or pid < 1:
        return True  # it cannot be asked
    if os.path.exists("/proc/self/stat"):
        return _start(pid) is not None and _start(pid) == start
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _remove(path: Path, token: str, pid: int) -> None:
    """Remove a lock file, if it is still ours; a forked process has none."""
    if os.getpid() == pid and (_read(path) or {}).get("token") == token:
        with suppress(OSError):
            path.unlink()
