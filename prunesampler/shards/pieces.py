"""Pieces of new shards, made in memory: headers all at once, contents read to their places."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from prunesampler.shards.contents import Contents
from prunesampler.shards.packing import BLOCK, END, file_header, file_headers, is_plain
from prunesampler.shards.repack_plan import Layout
from prunesampler.shards.stretches import Stretch

__all__ = ["pieces"]

_BYTES = 8 << 20
_SAMPLES = 1024
_UP_TO = np.tril(np.full((BLOCK, BLOCK), 255, np.uint8), -1)
"""Masks of a block, by how many of its bytes are a file's."""


def pieces(layout: Layout, number: int) -> Iterator[memoryview]:
    """The bytes of a new shard, some MiB at a time; each piece is good until the next is asked for.

    Args:
        layout: the plan.
        number: of the new shard.

    Raises:
        OSError, MismatchError, CorruptFileError: see :meth:`Contents.put`.
    """
    buffer = np.empty(0, np.uint8)
    first, end = layout.first[number : number + 2].tolist()
    with Contents(layout.index, layout.locations) as contents:
        for here, there in _cuts(layout, first, end):
            stretch = Stretch(layout, here, there)
            size = int(stretch.ends[-1])
            if len(buffer) < size:
                buffer = np.empty(max(size, _BYTES), np.uint8)
            _fill(stretch, buffer[:size], contents)
            yield buffer[:size].data
    yield memoryview(END)


def _cuts(layout: Layout, first: int, end: int) -> Iterator[tuple[int, int]]:
    ends = np.cumsum(layout.content_sizes[first:end])
    here = first
    while here < end:
        before = int(ends[here - first - 1]) if here > first else 0
        there = first + int(np.searchsorted(ends, before + _BYTES, "right"))
        there = min(max(there, here + 1), here + _SAMPLES, end)
        yield here, there
        here = there


def _fill(stretch: Stretch, buffer: npt.NDArray[np.uint8], contents: Contents) -> None:
    blocks, sizes, offsets = buffer.reshape(-1, BLOCK), stretch.sizes, stretch.offsets
    contents.put(stretch.places, buffer, offsets)
    (cut,) = np.nonzero(sizes % BLOCK)
    blocks[stretch.ends[cut] // BLOCK - 1] &= _UP_TO[sizes[cut] % BLOCK]
    names, starts = stretch.names, offsets - stretch.headers
    plain = is_plain(names, sizes)
    blocks[starts[plain] // BLOCK] = file_headers(names.filter(plain), sizes[plain])
    for i in np.flatnonzero(~plain).tolist():
        header = file_header(names[i].as_py(), int(sizes[i]))
        buffer[starts[i] : offsets[i]] = np.frombuffer(header, np.uint8)
