from __future__ import annotations

import errno
import io
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunesampler.errors import WriteError
from prunesampler.tables import atomic
from prunesampler.tables.atomic import atomic_write, remove_unfinished
from prunesampler.tables.parquet import write_columns

COLUMNS = {"row": np.arange(2000), "el2n": np.random.default_rng(0).random(2000, np.float32)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.parquet"
    write_columns(path, {"kind": "scores"}, COLUMNS)
    return path


def test_what_killed_processes_left_is_taken_away_and_nothing_else(tmp_path: Path) -> None:
    kept = ["[a]", ".[a].tmp", ".a.0123456789abcdef.tmp", ".[a].0123456789abcdef.tmp2"]
    for name in [*kept, ".[a].0123456789abcdef.tmp"]:
        (tmp_path / name).touch()
    remove_unfinished(tmp_path / "[a]")
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def unchanged(path: Path, before: bytes) -> bool:
    return path.read_bytes() == before and os.listdir(path.parent) == [path.name]


class FullDisk(io.RawIOBase):
    """A file that takes ``room`` bytes, then fails as a full disk does."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room
        self.tell, self.fileno = file.tell, file.fileno

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.room -= size
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.file.write(data)
        return size

    def close(self) -> None:
        self.file.close()
        super().close()


@pytest.mark.parametrize("room", [0, 4, 1000, 3000])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    path: Path, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    assert len(before) > 3000
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "open", lambda *args: FullDisk(Path.open(*args), room), raising=False)
        with pytest.raises(WriteError, match=r"a\.parquet cannot be written: No space left"):
            write_columns(path, {"kind": "scores", "other": True}, COLUMNS)
    assert unchanged(path, before)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_is_full_at_the_flush_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(name: Path, mode: str) -> Any:
        open(name, mode).close()
        return open("/dev/full", "wb")

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "open", full, raising=False)
        with pytest.raises(WriteError, match="No space left"), atomic_write(path) as file:
            file.write(b"x")
    assert unchanged(path, before)


@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_a_failure_at_any_later_stage_leaves_the_old_file(
    path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, stage, fail)
        with pytest.raises(WriteError, match="Input/output"):
            write_columns(path, {"kind": "scores", "other": True}, COLUMNS)
    assert unchanged(path, before)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_in_the_block_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def half() -> None:
        with atomic_write(tmp_path / "new") as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        half()
    assert os.listdir(tmp_path) == []


def test_killed_in_the_middle_the_old_file_is_intact(path: Path) -> None:
    before = path.read_bytes()
    code = f"""
        import os, signal
        from prunesampler.tables.atomic import atomic_write
        with atomic_write({str(path)!r}) as file:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)])
    assert ended.returncode == -signal.SIGKILL
    assert path.read_bytes() == before


def test_the_data_is_on_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def replaced(*args: Any) -> None:
        calls.append("replace")
        replace(*args)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    with atomic_write(tmp_path / "a") as file:
        file.write(b"x")
    assert calls == ["file", "replace", "folder"]


def test_the_file_is_as_any_new_one_and_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").read_bytes() == b"x"
    assert (tmp_path / "real" / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_error_of_what_is_read_in_the_block_is_not_one_of_writing(tmp_path: Path) -> None:
    def copied() -> None:
        with atomic_write(tmp_path / "new") as file:
            file.write((tmp_path / "missing").read_bytes())

    with pytest.raises(FileNotFoundError, match="missing") as caught:
        copied()
    assert not isinstance(caught.value, WriteError)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EINVAL, errno.ENOTSUP])
def test_a_folder_that_cannot_be_synced_holds_the_file_all_the_same(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with atomic_write(tmp_path / "new") as file:
            file.write(b"whole")
    assert (tmp_path / "new").read_bytes() == b"whole"


def test_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(WriteError, match="fifo cannot be written: it is not a file"), atomic_write(tmp_path / "fifo"):
        pass
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
