"""Kept samples that follow one another in a new shard: where their files come to stand, and under which names."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prunesampler.shards.packing import header_sizes, padded
from prunesampler.shards.repack_plan import Layout
from prunesampler.tables.columns import Int64s

__all__ = ["Stretch"]


@dataclasses.dataclass(frozen=True, eq=False)
class Stretch:
    """Samples ``layout.order[first:end]`` with their M files.

    Attributes:
        places: (P,) positions in ``layout.locations``.
        starts: (P + 1,) int64; the sample at ``places[i]`` has the files from ``starts[i]`` to below the next.
        files: (M,) positions among the files of ``layout.locations``.
        sizes: (M,) int64, of the files, in bytes.
        headers: (M,) int64, of what stands before each, in bytes.
        ends: (M,) int64, where each file ends, filled up to whole blocks, in bytes from the first header.
    """

    layout: Layout
    first: int
    end: int

    @functools.cached_property
    def places(self) -> Int64s:
        """See the class."""
        return self.layout.order[self.first : self.end]

    @functools.cached_property
    def _files(self) -> tuple[Int64s, Int64s]:
        return self.layout.locations.files_of(self.places)

    @property
    def starts(self) -> Int64s:
        """See the class."""
        return self._files[0]

    @property
    def files(self) -> Int64s:
        """See the class."""
        return self._files[1]

    @functools.cached_property
    def sizes(self) -> Int64s:
        """See the class."""
        sizes: Int64s = self.layout.locations.sizes[self.files]
        return sizes

    @functools.cached_property
    def names(self) -> pa.LargeStringArray:
        """(M,) what the files are called."""
        owners = np.repeat(np.arange(self.first, self.end), np.diff(self.starts))
        return self.layout.locations.named(self.layout.keys.take(pa.array(owners)), self.files)

    @functools.cached_property
    def headers(self) -> Int64s:
        """See the class."""
        return header_sizes(pc.binary_length(self.names).to_numpy())

    @functools.cached_property
    def ends(self) -> Int64s:
        """See the class."""
        return np.cumsum(self.headers + padded(self.sizes))

    @property
    def offsets(self) -> Int64s:
        """(M,) int64, of the files' first bytes, from the first header."""
        return self.ends - padded(self.sizes)
