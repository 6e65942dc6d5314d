"""The bytes of a shard, local or remote: as a source that is read front to back, or a range of them."""

from __future__ import annotations

import bz2
import gzip
import http.client
import io
import lzma
import os
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any, BinaryIO, cast

import pyarrow as pa

from prunesampler.errors import CorruptFileError, MismatchError, missing
from prunesampler.shards.http_file import HttpFile, check_size
from prunesampler.shards.retry import retried
from prunesampler.shards.urls import local_path, remote_file_system, url_kind
from prunesampler.tables.atomic import check_regular_file

_SHORT_HOP, _LONG_HOP, _BLOCK = 2048, 4096, 1 << 20
_REMOTE_BLOCK = 16 << 20  # of what fsspec reads, in one request
_TRANSIENT = (OSError, http.client.HTTPException)
_MOST_AFTER = 1 << 28  # bytes after the end of an archive
_DECODERS: dict[bytes, Callable[[Any], Any]] = {  # by the first bytes of gzip, zstd, bz2, xz
    b"\x1f\x8b": lambda stream: gzip.GzipFile(fileobj=stream),
    b"\x28\xb5\x2f\xfd": lambda stream: pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd"),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}


class Source:
    """An uncompressed tar, and the bytes of it that were read last: ``data``, from offset ``base``.

    Attributes:
        length: of the tar in bytes; None until a stream has come to its end.
        size: of the shard as it is stored, in bytes; −1 where unknown.
        modified: nanoseconds since 1970, of a local file; −1 elsewhere.
        seekable: whether a reader may read at an offset.
        streamed: whether ``take`` only goes forward; then only ``data`` can be taken again.
    """

    streamed = False
    length: int | None = None
    data, base = b"", 0

    def __init__(self, url: str, size: int, modified: int, seekable: bool) -> None:
        self.url, self.size, self.modified, self.seekable = url, size, modified, seekable

    def take(self, offset: int, count: int) -> bytes:
        """The bytes from ``offset``: ``count`` of them, fewer where the tar ends."""
        start = offset - self.base
        if start < 0 or start + count > len(self.data):
            self.fill(offset, count)
            start = 0
        return self.data[start : start + count]

    def fill(self, offset: int, count: int) -> None:
        """Let ``data`` begin at ``offset``, with at least ``count`` bytes, fewer where the tar ends."""
        raise NotImplementedError

    def drain(self) -> None:
        """Read to the end, where a codec compares its checksum and a command its exit status."""


class FileSource(Source):
    """An uncompressed local file: a page at a time where members are large, large blocks where they are small."""

    def __init__(self, url: str, file: BinaryIO) -> None:
        status = os.fstat(file.fileno())
        super().__init__(url, status.st_size, status.st_mtime_ns, True)
        self.length, self._file = status.st_size, file.fileno()
        self._hop = self._step = _SHORT_HOP

    def fill(self, offset: int, count: int) -> None:
        """Read there, and more of it the denser the reads are."""
        if -_LONG_HOP <= offset - self.base - len(self.data) <= _LONG_HOP:
            self._hop, self._step = _LONG_HOP, min(self._step * 4, _BLOCK)
        else:
            self._step = self._hop
        wanted = max(self._step, min(count, self.size - offset))
        self.base, self.data = offset, b"" if offset > self.size else read_at(self._file, offset, wanted)


class StreamSource(Source):
    """A stream, read once from front to back."""

    streamed = True

    def __init__(
        self, url: str, stream: Any, *, size: int = -1, modified: int = -1, seekable: bool = False, codec: bool = False
    ) -> None:
        super().__init__(url, size, modified, seekable)
        self._stream, self._codec = stream, codec

    def drain(self) -> None:
        """Read to the end, which must be near."""
        left = _MOST_AFTER
        while block := self._read():
            left -= len(block)
            if left < 0:
                raise CorruptFileError(f"{self.url} goes on for {_MOST_AFTER:,} bytes after the end of its archive")

    def fill(self, offset: int, count: int) -> None:
        """Read on to there; ValueError if the stream is past it."""
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
        except pa.ArrowMemoryError:
            raise
        except (EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
            raise CorruptFileError(f"{self.url} is damaged or cut short: {error}") from error
        except OSError as error:  # codecs raise it without a number
            if self._codec and error.errno is None and not isinstance(error, ConnectionError):
                raise CorruptFileError(f"{self.url} is damaged or cut short: {error}") from error
            raise


@contextmanager
def open_source(url: str) -> Iterator[Source]:
    """Open a shard, at its beginning. Codecs (gzip, zstd, bz2, xz) are told by the first bytes, not by the name."""
    with ExitStack() as stack:
        path, size, modified = local_path(url), -1, -1
        if path is not None:
            check_regular_file(path)
            raw: Any = stack.enter_context(open(path, "rb", buffering=0))
            if _decoder(os.pread(raw.fileno(), 6, 0)) is None:
                yield FileSource(url, raw)
                return
            status = os.fstat(raw.fileno())
            size, modified = status.st_size, status.st_mtime_ns
        elif url_kind(url) == "http":
            raw = stack.enter_context(HttpFile(url))
            size = raw.size
        elif url_kind(url) == "pipe":
            try:
                from webdataset import gopen
            except ImportError as error:
                raise missing("webdataset", error) from error
            raw = _Pipe(stack.enter_context(closing(gopen("pipe:" + url.partition(":")[2]))))
        else:
            system, place = remote_file_system(url)
            raw = stack.enter_context(system.open(place, "rb", block_size=8 << 20))
            size = int(getattr(raw, "size", None) or -1)
        stream = io.BufferedReader(raw, _BLOCK)
        decoder = _decoder(stream.peek(6))
        seekable = decoder is None and url_kind(url) != "pipe"
        decoded = stack.enter_context(decoder(stream)) if decoder else stream
        yield StreamSource(url, decoded, size=size, modified=modified, seekable=seekable, codec=decoder is not None)


def read_at(file: int, offset: int, count: int) -> bytes:
    """Bytes of an open file, fewer where it ends. One call of the system gives 2 GiB at most."""
    count = min(count, max(0, os.fstat(file).st_size - offset))  # room is made for all of them
    data = os.pread(file, count, offset)
    while 0 < len(data) < count and (block := os.pread(file, count - len(data), offset + len(data))):
        data += block
    return data


def read_range(url: str, first: int, end: int, size: int = -1) -> bytes:
    """The bytes from ``first`` to below ``end`` of a remote shard; ``size`` is the one indexed, −1 if unknown."""
    found = bytearray()  # a range is only as long as what comes
    with closing(range_blocks(url, first, end, size)) as blocks:
        for block in blocks:
            found += block
    return bytes(found)


def range_blocks(
    url: str, first: int, end: int, size: int = -1, versions: set[str | None] | None = None
) -> Generator[bytes | memoryview, None, None]:
    """The same, a block after the other; each is valid until the next.

    ``versions`` collects what servers say of the ranges of one shard, which must all be of the same file.
    """
    if url_kind(url) != "http":
        system, place = remote_file_system(url)
        for start in range(first, end, _REMOTE_BLOCK):
            read = partial(system.cat_file, place, start, min(start + _REMOTE_BLOCK, end))
            yield retried(url, read, _TRANSIENT)
        return
    buffer = memoryview(bytearray(min(end - first, _BLOCK)))
    with HttpFile(url, first, end, size) as file:
        while count := file.readinto(buffer):
            yield buffer[:count]
        if versions is not None:
            versions.add(file.version)
            if len(versions) > 1:
                raise MismatchError(f"{url} has changed while it was read: read it again")


def check_unchanged(url: str, size: int) -> None:
    """Refuse a remote shard of another size than the one indexed (−1: unknown); of HTTP, every answer tells it."""
    if url_kind(url) == "fsspec" and size >= 0:
        system, place = remote_file_system(url)
        check_size(url, size, retried(url, partial(system.size, place), _TRANSIENT))


class _Pipe(io.RawIOBase):
    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._pipe.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)


def _decoder(head: bytes) -> Callable[[Any], Any] | None:
    return next((decoder for magic, decoder in _DECODERS.items() if head.startswith(magic)), None)
