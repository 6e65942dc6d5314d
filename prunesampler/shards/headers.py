"""The files in a tar, from their headers, many times as fast as :mod:`tarfile` and with its meaning.

webdataset's own writer puts a PAX header before every file, for the fraction of a second in its time, so those are
read here too. Where :mod:`tarfile` would silently stop, at a damaged header or an early end, this refuses.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from prunesampler.errors import CorruptFileError, UnsupportedError
from prunesampler.shards.sources import Source
from prunesampler.tables.columns import Int64s

__all__ = ["Members", "tar_members"]

_BLOCK = 512
_END = bytes(_BLOCK)
_RUN = 1024  # headers that are verified together
_SMALL = 32
_FILE, _TIME, _LINE_END = b"0x\n"
_PLACES = 8 ** np.arange(10, -1, -1)
_RECORD = re.compile(rb"(\d{1,9}) ([^=\n]+)=")
_LONGEST_EXTENSION = 1 << 20
_LARGEST = 1 << 60
_FILES = (tarfile.REGTYPE, tarfile.CONTTYPE)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_GNU = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class Members(NamedTuple):
    """Files that follow one another in a tar.

    Attributes:
        names: (M,) as the tar has them.
        offsets: (M,) int64, of their first bytes.
        sizes: (M,) int64, in bytes.
        small: (M,) the content of files of at most 32 bytes, empty for others.
    """

    names: list[str]
    offsets: Int64s
    sizes: Int64s
    small: list[bytes]


def tar_members(source: Source) -> Iterator[Members]:
    """The regular files of a tar in their order, some at a time.

    Folders, links and devices are passed over, as webdataset does. The bytes of the files handed out last can be
    taken from the source in their order, also if it is streamed.

    Raises:
        CorruptFileError: it is no tar, a header is damaged, or it is cut short, be it only before the blocks of zeros
            that end an archive.
        UnsupportedError: a sparse file, whose bytes do not lie together; a name that is not UTF-8; a PAX header of
            more than 1 MiB, or one for all files that renames them.
    """
    position, before = 0, ""
    said: dict[str, bytes] = {}  # by extension headers, of the file that follows
    awaited = -1  # where that file should be
    while True:
        if not said:
            members, position, awaited = _usual_members(source, position, awaited)
            if members.names:
                before = members.names[-1]
                yield members
        block = source.take(position, _BLOCK)
        if len(block) < _BLOCK:
            raise _cut_short(source, position, before)
        if block == _END:
            if awaited == position:
                raise _damaged(source, position, before)
            source.drain()
            return
        name, size, kind = _parse(source, block, position, before)
        end = position + _BLOCK + (size + 511 & -_BLOCK)
        if kind in (*_PAX, tarfile.XGLTYPE, *_GNU):
            _extend(said, source, kind, position, size)
            awaited = end
        else:
            is_file = kind in _FILES or (kind == tarfile.AREGTYPE and not name.endswith(b"/"))
            if kind == tarfile.GNUTYPE_SPARSE or (is_file and "sparse" in said):
                raise UnsupportedError(f"{source.url}: {name!r} is sparse: write it anew without --sparse")
            if not is_file and kind in tarfile.SUPPORTED_TYPES:
                size = 0  # links may declare one, and have no bytes all the same
            elif "size" in said:
                size = int(said["size"])
            end = position + _BLOCK + (size + 511 & -_BLOCK)
            if size > _LARGEST:
                raise CorruptFileError(f"{source.url} is cut short: {name!r} in it should have {size} bytes")
            if is_file:
                before = _decoded(source, [said.get("path", name)])[0]
                small = source.take(position + _BLOCK, size) if size <= _SMALL else b""
                yield Members([before], np.array([position + _BLOCK]), np.array([size]), [small])
            said.clear()
        position = end


def _usual_members(source: Source, position: int, awaited: int) -> tuple[Members, int, int]:
    """Files with the simplest headers, up to the first header that is another.

    Before each may stand a PAX header with nothing but a time, which is taken by its content, its own checksum unread.
    """
    blocks: list[bytes] = []
    starts: list[int] = []
    data, base = source.data, source.base
    try:
        while len(blocks) < _RUN:
            start = position - base
            if start + 2 * _BLOCK > len(data):
                if source.streamed and blocks:
                    break  # these first: their bytes would be gone
                source.fill(position, 2 * _BLOCK)
                data, base, start = source.data, source.base, 0
                if len(data) < 2 * _BLOCK:
                    break
            size = int(data[start + 124 : start + 135], 8)
            kind = data[start + 156]
            if kind == _FILE:
                blocks.append(data[start : start + _BLOCK + _SMALL])
                starts.append(position)
                position += _BLOCK + (size + 511 & -_BLOCK)
            elif kind == _TIME and 8 < size <= _BLOCK and data.startswith(b"%d mtime=" % size, start + _BLOCK):
                if data[start + _BLOCK + size - 1] != _LINE_END:
                    break
                position += 2 * _BLOCK
                awaited = position
            else:
                break
    except ValueError:
        pass  # no plain size
    headers = np.frombuffer(b"".join(blocks), np.uint8).reshape(-1, _BLOCK + _SMALL)
    octal = headers[:, 124:154] - np.uint8(48)  # size, time, checksum
    total = headers[:, :_BLOCK].sum(1, dtype=np.uint32) - headers[:, 148:156].sum(1, dtype=np.uint32) + 8 * 32
    sound = (octal[:, :11] < 8).all(1) & (octal[:, 24:] < 8).all(1) & (total == octal[:, 24:] @ _PLACES[-6:])
    sound &= (headers[:, 135] == 0) | (headers[:, 135] == 32)
    sound &= (headers[:, 154] == 0) & (headers[:, 345] == 0)
    usual = len(blocks) if sound.all() else int(sound.argmin())
    if usual < len(blocks):
        position, awaited = starts[usual], -1
    names = np.ascontiguousarray(headers[:usual, :100]).view("S100").ravel().tolist()
    sizes = octal[:usual, :11] @ _PLACES
    small = [
        block[_BLOCK : _BLOCK + size] if size <= _SMALL else b""
        for block, size in zip(blocks, sizes.tolist(), strict=False)
    ]
    offsets = np.array(starts[:usual], np.int64) + _BLOCK
    return Members(_decoded(source, names), offsets, sizes, small), position, awaited


def _parse(source: Source, block: bytes, position: int, before: str) -> tuple[bytes, int, bytes]:
    """Name, size and type of any header, as :class:`tarfile.TarInfo` reads them."""
    try:
        stated, size = _number(block[148:156]), _number(block[124:136])
    except ValueError:
        raise _damaged(source, position, before) from None
    bytes_ = np.frombuffer(block[:148] + b" " * 8 + block[156:], np.int8)  # either sum was written, by some tar
    if stated not in (bytes_.view(np.uint8).sum(), bytes_.sum()) or size < 0:
        raise _damaged(source, position, before)
    name, prefix = _text(block[:100]), _text(block[345:500])
    return prefix + b"/" + name if prefix else name, size, block[156:157]


def _number(field: bytes) -> int:
    if field[0] in (0o200, 0o377):  # base 256, of GNU tar
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0o377 else 0)
    return int(_text(field).strip() or b"0", 8)


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _extend(said: dict[str, bytes], source: Source, kind: bytes, position: int, size: int) -> None:
    """Add what an extension header says; where several say the same, the first one holds."""
    if size > _LONGEST_EXTENSION:
        raise UnsupportedError(f"{source.url}: the header at byte {position} has an extension of {size} bytes")
    body = source.take(position + _BLOCK, size)
    if kind in _GNU:
        if kind == tarfile.GNUTYPE_LONGNAME:
            said.setdefault("path", _text(body))
        return
    records: dict[str, bytes] = {}
    at = 0
    while at < len(body) and body[at]:
        found = _RECORD.match(body, at)
        end = at + int(found[1]) if found else 0
        if found is None or not found.end() < end <= len(body) or body[end - 1 : end] != b"\n":
            raise _damaged(source, position, "")
        keyword, value = found[2], body[found.end() : end - 1]
        if keyword == b"path":
            records["path"] = value.rstrip(b"/")
        elif keyword == b"size":
            if not value.isdigit():
                raise _damaged(source, position, "")
            records["size"] = value
        elif keyword.startswith(b"GNU.sparse."):
            records["sparse"] = value
        at = end
    if records and kind not in _PAX:
        raise UnsupportedError(f"{source.url}: a global PAX header sets {sorted(records)} of all files")
    for keyword_said, value in records.items():
        said.setdefault(keyword_said, value)


def _decoded(source: Source, names: list[bytes]) -> list[str]:
    try:
        return [_text(name).decode() for name in names]
    except UnicodeDecodeError as error:
        raise UnsupportedError(f"{source.url}: the name {error.object!r} is not UTF-8") from None


def _damaged(source: Source, position: int, before: str) -> CorruptFileError:
    if not position:
        return CorruptFileError(f"{source.url} is no tar file")
    return CorruptFileError(f"{source.url} is damaged: no sound header at byte {position}, after {before!r}")


def _cut_short(source: Source, position: int, name: str) -> CorruptFileError:
    if not source.length:
        return CorruptFileError(f"{source.url} is empty, without even the end of an archive")
    if position > source.length:
        return CorruptFileError(
            f"{source.url} is cut short: it has {source.length} bytes, and {name!r} in it ends at byte {position}"
        )
    return CorruptFileError(
        f"{source.url} is cut short: after {name!r} there is no end of the archive. If it is whole all the same, "
        "append 1,024 zero bytes"
    )
