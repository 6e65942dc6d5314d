from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from prunesampler.errors import CorruptFileError, StateError
from prunesampler.shards.output_folder import Folder


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
    folder = Folder(url)
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
    assert Folder(url).sizes() == {}


def test_a_failure_leaves_what_was_there(url: str) -> None:
    folder = Folder(url)
    with folder.writing("a") as file:
        file.write(b"old")
    with pytest.raises(ZeroDivisionError), folder.writing("a") as file:
        file.write(b"new")
        _ = 1 / 0
    assert folder.sizes() == {"a": 3}
    assert folder.read("a") == b"old"


def test_what_reads_back_otherwise_is_not_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(url)
    with pytest.raises(CorruptFileError, match="does not read back as it was written"), folder.writing("a") as file:
        write, system_write = file._file.write, os.write
        monkeypatch.setattr(os, "write", lambda number, data: system_write(number, bytes(data).replace(b"e", b"o")))
        if folder.path is None:
            monkeypatch.setattr(file._file, "write", lambda data: write(bytes(data).replace(b"e", b"o")))
        file.write(b"new")
    assert folder.sizes() == {}


def test_links_are_replaced_and_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    folder = Folder(str(tmp_path / "out"))
    for name in ("a", ".a.part"):
        os.symlink(outside, tmp_path / "out" / name)
    with folder.writing("a") as file:
        file.write(b"new")
    assert outside.read_bytes() == b"precious"
    assert (tmp_path / "out" / "a").read_bytes() == b"new"
    assert folder.sizes() == {"a": 3}


def test_one_process_at_a_time(tmp_path: Path) -> None:
    message = "is being written by another process"
    with Folder(str(tmp_path)).locked(), pytest.raises(StateError, match=message), Folder(str(tmp_path)).locked():
        pass
    with Folder(str(tmp_path)).locked():
        pass
    assert list(tmp_path.iterdir()) == []
