"""Shards that are not local files, as streams: one request a shard, however many headers it has."""

from __future__ import annotations

import http.client
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

__all__ = ["HttpStream", "open_stream"]

_TIMEOUT = 60
_ATTEMPTS = 5
_BLOCK = 8 << 20


class HttpStream:
    """The body of a URL from front to back; a connection that breaks is taken up where it broke.

    Raises:
        OSError: the server refuses, or breaks off five times without giving anything.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._position = 0
        self._response = self._open()
        length = self._response.headers.get("Content-Length")
        self.size = -1 if length is None else int(length)

    def read(self, count: int) -> bytes:
        """At most ``count`` bytes, none at the end."""
        for attempt in range(_ATTEMPTS):
            try:
                if attempt:
                    self._response.close()
                    self._response = self._open()
                block: bytes = self._response.read(count)
            except (http.client.HTTPException, OSError):
                if attempt == _ATTEMPTS - 1:
                    raise
                continue
            self._position += len(block)
            if block or self._position >= self.size:
                return block
        raise ConnectionError(f"{self._url} broke off after {self._position} of {self.size} bytes, {_ATTEMPTS} times")

    def close(self) -> None:
        """Close the connection."""
        self._response.close()

    def _open(self) -> Any:
        wanted = {"Accept-Encoding": "identity", "Range": f"bytes={self._position}-"}
        if not self._position:
            del wanted["Range"]
        response = urllib.request.urlopen(urllib.request.Request(self._url, headers=wanted), timeout=_TIMEOUT)
        if self._position and response.status != http.client.PARTIAL_CONTENT:
            skipped = 0
            while skipped < self._position and (block := response.read(min(_BLOCK, self._position - skipped))):
                skipped += len(block)
        return response


@contextmanager
def open_stream(url: str) -> Iterator[tuple[Any, int, bool]]:
    """Open what is not a local file.

    Args:
        url: ``http:``, ``https:``; ``pipe:`` and a command; or of any scheme that fsspec knows.

    Yields:
        What has ``read(count)``; its size, −1 where unknown; and whether parts of it could be read alone.

    Raises:
        OSError: it cannot be opened.
        ImportError: fsspec, or webdataset for a pipe, is not installed.
    """
    if url.startswith(("http://", "https://")):
        with closing(HttpStream(url)) as stream:
            yield stream, stream.size, True
    elif url.startswith("pipe:"):
        from webdataset import gopen

        with closing(gopen(url)) as pipe:
            yield pipe, -1, False
    else:
        import fsspec

        system, path = fsspec.core.url_to_fs(url)
        with system.open(path, "rb", block_size=_BLOCK) as file:
            yield file, int(getattr(file, "size", None) or -1), True
