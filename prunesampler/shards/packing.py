"""The blocks of a tar."""

from __future__ import annotations

import numpy as np

from prunesampler.errors import MismatchError
from prunesampler.tables.columns import Int64s

__all__ = ["BLOCK", "END", "check_header", "header_sizes", "padded"]

BLOCK = 512
END = bytes(2 * BLOCK)
"""What an archive ends with."""

_LONGEST_NAME = 100
_LARGEST = 8**11  # sizes from here on are not octal


def padded(sizes: Int64s) -> Int64s:
    """What files of these sizes take, in bytes.

    >>> padded(np.array([0, 1, 512]))
    array([  0, 512, 512])
    """
    return sizes + (BLOCK - 1) & -BLOCK


def header_sizes(name_lengths: Int64s) -> Int64s:
    """Bytes of the headers that ``tarfile`` writes in GNU's format, for names of so many bytes.

    >>> header_sizes(np.array([9, 100, 101]))
    array([ 512,  512, 1536])
    """
    return np.where(name_lengths > _LONGEST_NAME, 2 * BLOCK + padded(name_lengths + 1), BLOCK)


def check_header(url: str, block: bytes | memoryview, name: str, size: int) -> None:
    """Refuse a file that is not the one that was indexed, as far as the 512 bytes before its content tell.

    Names that are long or not ASCII may stand elsewhere; then only the size is compared, if it is below 8 GiB.

    Raises:
        MismatchError: naming the shard.
    """
    block = bytes(block)
    encoded = name.encode()
    try:
        same = size >= _LARGEST or int(block[124:136].rstrip(b" \0"), 8) == size
    except ValueError:
        same = block[124:125] in (b"\x80", b"\xff")  # a size in base 256
    if len(encoded) <= _LONGEST_NAME and encoded.isascii():
        same = same and block[:_LONGEST_NAME].partition(b"\0")[0] == encoded
    if not same:
        raise MismatchError(f"{url} has changed since it was indexed: {name!r} is not where it was; index it anew")
