"""The body of a URL over HTTP, or a range of it; what breaks off is resumed, if it is still the same file."""

from __future__ import annotations

import hashlib
import http.client
import io
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from prunesampler.errors import CorruptFileError, MismatchError, UnsupportedError
from prunesampler.shards.retry import retried

_SILENCE, _PATIENCE, _SLOWEST = 60.0, 120.0, 16 << 10  # seconds for an answer, and beyond the bytes at so many a second
_MOST_BYTES = 1 << 40  # where a server does not say how many there are
_BLOCK = 1 << 20
_TRANSIENT = (http.client.HTTPException, OSError, ValueError)  # ValueErrors are of malformed headers
_NUMBER = re.compile(r"[0-9]{1,18}")
_SPAN = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


def check_size(url: str, size: int, found: int) -> None:
    """Refuse a shard of another size than the one that was indexed; ``size`` is −1 where that is unknown."""
    if size not in (-1, found):
        raise MismatchError(f"{url} has changed since it was indexed, from {size} to {found} bytes: index it anew")


class HttpFile(io.RawIOBase):
    """The bytes from ``first`` to below ``end``, by default all; ``size`` is the one that was indexed, −1 if unknown.

    What is resumed is the same file: by its ``ETag`` or ``Last-Modified``, else by reading again what came before the
    break. The whole transfer may wait for the server two minutes, and the time that its bytes take at 16 KiB a second.

    Raises:
        OSError: no answer, no HTTP, a server that stays busy, a transfer that breaks off time and again or is too slow.
        FileNotFoundError, PermissionError: as the server says.
        MismatchError: not the size that was indexed, or another file after a break.
        CorruptFileError: another range than the one that was asked for.
        UnsupportedError: the server gives no ranges.
    """

    def __init__(self, url: str, first: int = 0, end: int | None = None, size: int = -1) -> None:
        self._url, self._first, self._position, self._end, self.size = url, first, first, end, size
        self._clock = _Clock()
        self._handler = _PacedHandler(self._clock)
        self._opener = urllib.request.build_opener(self._handler)
        self._response: Any = None
        self._known: tuple[str | None] | None = None  # what tells the file from another version, once that was asked
        self._read = hashlib.blake2b()  # kept up where nothing else tells it
        if end is None:
            try:
                self._retry(self._open)
            except BaseException:
                self.close()
                raise
            self._end = None if self.size < 0 else self.size

    @property
    def version(self) -> str | None:
        """What tells this file from another of the same URL, by the server's last answer; None where nothing does."""
        return None if self._known is None else self._known[0]

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Some of the next bytes; 0 at the end."""
        most = (_MOST_BYTES if self._end is None else self._end) - self._position
        if not most and self._end is None:
            raise CorruptFileError(f"{self._url} does not end within {_MOST_BYTES} bytes")
        view = memoryview(buffer)[:most]
        count: int = self._retry(partial(self._fill, view)) if view else 0
        self._position += count
        if self._known == (None,):
            self._read.update(view[:count])
        return count

    def close(self) -> None:
        """Close the connection."""
        self._disconnect()
        super().close()

    def _fill(self, view: memoryview) -> int:
        if self._response is None:
            self._open()
        count: int = self._response.readinto(view)
        if not count and self._end is not None:
            raise ConnectionError(f"it broke off at byte {self._position} of {self._end}")
        return count

    def _disconnect(self) -> None:
        if self._response is not None:
            self._response.close()
        self._response = None

    def _retry(self, action: Callable[[], Any]) -> Any:
        return retried(self._url, action, _TRANSIENT, self._disconnect)

    def _open(self) -> None:
        again = self._known == (None,)  # nothing tells this file from another: what was read is compared
        start = self._first if again else self._position
        request = urllib.request.Request(self._url, headers={"Accept-Encoding": "identity"})
        part = start > 0 or self._end not in (None, self.size)
        if part:
            request.add_header("Range", f"bytes={start}-{'' if self._end is None else self._end - 1}")
            if self._known is not None and self._known[0] is not None:
                request.add_header("If-Range", self._known[0])
        with self._clock.connecting() as seconds:
            try:
                self._response = self._opener.open(request, timeout=seconds)
            except BaseException:
                self._handler.close_answer()  # urllib leaves it open where a redirect makes no sense
                raise
        found = _version(self._response.headers)
        if self._known is not None and found != self._known[0]:
            raise MismatchError(f"{self._url} has changed while it was read: read it again")
        self._check_span(start, part)
        self._known = (found,)
        if again:
            self._compare(self._position - self._first)

    def _check_span(self, start: int, part: bool) -> None:
        """Refuse an answer that is not the bytes asked for; learn how many the whole file has."""
        stated, whole = self._response.headers.get("Content-Range"), self._response.status == http.client.OK
        if part and whole:
            raise UnsupportedError(f"{self._url}: the server sends whole files only: stream the shards, or repack them")
        if whole:
            total = self._response.headers.get("Content-Length")
            if total is not None and not _NUMBER.fullmatch(total):
                raise ValueError(f"the answer has the Content-Length {total!r:.80}")
        else:
            span = _SPAN.fullmatch(stated or "")
            if self._response.status != http.client.PARTIAL_CONTENT or span is None:
                raise ValueError(f"the answer has the status {self._response.status}, Content-Range {stated!r:.80}")
            total = None if span[3] == "*" else span[3]
            most = self._end if self._end is not None else 1 << 60 if total is None else int(total)
            if int(span[1]) != start or not start <= int(span[2]) < most:
                wanted = f"expected the bytes from {start}, got {span[0].partition('/')[0]!r}"
                raise CorruptFileError(f"{self._url}: {wanted}")
        if total is not None:
            check_size(self._url, self.size, int(total))
            self.size = int(total)

    def _compare(self, count: int) -> None:
        """Read again what was read before; refuse what differs."""
        found = hashlib.blake2b()
        while count:
            block = self._response.read(min(count, _BLOCK))
            if not block:
                raise ConnectionError(f"it broke off before byte {self._position} of {self._end}")
            found.update(block)
            count -= len(block)
        if found.digest() != self._read.digest():
            raise MismatchError(f"{self._url} has changed while it was read: read it again")


def _version(headers: Any) -> str | None:
    """What an answer says that tells this version of a file from any other: a strong ETag, else a time."""
    tag: str | None = headers.get("ETag")
    modified: str | None = headers.get("Last-Modified")
    return tag if tag and tag.startswith('"') else modified


class _Clock:
    """How long a transfer has waited for its server, and for how many bytes."""

    def __init__(self) -> None:
        self.waited, self.received = 0.0, 0

    def seconds(self) -> float:
        """How long the server may take for the next bytes; TimeoutError where it has taken too long."""
        left = _PATIENCE + self.received / _SLOWEST - self.waited
        if left <= 0:
            raise TimeoutError(f"{self.received} bytes took {self.waited:.0f} seconds")
        return min(_SILENCE, left)

    @contextmanager
    def connecting(self) -> Iterator[float]:
        """A block in which a connection is made, within the :meth:`seconds` that it is given."""
        begun, before = time.monotonic(), self.waited
        try:
            yield self.seconds()
        finally:
            self.waited = max(self.waited, before + time.monotonic() - begun)


class _PacedHandler(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """Opens connections whose every read is counted."""

    def __init__(self, clock: _Clock) -> None:
        super().__init__()
        self._clock = clock
        self._answer: Any = None

    def close_answer(self) -> None:
        """Close the connection of the last answer."""
        if self._answer is not None:
            self._answer.close()

    def do_open(self, http_class: Any, req: Any, **http_conn_args: Any) -> Any:
        """As urllib does."""

        def connection(*args: Any, **options: Any) -> Any:
            made = http_class(*args, **options)
            made.response_class = partial(_PacedResponse, self._clock)
            return made

        self._answer = super().do_open(connection, req, **http_conn_args)
        return self._answer


class _PacedResponse(http.client.HTTPResponse):
    def __init__(self, clock: _Clock, sock: Any, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_PacedSocket(clock, sock, self.fp.detach()), _BLOCK)


class _PacedSocket(io.RawIOBase):
    def __init__(self, clock: _Clock, sock: Any, raw: Any) -> None:
        self._clock, self._sock, self._raw = clock, sock, raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._clock.seconds())
        begun = time.monotonic()
        try:
            count: int = self._raw.readinto(buffer)
        finally:
            self._clock.waited += time.monotonic() - begun
        self._clock.received += count
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
