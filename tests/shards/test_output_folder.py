from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from prunesampler.errors import CorruptFileError, StateError, UnsupportedError, WriteError
from prunesampler.shards.output_folder import OutputFolder


@pytest.fixture(params=["local", "file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param != "memory":
        yield f"{'file://' if request.param == 'file' else ''}{tmp_path}/new/out"
        return
    yield "memory://folder/out"
    system = fsspec.filesystem("memory")
    if system.exists("/folder"):
        system.rm("/folder", recursive=True)


def test_files_appear_whole(url: str) -> None:
    folder = OutputFolder(url)
    assert folder.sizes() == {}
    with folder.writing("a") as file:
        file.write(b"one")
        file.write(b"two")
        assert "a" not in folder.sizes()
    assert folder.sizes() == {"a": 6}
    assert folder.read("a") == b"onetwo"
    with folder.writing("a") as file:
        file.write(b"three")
    assert folder.read("a") == b"three"
    folder.remove("a")
    folder.remove("a")
    assert OutputFolder(url).sizes() == {}


def test_a_failure_leaves_what_was_there(url: str) -> None:
    folder = OutputFolder(url)
    with folder.writing("a") as file:
        file.write(b"old")
    with pytest.raises(ZeroDivisionError), folder.writing("a") as file:
        file.write(b"new")
        _ = 1 / 0
    assert folder.sizes() == {"a": 3}
    assert folder.read("a") == b"old"


def test_a_store_that_lost_bytes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = OutputFolder("memory://folder/lossy")
    monkeypatch.setattr(type(folder._system), "info", lambda *args: {"size": 2})
    with pytest.raises(CorruptFileError, match="3 bytes were written and 2 are there"), folder.writing("a") as file:
        file.write(b"new")
    monkeypatch.undo()
    assert folder.sizes() == {}


def test_links_are_replaced_and_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    folder = OutputFolder(str(tmp_path / "out"))
    for name in ("a", ".a.part"):
        os.symlink(outside, tmp_path / "out" / name)
    with folder.writing("a") as file:
        file.write(b"new")
    assert outside.read_bytes() == b"precious"
    assert (tmp_path / "out" / "a").read_bytes() == b"new"
    assert folder.sizes() == {"a": 3}


def test_one_process_at_a_time(tmp_path: Path) -> None:
    folder, other = OutputFolder(str(tmp_path)), OutputFolder(str(tmp_path))
    with folder.locked(), pytest.raises(StateError, match="another process is writing to"), other.locked():
        pass
    with other.locked():
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    with pytest.raises(UnsupportedError, match="is a pipe or a device"):
        OutputFolder(str(tmp_path)).read("a")


def test_a_full_store_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = OutputFolder(url)

    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    def write() -> None:
        with folder.writing("a") as file:
            if url.startswith("memory"):
                monkeypatch.setattr(type(file._file), "write", full)  # type: ignore[attr-defined]
            monkeypatch.setattr(os, "fsync", full)
            file.write(b"new")

    with pytest.raises(WriteError, match=r"out/a cannot be written: No space left on device"):
        write()
    monkeypatch.undo()
    assert folder.sizes() == {}
