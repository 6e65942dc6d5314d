"""The bytes of a shard, wherever it lies: read at offsets in a local file, else streamed once from front to back."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, Protocol, cast

import pyarrow as pa

from prunesampler.errors import CorruptFileError
from prunesampler.shards.streams import open_stream
from prunesampler.shards.urls import local_path

__all__ = ["FileSource", "Source", "StreamSource", "open_source"]

_SHORT_HOP, _LONG_HOP = 2048, 4096
_BLOCK = 1 << 20
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}
_DECODERS: dict[str, Callable[[Any], Any]] = {
    "gzip": lambda stream: gzip.GzipFile(fileobj=stream),
    "zstd": lambda stream: pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd"),
    "bz2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
}
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)  # and an OSError without a number


class Source(Protocol):
    """An uncompressed tar.

    Attributes:
        url: of the shard.
        length: in bytes; None until a stream has come to its end.
        size: of the shard as it is stored, in bytes; −1 where unknown.
        modified: nanoseconds since 1970, of a local file; −1 elsewhere.
        seekable: whether a reader may read at an offset.
        streamed: whether ``take`` only goes forward.
        data: the bytes that were read last, which can be taken again.
        base: their offset.
    """

    url: str
    length: int | None
    size: int
    modified: int
    seekable: bool
    streamed: bool
    data: bytes
    base: int

    def take(self, offset: int, count: int) -> bytes:
        """The bytes from ``offset``: ``count`` of them, fewer where the tar ends."""
        ...

    def fill(self, offset: int, count: int) -> None:
        """Let ``data`` begin at ``offset``, with ``count`` bytes or more, fewer where the tar ends."""
        ...

    def drain(self) -> None:
        """Nothing more is wanted after the end of the archive."""
        ...


class _Window:
    """Bytes read last."""

    data = b""
    base = 0

    def take(self, offset: int, count: int) -> bytes:
        start = offset - self.base
        if start < 0 or start + count > len(self.data):
            self.fill(offset, count)
            start = offset - self.base
        return self.data[start : start + count]

    def fill(self, offset: int, count: int) -> None:
        raise NotImplementedError


class FileSource(_Window):
    """An uncompressed local file: a page at a time where members are large, large blocks where they are small."""

    streamed = False
    seekable = True

    def __init__(self, url: str, file: BinaryIO) -> None:
        status = os.fstat(file.fileno())
        self.url, self._file = url, file.fileno()
        self.length: int | None = status.st_size
        self.size, self.modified = status.st_size, status.st_mtime_ns
        self._hop = self._step = _SHORT_HOP

    def fill(self, offset: int, count: int) -> None:
        """Read there, and more of it the denser the reads are."""
        if -_LONG_HOP <= offset - self.base - len(self.data) <= _LONG_HOP:
            self._hop, self._step = _LONG_HOP, min(self._step * 4, _BLOCK)
        else:
            self._step = self._hop
        data = b"" if offset > self.size else os.pread(self._file, self._step, offset)
        while len(data) < count and (missing := min(count, self.size - offset) - len(data)) > 0:
            block = os.pread(self._file, missing, offset + len(data))  # 2 GiB at most in one call
            if not block:
                break
            data += block
        self.base, self.data = offset, data

    def drain(self) -> None:
        """Nothing is left to verify."""


class StreamSource(_Window):
    """What a stream gives, read once; only what it gave last can be taken again."""

    streamed = True

    def __init__(
        self, url: str, stream: Any, *, size: int = -1, modified: int = -1, seekable: bool = False, codec: bool = False
    ) -> None:
        self.url, self._stream, self._codec = url, stream, codec
        self.size, self.modified, self.seekable = size, modified, seekable
        self.length: int | None = None

    def drain(self) -> None:
        """Read to the end, where a codec compares its checksum and a command its exit status."""
        while self._read():
            pass

    def fill(self, offset: int, count: int) -> None:
        """Read on to there.

        Raises:
            ValueError: the stream is past it.
            CorruptFileError: its codec finds it damaged or cut short.
        """
        if offset < self.base:
            raise ValueError(f"{self.url} was read past byte {offset} already")
        end = self.base + len(self.data)
        parts = [self.data[offset - self.base :]]
        while end < offset + count and (block := self._read()):
            parts = [block[max(0, offset - end) :]] if end <= offset else [*parts, block]
            end += len(block)
        if end < offset + count:
            self.length = end
        self.base, self.data = offset, b"".join(parts)

    def _read(self) -> bytes:
        try:
            return cast(bytes, self._stream.read(_BLOCK))
        except _DAMAGE as error:
            raise CorruptFileError(f"{self.url} is damaged or cut short: {error}") from error
        except OSError as error:
            if self._codec and error.errno is None and not isinstance(error, ConnectionError):
                raise CorruptFileError(f"{self.url} is damaged or cut short: {error}") from error
            raise


@contextmanager
def open_source(url: str) -> Iterator[FileSource | StreamSource]:
    """Open a shard; gzip, zstd, bz2 and xz are told by their first bytes, not by the name.

    Args:
        url: a local path, ``file:``, ``http:``, ``https:``, ``pipe:``, or what fsspec knows.

    Yields:
        The tar in it, at its beginning.

    Raises:
        OSError: it cannot be opened.
        ImportError: fsspec, or webdataset for a pipe, is not installed.
    """
    path = local_path(url)
    with ExitStack() as stack:
        if path is None:
            raw, size, rangeable = stack.enter_context(open_stream(url))
            modified = -1
        else:
            raw = stack.enter_context(open(path, "rb", buffering=0))
            status, rangeable = os.fstat(raw.fileno()), True
            size, modified = status.st_size, status.st_mtime_ns
            if _codec(os.pread(raw.fileno(), 6, 0)) is None:
                yield FileSource(url, raw)
                return
        stream = io.BufferedReader(_Raw(raw), _BLOCK)
        codec = _codec(stream.peek(6))
        decoded = stack.enter_context(_DECODERS[codec](stream)) if codec else stream
        seekable = rangeable and codec is None
        yield StreamSource(url, decoded, size=size, modified=modified, seekable=seekable, codec=codec is not None)


class _Raw(io.RawIOBase):
    """What has only a ``read``, as a file."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._stream.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)


def _codec(head: bytes) -> str | None:
    return next((codec for magic, codec in _MAGIC.items() if head.startswith(magic)), None)
