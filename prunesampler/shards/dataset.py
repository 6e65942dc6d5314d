"""Tar shards as a map-style dataset: a row in, its sample out."""

from __future__ import annotations

import functools
import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from prunesampler.capture.rows import OtherRows
from prunesampler.errors import ArgumentError, UnsupportedError, check_int, missing
from prunesampler.shards.index import ShardIndex
from prunesampler.shards.range_reader import Locations, RangeReader
from prunesampler.tables.columns import Int64s
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.fingerprint import check_same_dataset

Decode = str | Sequence[Any] | Callable[[dict[str, Any]], Any] | None
"""A decoder's name of webdataset ("pil", "torchrgb", …), several of its handlers, a function of a sample, or None."""


class ShardDataset(Dataset[Any], ABC):
    """Samples by their rows: what :class:`IndexedShards` and ``StreamedShards`` have in common.

    Attributes:
        index: of N rows.
    """

    def __init__(
        self, index: ShardIndex | str | os.PathLike[str], decode: Decode, transform: Callable[[Any], Any] | None
    ) -> None:
        if transform is not None and not callable(transform):
            raise ArgumentError("transform", "must be a function or None", transform)
        self._decode, self._transform = _checked(decode), transform
        self.index = index if isinstance(index, ShardIndex) else ShardIndex.load(index)

    @abstractmethod
    def read(self, rows: Int64s) -> tuple[Int64s, list[dict[str, Any]]]:
        """Samples as raw webdataset gives them, of (P,) rows in [0, N), which may repeat; and whose they are.

        These are ``rows`` themselves, unless some cannot be read and are left out.
        """

    @property
    def fingerprint(self) -> str:
        """The index's fingerprint."""
        return self.index.fingerprint

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> Any:
        """One sample; a negative row counts from the end.

        Raises:
            IndexError: not in [−N, N).
            ArgumentError: the coreset does not have the row.
        """
        items = self.__getitems__([row])
        if isinstance(items, OtherRows):
            raise UnsupportedError(f"row {row} cannot be read, as its shard was left out (on_missing)")
        return items[0]

    def __getitems__(self, rows: Iterable[int]) -> list[Any]:
        """Samples in the order of ``rows``, which may repeat.

        Raises:
            IndexError, ArgumentError: as of ``dataset[row]``.
        """
        length = len(self)
        wanted = np.fromiter((operator.index(row) for row in rows), np.int64)
        if ((wanted < -length) | (wanted >= length)).any():
            raise IndexError(f"rows must be in [0, {length}), got {wanted.tolist()!r:.200}")
        wanted = np.where(wanted < 0, wanted + length, wanted)
        read, samples = self.read(wanted)
        items = self._decoded(samples)
        if self._transform is not None:
            items = list(map(self._transform, items))
        return items if read is wanted else OtherRows(items, read)

    def _decoded(self, samples: list[dict[str, Any]]) -> list[Any]:
        if self._decode is None:
            return samples
        if callable(self._decode):
            return list(map(self._decode, samples))
        import webdataset

        return list(webdataset.decode(*self._decode)(iter(samples)))

    def _check_seekable(self, shards: Int64s) -> None:
        for shard in shards.tolist():
            if not self.index.seekable(shard):
                raise UnsupportedError(
                    f"{self.index.shards[shard]} is compressed or the output of a command, so no sample in it can be "
                    "read alone: make plain shards of it with prunesampler repack, or stream it"
                )


class IndexedShards(ShardDataset):
    """The samples of tar shards by their rows, read at their offsets, for local shards above all.

    Rows are those of the index, so samplers, scores and coresets mean the same samples here and in a stream.
    ``len()`` is the number of rows of the index, also with a coreset: rows outside the coreset keep their numbers and
    cannot be read. The sampler decides which rows an epoch reads::

        dataset = IndexedShards("index.parquet", "coreset.parquet", "torchrgb")
        sampler = PrunedSampler.from_parquet("coreset.parquet", dataset)
        loader = DataLoader(dataset, batch_size=64, sampler=sampler, num_workers=2)

    Shards may also lie behind HTTP or any URL that fsspec can read; then every batch costs requests, and streaming or
    repacking is the better choice. A batch is read in the order of shards and offsets, neighbours in one read.

    Args:
        index: of N rows, or its path.
        coreset: the rows that will be read, or the path of their file; only these are held in memory. None: all.
        decode: what becomes of a sample. None: ``{"__key__", "__url__", extension in lower case: bytes}``, as raw
            webdataset gives it. A name, or several handlers, of webdataset's ``decode``. Or a function of that dict;
            for spawned workers, one that can be imported.
        transform: called with each decoded sample; what it returns is the item.
        open_files: how many local files a process keeps open, at least 1.

    A loaded index, and a coreset given as a path, are sent to spawned workers as paths.

    Attributes:
        index: as given, loaded.
        fingerprint: of the index.

    Raises:
        ArgumentError: an argument breaks its rule.
        MismatchError: the coreset belongs to other shards. Also when reading, if a shard has changed since it was
            indexed.
        UnsupportedError: a wanted row lies in a compressed shard or the output of a command, where no sample can be
            read alone.
        ImportError: webdataset is not installed and ``decode`` names its decoders.

    >>> import tempfile, webdataset as wds
    >>> from prunesampler.shards.build import build_index
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with wds.TarWriter(f"{folder}/0.tar") as tar:
    ...         for key in "ab":
    ...             _ = tar.write({"__key__": key, "txt": f"I'm {key}"})
    ...     dataset = IndexedShards(build_index(f"{folder}/0.tar", progress=False))
    ...     len(dataset), [sample["txt"] for sample in dataset.__getitems__([1, 0])]
    (2, [b"I'm b", b"I'm a"])
    """

    def __init__(
        self,
        index: ShardIndex | str | os.PathLike[str],
        coreset: Coreset | str | os.PathLike[str] | None = None,
        decode: Decode = None,
        *,
        transform: Callable[[Any], Any] | None = None,
        open_files: int = 32,
    ) -> None:
        super().__init__(index, decode, transform)
        self._open_files = check_int("open_files", open_files, 1)
        self._coreset_path = os.path.abspath(coreset) if isinstance(coreset, str | os.PathLike) else None
        self._rows = None if coreset is None else load_coreset(coreset, self.index).rows
        self._check_seekable(np.unique(self._locations.shards))

    def read(self, rows: Int64s) -> tuple[Int64s, list[dict[str, Any]]]:
        """As of every shard dataset; ArgumentError for a row that is not of the coreset."""
        return rows, self._reader.samples(self._locations, self._locations.places(rows))

    def __getstate__(self) -> dict[str, Any]:
        derived = {"_locations", "_reader"} | ({"_rows"} if self._coreset_path else set())
        return {name: value for name, value in vars(self).items() if name not in derived}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        if self._coreset_path:
            self._rows = Coreset.load(self._coreset_path).rows

    @functools.cached_property
    def _locations(self) -> Locations:
        return Locations(self.index, self._rows)

    @functools.cached_property
    def _reader(self) -> RangeReader:
        return RangeReader(self.index, self._open_files)


def load_coreset(coreset: Coreset | str | os.PathLike[str], index: ShardIndex) -> Coreset:
    """A coreset of the rows of an index, given as it is or as a path."""
    loaded = coreset if isinstance(coreset, Coreset) else Coreset.load(coreset)
    check_same_dataset("coreset", (loaded.num_rows, loaded.fingerprint), (len(index), index.fingerprint))
    return loaded


def _checked(decode: Decode) -> tuple[Any, ...] | Callable[[dict[str, Any]], Any] | None:
    if decode is None or callable(decode):
        return decode
    handlers = (decode,) if isinstance(decode, str) else tuple(decode)
    try:
        import webdataset
    except ImportError as error:
        raise missing("webdataset", error) from error
    for handler in handlers:
        try:
            good = callable(handler) or (isinstance(handler, str) and bool(webdataset.imagehandler(handler)))
        except (AssertionError, KeyError, ValueError):
            good = False
        if not good:
            rule = "must be a function, None, or what webdataset's decode takes: names such as 'pil', or handlers"
            raise ArgumentError("decode", rule, handler)
    return handlers
