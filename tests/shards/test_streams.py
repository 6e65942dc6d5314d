from __future__ import annotations

import http.server
import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import pytest

from prunesampler.shards.sources import open_source
from prunesampler.shards.streams import open_stream

CONTENT = bytes(range(256)) * 20_000


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, and breaks off after ``served`` bytes of a request."""

    requests: list[str | None]
    served: int
    ranges: bool
    said: int

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.requests.append(wanted)
        first = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.ranges else 0  # type: ignore[index]
        if self.path != "/a.tar":
            self.send_error(404)
            return
        self.send_response(206 if wanted and self.ranges else 200)
        self.send_header("Content-Length", str(self.said - first))
        self.end_headers()
        self.wfile.write(CONTENT[first : first + self.served])

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serving(served: int = len(CONTENT), ranges: bool = True, said: int = len(CONTENT)) -> Iterator[tuple[str, Any]]:
    handler = type("Handler", (Server,), {"requests": [], "served": served, "ranges": ranges, "said": said})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/a.tar", handler.requests
        finally:
            server.shutdown()
            thread.join()


def everything(url: str) -> bytes:
    with open_source(url) as source:
        return source.take(0, 1 << 40)


def test_one_request() -> None:
    with serving() as (url, requests):
        with open_stream(url) as (_, size, rangeable):
            assert (size, rangeable) == (len(CONTENT), True)
        requests.clear()
        assert everything(url) == CONTENT
        assert requests == [None]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_is_taken_up(ranges: bool) -> None:
    with serving(served=2_000_000 if ranges else 5_000_000, ranges=ranges) as (url, requests):
        if ranges:
            assert everything(url) == CONTENT
            assert requests == [None, "bytes=2000000-", "bytes=4000000-"]
        else:
            with pytest.raises(ConnectionError, match="broke off after 5000000 of 5120000 bytes"):
                everything(url)


def test_a_server_without_ranges_gives_the_rest_after_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(ranges=False) as (url, requests), open_stream(url) as (stream, _, _):
        assert stream.read(1000) == CONTENT[:1000]
        monkeypatch.setattr(stream, "_response", io.BytesIO())  # the connection broke
        rest = b"".join(iter(lambda: stream.read(1 << 20), b""))
        assert rest == CONTENT[1000:]
        assert requests == [None, "bytes=1000-"]


def test_refusals() -> None:
    with serving() as (url, _), pytest.raises(OSError, match="404"):
        everything(url + "x")
    with pytest.raises(OSError, match="refused"):
        everything("http://127.0.0.1:9/a.tar")
    with serving(said=len(CONTENT) + 7) as (url, _), pytest.raises(ConnectionError, match="broke off"):
        everything(url)


def test_commands(tmp_path: Any) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(CONTENT)
    with open_source(f"pipe:cat {path}") as source:
        assert (source.seekable, source.size, source.streamed) == (False, -1, True)
        assert source.take(0, 1 << 40) == CONTENT
        source.drain()
    with pytest.raises(OSError, match="exit 3"):
        everything("pipe:exit 3")


def test_file_systems() -> None:
    fsspec.filesystem("memory").pipe("/a.tar", CONTENT)
    with open_source("memory://a.tar") as source:
        assert (source.seekable, source.streamed, source.size) == (True, True, len(CONTENT))
        assert source.take(0, 1 << 40) == CONTENT
