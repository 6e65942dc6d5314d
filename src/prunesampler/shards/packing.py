"""The bytes of a tar: headers that say a name and a size, and nothing else that could differ between two runs."""

from __future__ import annotations

import tarfile

import numpy as np

from prunesampler.columns import Int64s
from prunesampler.errors import MismatchError

__all__ = ["BLOCK", "END", "check_header", "file_header", "header_sizes", "padded"]

BLOCK = 512
END = bytes(2 * BLOCK)
"""What an archive ends with."""

_LONGEST_NAME = 100
_LARGEST = 8**11  # sizes above are not octal


def padded(sizes: Int64s) -> Int64s:
    """What files of these sizes take, in bytes.

    >>> padded(np.array([0, 1, 512]))
    array([  0, 512, 512])
    """
    return sizes + (BLOCK - 1) & -BLOCK


def header_sizes(name_lengths: Int64s) -> Int64s:
    """How long :func:`file_header` is, for names of so many bytes.

    >>> header_sizes(np.array([9, 100, 101]))
    array([ 512,  512, 1536])
    """
    return np.where(name_lengths > _LONGEST_NAME, 2 * BLOCK + padded(name_lengths + 1), BLOCK)


def file_header(name: str, size: int) -> bytes:
    """The header of a regular file in GNU's format, names of more than 100 bytes before it; no time, no owner.

    >>> info = tarfile.TarInfo.frombuf(file_header("7.png", 1234), "utf-8", "strict")
    >>> info.name, info.size, info.mtime
    ('7.png', 1234, 0)
    """
    encoded = name.encode()
    if len(encoded) > _LONGEST_NAME or size >= _LARGEST:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o444
        return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")
    block = bytearray(_TEMPLATE)
    block[: len(encoded)] = encoded
    block[124:135] = b"%011o" % size
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)


def _template() -> bytes:
    info = tarfile.TarInfo("")
    info.mode = 0o444
    block = info.tobuf(tarfile.GNU_FORMAT)
    return block[:148] + b" " * 8 + block[156:]  # a checksum is taken with blanks in its own place


_TEMPLATE = _template()


def check_header(url: str, block: bytes, name: str, size: int) -> None:
    """Refuse a file that is not the one that was indexed, as far as the 512 bytes before its content tell.

    Long names and those outside ASCII stand elsewhere; then only the size is compared, if it is below 8 GiB.

    Raises:
        MismatchError: naming the shard.

    >>> check_header("0.tar", file_header("7.png", 1234), "7.png", 1234)
    """
    encoded = name.encode()
    found = block[:_LONGEST_NAME].partition(b"\0")[0]
    try:
        same = size >= _LARGEST or int(block[124:136].rstrip(b" \0"), 8) == size
    except ValueError:
        same = block[124:125] in (b"\x80", b"\xff")  # a size in base 256
    if not same or (len(encoded) <= _LONGEST_NAME and encoded.isascii() and found != encoded):
        raise MismatchError(f"{url} has changed since it was indexed: {name!r} is not where it was; index it anew")
