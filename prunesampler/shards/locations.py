"""Where the files of the wanted rows lie, in a few arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prunesampler.errors import ArgumentError
from prunesampler.shards.index import ShardIndex
from prunesampler.tables.columns import Int64s

__all__ = ["Locations"]


class Locations:
    """Rows of an index, ascending, in memory: some 40 bytes for each, 20 for each of its files, and its key.

    Args:
        index: of N rows.
        rows: (K,) ascending; None: all.

    Attributes:
        rows: (K,) int64.
        shards: (K,) int32, numbers.
        keys: (K,) strings.
        starts: (K + 1,) int64; row ``rows[i]`` has the files from ``starts[i]`` to below the next.
        extensions: the distinct ones, as the tars have them.
        codes: (M,) int32, positions in ``extensions``, of each file.
        offsets: (M,) int64, of its first byte.
        sizes: (M,) int64, in bytes.
    """

    def __init__(self, index: ShardIndex, rows: Int64s | None = None) -> None:
        self._all = rows is None
        self.rows = np.arange(len(index)) if rows is None else rows
        table = index.take(self.rows)
        self.shards = table["shard"].to_numpy()
        self.keys = pa.concat_arrays(table["key"].chunks)
        members = pa.concat_arrays(table["members"].chunks)
        files = members.flatten()
        self.starts = members.offsets.to_numpy().astype(np.int64) - members.offsets[0].as_py()
        encoded = files.field("extension").dictionary_encode()
        self.extensions: list[str] = encoded.dictionary.to_pylist()
        self.codes = encoded.indices.to_numpy()
        self.offsets = files.field("offset").to_numpy()
        self.sizes = files.field("size").to_numpy()

    def __len__(self) -> int:
        return len(self.rows)

    def places(self, rows: Int64s) -> Int64s:
        """Positions of rows among those held.

        Args:
            rows: (R,) in any order, each in [0, N).

        Raises:
            ArgumentError: one is not held.
        """
        if self._all:
            return rows
        places = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        missing = self.rows[places] != rows
        if missing.any():
            rule = "must be of the coreset: give the loader sampler=PrunedSampler(dataset, coreset=coreset)"
            raise ArgumentError("row", rule, int(rows[missing][0]))
        return places

    def files_of(self, places: Int64s) -> tuple[Int64s, Int64s]:
        """The files of several rows: where those of each begin, (P + 1,), and their numbers, (M,)."""
        counts = self.starts[places + 1] - self.starts[places]
        starts = np.append(0, np.cumsum(counts))
        return starts, np.arange(starts[-1]) + np.repeat(self.starts[places] - starts[:-1], counts)

    def names(self, places: Int64s, files: Int64s) -> pa.LargeStringArray:
        """The names that files have in their tars, each with the place of its row."""
        return self.named(self.keys.take(pa.array(places)), files)

    def named(self, keys: pa.LargeStringArray, files: Int64s) -> pa.LargeStringArray:
        """(M,) names of files, were these the keys of their rows."""
        extensions = pa.array(self.extensions, pa.large_string()).take(pa.array(self.codes[files]))
        return pc.binary_join_element_wise(keys, extensions, pa.scalar(".", pa.large_string()))

    def files(self, place: int) -> range:
        """The files of one of the rows held."""
        return range(int(self.starts[place]), int(self.starts[place + 1]))

    def name(self, place: int, file: int) -> str:
        """The name that a file has in its tar."""
        return f"{self.keys[place].as_py()}.{self.extensions[self.codes[file]]}"
