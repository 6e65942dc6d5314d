"""What a server may answer, one of its kind for each that was seen or can be made up."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prunesampler.errors import CorruptFileError, MismatchError
from prunesampler.shards import http_file
from prunesampler.shards.http_file import HttpFile
from prunesampler.shards.sources import open_source, read_range
from tests.helpers.http_server import Server, serving

CONTENT, OTHER = random.Random(0).randbytes(30_000), random.Random(1).randbytes(30_000)


def whole(url: str) -> bytes:
    with HttpFile(url) as file:
        return bytes(file.readall() or b"")


def middle(url: str) -> bytes:
    return read_range(url, 7, 29_000)


READS: list[tuple[Callable[[str], bytes], bytes]] = [(whole, CONTENT), (middle, CONTENT[7:29_000])]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "a.tar").write_bytes(CONTENT)
    with serving(tmp_path) as server:
        yield server


TAGS = [{"ETag": '"1"'}, {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, {"ETag": 'W/"1"'}, {}]


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize(("read", "expected"), READS)
def test_what_is_resumed_is_the_same_file(
    server: Server, tags: dict[str, str], read: Callable[[str], bytes], expected: bytes
) -> None:
    server.tags = tags
    server.breaks_once = 20_000
    assert read(server.url + "a.tar") == expected
    assert len(server.requests) == 2


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("read", [whole, middle])
def test_another_version_is_never_appended_to_the_first(
    server: Server, tags: dict[str, str], read: Callable[[str], bytes]
) -> None:
    server.tags, server.breaks_once = tags, 20_000
    server.later, server.later_tags = OTHER, {name: value.replace("1", "2") for name, value in tags.items()}
    with pytest.raises(MismatchError, match=r"a\.tar has changed while it was read"):
        read(server.url + "a.tar")


def test_another_size_after_a_break_is_refused(server: Server) -> None:
    server.breaks_once, server.later = 20_000, CONTENT + b"more"
    with pytest.raises(MismatchError, match="from 30000 to 30004 bytes"):
        whole(server.url + "a.tar")


@contextmanager
def answering(*parts: bytes, pause: float = 0.0, endless: bool = False) -> Iterator[str]:
    """A server that gives every request these bytes, with pauses between, the last of them for ever if ``endless``."""
    stopped = threading.Event()

    def serve() -> None:
        while not stopped.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65_536)
                try:
                    for part in parts:
                        connection.sendall(part)
                        stopped.wait(pause)
                    while endless and not stopped.is_set():
                        connection.sendall(parts[-1])
                        stopped.wait(pause)
                except OSError:
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/a.tar"
        finally:
            stopped.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


OK, PART = b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 206 Partial\r\nContent-Length: 5\r\n"
ANSWERS = {
    "no HTTP": b"\0\1\2\r\n\r\n",
    "nothing": b"",
    "two lengths": OK + b"Content-Length: 5, 5\r\n\r\nabcde",
    "a negative length": OK + b"Content-Length: -5\r\n\r\nabcde",
    "digits that are none": OK + b"Content-Length: \xb2\r\n\r\nabcde",
    "a length of 5,000 digits": OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nabcde",
    "cut chunks": OK + b"Transfer-Encoding: chunked\r\n\r\nffff\r\nab",
    "a chunk of no size": OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\nab\r\n0\r\n\r\n",
    "a part without saying of what": PART + b"\r\nabcde",
    "a part of nonsense": PART + b"Content-Range: bytes x-y/z\r\n\r\nabcde",
    "headers without end": OK + b"X: y\r\n" * 200,
    "no content": b"HTTP/1.1 204 No\r\n\r\n",
    "a redirect to no URL": b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\n\r\n",
    "a redirect to a file": b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_that_makes_no_sense_is_the_error_of_the_system(answer: str) -> None:
    with (
        answering(ANSWERS[answer]) as url,
        pytest.raises(OSError, match=r"a\.tar cannot be read, in 5|the server answers 302"),
    ):
        whole(url)


@pytest.mark.parametrize("span", ["bytes 0-4/30", "bytes 5-20/30", "bytes 5-4/30", "bytes 6-9/30"])
def test_a_range_that_is_not_the_one_asked_for_is_refused(span: str) -> None:
    answer = PART + f"Content-Range: {span}\r\n\r\nabcde".encode()
    with answering(answer) as url, pytest.raises(CorruptFileError, match="expected the bytes from 5, got 'bytes"):
        read_range(url, 5, 10)


def test_a_server_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_file, "_PATIENCE", 0.2)
    body = OK + b"Content-Length: 1000000\r\n\r\n"  # never all of it, however late this test reads
    for parts in ((body, b"a"), (b"HTTP/1.1 200 OK\r\nX: ", b"y")):
        with answering(*parts, pause=0.02, endless=True) as url, pytest.raises(OSError, match="cannot be read, in 5"):
            whole(url)


def test_a_body_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from prunesampler.shards import sources

    monkeypatch.setattr(http_file, "_MOST_BYTES", 3 << 20)
    monkeypatch.setattr(sources, "_MOST_AFTER", 1 << 20)
    chunk = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
    with answering(OK + b"Transfer-Encoding: chunked\r\n\r\n", chunk, endless=True) as url:
        with pytest.raises(CorruptFileError, match="does not end within 3145728 bytes"):
            whole(url)
        with open_source(url) as source, pytest.raises(CorruptFileError, match="after the end of its archive"):
            source.drain()


def test_a_range_takes_only_the_memory_of_what_comes(server: Server) -> None:
    with pytest.raises((OSError, CorruptFileError)):
        read_range(server.url + "a.tar", 0, 1 << 50)
