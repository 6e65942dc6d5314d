"""The bytes of a tar: headers that say a name and a size, and nothing else that could differ between two runs."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prunesampler.errors import MismatchError
from prunesampler.tables.columns import Int64s

__all__ = [
    "BLOCK",
    "END",
    "check_header",
    "check_headers",
    "file_header",
    "file_headers",
    "header_sizes",
    "is_plain",
    "padded",
]

BLOCK = 512
END = bytes(2 * BLOCK)
"""What an archive ends with."""

_LONGEST_NAME = 100
_LARGEST = 8**11  # sizes from here on are not octal
_NAME, _SIZE, _SUM = slice(0, _LONGEST_NAME), slice(124, 135), slice(148, 154)
_SHIFTS = 3 * np.arange(10, -1, -1)

Blocks = npt.NDArray[np.uint8]


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
    return file_headers(pa.array([name], pa.large_string()), np.array([size])).tobytes()


def is_plain(names: pa.LargeStringArray, sizes: Int64s) -> npt.NDArray[np.bool_]:
    """Whether a header of 512 bytes says it all, in octal digits.

    >>> is_plain(pa.array(["a", "a", "a" * 101], pa.large_string()), np.array([1, 8**11, 1]))
    array([ True, False, False])
    """
    plain: npt.NDArray[np.bool_] = (pc.binary_length(names).to_numpy() <= _LONGEST_NAME) & (sizes < _LARGEST)
    return plain


def file_headers(names: pa.LargeStringArray, sizes: Int64s) -> Blocks:
    """:func:`file_header` of M files that are plain, as (M, 512) uint8."""
    headers = np.tile(_TEMPLATE, (len(names), 1))
    headers[:, _NAME], headers[:, _SIZE] = _name_fields(names), _octal(sizes, 11)
    sums = headers[:, : _SIZE.stop].sum(1, dtype=np.int64) + int(_TEMPLATE[_SIZE.stop :].sum())
    headers[:, _SUM] = _octal(sums, 6)
    headers[:, _SUM.stop] = 0
    return headers


def check_headers(
    urls: Sequence[str], shards: Int64s, blocks: Blocks, names: pa.LargeStringArray, sizes: Int64s
) -> None:
    """:func:`check_header` of M files.

    Args:
        urls: of shards.
        shards: (M,) positions in ``urls``.
        blocks: (M, 512) uint8, what stands before each file.
        names, sizes: (M,) of the files that were indexed.
    """
    same = is_plain(names, sizes)
    (plain,) = np.nonzero(same)
    same[plain] &= (blocks[plain, _NAME] == _name_fields(names.filter(same))).all(1)
    same[plain] &= (blocks[plain, _SIZE] == _octal(sizes[plain], 11)).all(1)
    for i in np.flatnonzero(~same).tolist():  # or it is written in another way
        check_header(urls[shards[i]], blocks[i].tobytes(), names[i].as_py(), int(sizes[i]))


def _name_fields(names: pa.LargeStringArray) -> Blocks:
    """(M, 100), of names of at most so many bytes."""
    fields = pc.ascii_rpad(names, width=_LONGEST_NAME, padding="\0")
    start = fields.offset * _LONGEST_NAME
    return np.frombuffer(fields.buffers()[2] or b"", np.uint8)[start:][: len(names) * _LONGEST_NAME].reshape(
        -1, _LONGEST_NAME
    )


def _octal(numbers: Int64s, digits: int) -> Blocks:
    return ((numbers[:, None] >> _SHIFTS[-digits:]) & 7 | ord("0")).astype(np.uint8)


def _template() -> Blocks:
    info = tarfile.TarInfo("")
    info.mode = 0o444
    block = np.frombuffer(info.tobuf(tarfile.GNU_FORMAT), np.uint8).copy()
    block[148:156] = ord(" ")  # a checksum is taken with blanks in its own place
    return block


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
