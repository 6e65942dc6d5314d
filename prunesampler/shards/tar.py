"""The files in a tar, read from its headers: many times as fast as :mod:`tarfile`, and with the same meaning.

Usual headers are checked a thousand at a time. They include the PAX header with a time that webdataset's writer puts
before every file. All others (long names, other PAX records, old formats) are read by :mod:`tarfile` itself. Where
tarfile would silently stop, at a damaged header or an early end, this refuses.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prunesampler.errors import CorruptFileError, MismatchError, UnsupportedError
from prunesampler.shards.sources import Source
from prunesampler.tables.columns import Int64s

BLOCK = 512
_RUN = 1024  # headers that are checked together
_SMALL = 32
_FILE, _PAX, _LINE_END = b"0x\n"
_PLACES = 8 ** np.arange(10, -1, -1)
_PAX_TYPES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_PAX_RECORD = re.compile(rb"(\d{1,9}) ([^=\n]+)=")
_PAX_SIZE = re.compile(rb"[0-9]{1,20}")
_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_META = re.compile(r"__[^/]*__($|/)")


class Members(NamedTuple):
    """M files that follow one another in a tar."""

    names: list[str]
    offsets: Int64s  # of their first bytes
    sizes: Int64s  # in bytes
    small: list[bytes]  # content of files of at most 32 bytes; empty for larger ones


def tar_members(source: Source) -> Iterator[Members]:
    """The regular files of a tar in their order, some at a time.

    Folders, links and devices are skipped, as webdataset does. The files yielded last can be read from the source in
    their order, also from a stream.
    """
    archive = tarfile.TarFile(fileobj=io.BytesIO(bytes(2 * BLOCK)), encoding="utf-8")
    position, before = 0, ""
    while True:
        members, position = _usual_members(source, position)
        if members.names:
            before = members.names[-1]
            yield members
        block = source.take(position, BLOCK)
        if len(block) < BLOCK:
            raise _cut_short(source, position, before)
        if block == bytes(BLOCK):
            source.drain()
            return
        member = _unusual_member(source, archive, position, before)
        position = archive.offset
        if member.isreg():
            before, offset = member.name, member.offset_data
            small = source.take(offset, member.size) if member.size <= _SMALL else b""
            yield Members([before], np.array([offset]), np.array([member.size]), [small])


def _usual_members(source: Source, position: int) -> tuple[Members, int]:
    # Files with the simplest headers, and the position of the first header that is another. Before each may stand a
    # PAX header that holds only a time. It is recognised by its content, without its checksum.
    blocks: list[bytes] = []
    firsts: list[int] = []  # of a file's headers, the PAX one included
    starts: list[int] = []
    data, base, first = source.data, source.base, position
    try:
        while len(blocks) < _RUN:
            start = position - base
            if start + 2 * BLOCK > len(data):
                if source.streamed and blocks:
                    break  # hand these out first: their bytes would be gone
                source.fill(first, position - first + 2 * BLOCK)
                data, base, start = source.data, source.base, position - first
                if len(data) < start + 2 * BLOCK:
                    break
            size = int(data[start + 124 : start + 135], 8)
            kind = data[start + 156]
            if kind == _FILE:
                blocks.append(data[start : start + BLOCK + _SMALL])
                firsts.append(first)
                starts.append(position)
                first = position = position + BLOCK + (size + 511 & -BLOCK)
            elif kind == _PAX and 8 < size <= BLOCK and data.startswith(b"%d mtime=" % size, start + BLOCK):
                if first != position or data[start + BLOCK + size - 1] != _LINE_END:
                    break
                position += 2 * BLOCK
            else:
                break
    except ValueError:
        pass  # not a plain size
    if not blocks:
        return Members([], np.zeros(0, np.int64), np.zeros(0, np.int64), []), first
    headers = np.frombuffer(b"".join(blocks), np.uint8).reshape(-1, BLOCK + _SMALL)
    octal = headers[:, 124:154] - np.uint8(48)  # size, time, checksum
    total = headers[:, :BLOCK].sum(1, dtype=np.uint32) - headers[:, 148:156].sum(1, dtype=np.uint32) + 8 * 32
    sound = (octal[:, :11] < 8).all(1) & (octal[:, 24:] < 8).all(1) & (total == octal[:, 24:] @ _PLACES[-6:])
    sound &= (headers[:, 135] == 0) | (headers[:, 135] == 32)
    sound &= (headers[:, 154] == 0) & (headers[:, 345] == 0)
    usual = len(blocks) if sound.all() else int(sound.argmin())
    names = np.ascontiguousarray(headers[:usual, :100]).view("S100").ravel().tolist()
    sizes = octal[:usual, :11] @ _PLACES
    small = [b[BLOCK:][:n] if n <= _SMALL else b"" for b, n in zip(blocks, sizes.tolist(), strict=False)]
    try:
        decoded = [name.partition(b"\0")[0].decode() for name in names]
    except UnicodeDecodeError as error:
        raise UnsupportedError(f"{source.url}: the name {error.object!r} is not UTF-8") from None
    members = Members(decoded, np.array(starts[:usual], np.int64) + BLOCK, sizes, small)
    return members, firsts[usual] if usual < len(blocks) else first


class _HeaderFile(io.RawIOBase):
    """The headers of one member, as tarfile reads them: a header, the body of an extension header, a header, …"""

    def __init__(self, source: Source, position: int) -> None:
        self._source, self._position = source, position
        self.reads: list[bytes] = []
        self.ended = False

    def tell(self) -> int:
        return self._position

    def read(self, count: int = -1) -> bytes:
        url, position = self._source.url, self._position
        if count > 1 << 20:
            raise UnsupportedError(f"{url}: the header at byte {position - BLOCK} has an extension of {count} bytes")
        self.reads.append(self._source.take(position, max(count, 0)))
        self.ended |= len(self.reads[-1]) < count
        self._position += len(self.reads[-1])
        return self.reads[-1]


def _unusual_member(source: Source, archive: tarfile.TarFile, position: int, before: str) -> tarfile.TarInfo:
    """Any member, with the extension headers before it; moves ``archive.offset`` to the header after it."""
    file = _HeaderFile(source, position)
    archive.fileobj = file
    try:
        member = tarfile.TarInfo.fromtarfile(archive)
    except (tarfile.HeaderError, ValueError, IndexError):
        at = file.tell() if file.ended else position
        raise (_cut_short if file.ended else _damaged)(source, at, before) from None
    pax = [body for head, body in zip(file.reads[::2], file.reads[1::2], strict=False) if head[156:157] in _PAX_TYPES]
    if member.size < 0 or not all(map(_sound_records, pax)):
        raise _damaged(source, position, before)
    if member.issparse():
        raise UnsupportedError(f"{source.url}: {member.name!r} is sparse: write it anew without --sparse")
    if for_all := sorted({"path", "size"}.intersection(archive.pax_headers)):
        raise UnsupportedError(f"{source.url}: a global PAX header sets {for_all} of all files")
    if member.size > 1 << 60:
        raise CorruptFileError(f"{source.url} is cut short: {member.name!r} in it should have {member.size} bytes")
    try:
        member.name.encode()
    except UnicodeEncodeError:
        name = member.name.encode("utf-8", "surrogateescape")
        raise UnsupportedError(f"{source.url}: the name {name!r} is not UTF-8") from None
    return member


def _sound_records(body: bytes) -> bool:
    """Whether a PAX header is sound to its end. tarfile stops at a record that it does not understand."""
    at = 0
    while at < len(body) and body[at]:
        found = _PAX_RECORD.match(body, at)
        end = at + int(found[1]) if found else 0
        if found is None or not found.end() < end <= len(body) or body[end - 1] != _LINE_END:
            return False
        if found[2] == b"size" and not _PAX_SIZE.fullmatch(body, found.end(), end - 1):
            return False
        at = end
    return True


def _damaged(source: Source, position: int, before: str) -> CorruptFileError:
    if not position:
        return CorruptFileError(f"{source.url} is not a tar file")
    return CorruptFileError(f"{source.url} is damaged: no sound header at byte {position}, after {before!r}")


def _cut_short(source: Source, position: int, before: str) -> CorruptFileError:
    if not source.length:
        return CorruptFileError(f"{source.url} is empty, without even the end of an archive")
    if position > source.length:
        return CorruptFileError(
            f"{source.url} is cut short: it has {source.length} bytes, and {before!r} in it ends at byte {position}"
        )
    return CorruptFileError(
        f"{source.url} is cut short: after {before!r} there is no end of the archive. If nothing is missing, append "
        "1,024 zero bytes"
    )


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension by webdataset's rule: the extension begins at the first dot after the last slash.

    None for what webdataset skips: names without key or dot, and those that begin with ``__…__``.
    """
    if name.startswith("__") and (("/" not in name and name.endswith("__")) or _META.match(name)):
        return None
    found = _NAME.match(name)
    return (found[1], found[2]) if found else None


def is_reserved(extension: str) -> bool:
    """Whether a file's extension, as ``__key__``, is what webdataset calls something of its own in a sample."""
    return extension.startswith("__") and extension.endswith("__")


def split_names(names: pa.LargeStringArray) -> tuple[Int64s, pa.LargeStringArray, pa.DictionaryArray]:
    """:func:`split_name` of many names: the positions of those in samples, their keys, their extensions."""
    halves = pc.split_pattern(names, ".", max_splits=1).flatten()
    if len(halves) == 2 * len(names):
        first = np.arange(0, len(halves), 2)
        keys, extensions = halves.take(pa.array(first)), halves.take(pa.array(first + 1)).dictionary_encode()
        corner = pc.match_substring_regex(keys, r"^__|/$|\n|^$")
        if not pc.any(corner).as_py() and not any("/" in e or "\n" in e for e in extensions.dictionary.to_pylist()):
            return np.arange(len(names)), keys, extensions
    split = [(place, *parts) for place, name in enumerate(names.to_pylist()) if (parts := split_name(name))]
    keys = pa.array([key for _, key, _ in split], pa.large_string())
    extensions = pa.array([extension for _, _, extension in split], pa.large_string())
    return np.array([place for place, _, _ in split], np.int64), keys, extensions.dictionary_encode()


def padded(sizes: Int64s) -> Int64s:
    """Sizes in bytes, rounded up to whole blocks."""
    return sizes + (BLOCK - 1) & -BLOCK


def check_header(url: str, block: bytes | memoryview, name: str, size: int) -> None:
    """Refuse a file that is not the one that was indexed, as far as the 512 bytes before its content tell.

    Names that are long or not ASCII may stand elsewhere; then only the size is compared, if it is below 8 GiB.
    """
    block, encoded = bytes(block), name.encode()
    if block.startswith(encoded + b"\0") and block[124:136] == b"%011o\0" % size:
        return
    try:
        same = size >= 8**11 or int(block[124:136].rstrip(b" \0"), 8) == size
    except ValueError:
        same = block[124:125] in (b"\x80", b"\xff")  # a size in base 256
    if len(encoded) <= 100 and encoded.isascii():
        same = same and block[:100].partition(b"\0")[0] == encoded
    if not same:
        raise MismatchError(f"{url} has changed since it was indexed: {name!r} is not where it was; index it anew")
