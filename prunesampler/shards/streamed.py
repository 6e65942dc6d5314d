"""Tar shards over a network as a map-style dataset, fetched a few at a time in an order that is computed."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch

from prunesampler.errors import ArgumentError, UnsupportedError, check_bytes, check_choice, check_int, check_number
from prunesampler.sampling.sampler import PrunedSampler
from prunesampler.shards.dataset import Decode, ShardDataset, load_coreset
from prunesampler.shards.index import ShardIndex
from prunesampler.shards.read_plan import ReadPlan, packed
from prunesampler.shards.shard_cache import ShardCache
from prunesampler.shards.shard_reader import ShardReader
from prunesampler.shards.urls import local_path
from prunesampler.tables.columns import Int64s
from prunesampler.tables.coreset import Coreset

OnMissing = Literal["error", "skip"]


class StreamedShards(ShardDataset):
    """The samples of tar shards by their rows, for shards behind a network: HTTP, or whatever fsspec reads.

    The order of an epoch is computed: shards are permuted and cut into blocks of ``shuffle_block``, and the rows of a
    block are permuted among one another. So what is read next is known. Workers fetch whole shards ahead into a folder
    that all processes of a machine share, and read samples there; of a shard of which little is kept they fetch only
    the kept bytes. Everything else is as of a map-style dataset: any ``DataLoader``, ``attach``, every policy,
    ``with_rows``, and a place in an epoch that is a few numbers, which any number of ranks and workers can go on from::

        dataset = StreamedShards("index.parquet", "coreset.parquet", "torchrgb")
        loader = DataLoader(dataset, batch_size=64, sampler=dataset.sampler(), num_workers=4)

    Local shards are read where they are.

    Args:
        index: of N rows, or its path.
        coreset: the rows that may be read, or the path of their file. None: all.
        decode: what becomes of a sample, as of :class:`prunesampler.shards.IndexedShards`.
        transform: called with each decoded sample; what it returns is the item.
        shuffle_block: shards that are mixed with one another, at least 1.
        cache_dir: a folder on a local disk, which may be shared with other runs and is kept after this one; by default
            one of this user in the system's folder for temporary files.
        cache_limit: bytes that the files in ``cache_dir`` take together, at most; a number, or text such as "20GB".
        predownload: shards that are fetched after the block that is read, at least 0; by default a block.
        ranges_below: share of a shard's bytes, in [0, 1]: where less is kept, the kept ranges are fetched and no more
            than a quarter of their bytes beside them. 0: always whole shards.
        on_missing: what a shard does that is not there, cannot be read in several attempts, or is not as it was
            indexed. ``"error"``: an error that names it. ``"skip"``: batches come without its rows, with a warning
            that counts them, and :attr:`skipped` names it; a batch of which nothing is left has rows of the shard
            that is read next.

    Attributes:
        index, coreset: as given, loaded.
        fingerprint: of the index.

    Raises:
        ArgumentError: an argument breaks its rule, or the cache cannot hold a block of shards.
        MismatchError: the coreset belongs to other shards.
        UnsupportedError: a wanted row lies in a compressed shard or the output of a command.
        WriteError: the cache's folder cannot be used.
        ImportError: webdataset is not installed and ``decode`` names its decoders.

    >>> import tempfile, webdataset as wds
    >>> from prunesampler.shards.build import build_index
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with wds.TarWriter(f"{folder}/0.tar") as tar:
    ...         for key in "ab":
    ...             _ = tar.write({"__key__": key, "txt": f"I'm {key}"})
    ...     dataset = StreamedShards(build_index(f"{folder}/0.tar", progress=False))
    ...     sorted(dataset[row]["txt"] for row in dataset.sampler(seed=1))
    [b"I'm a", b"I'm b"]
    """

    def __init__(
        self,
        index: ShardIndex | str | os.PathLike[str],
        coreset: Coreset | str | os.PathLike[str] | None = None,
        decode: Decode = None,
        *,
        transform: Callable[[Any], Any] | None = None,
        shuffle_block: int = 8,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_limit: int | str = "20GB",
        predownload: int | None = None,
        ranges_below: float = 0.1,
        on_missing: OnMissing = "error",
    ) -> None:
        super().__init__(index, decode, transform)
        block = check_int("shuffle_block", shuffle_block, 1)
        limit = check_bytes("cache_limit", cache_limit)
        self._options: dict[str, Any] = {
            "ahead": block if predownload is None else check_int("predownload", predownload),
            "ranges_below": check_number("ranges_below", ranges_below, 0, 1),
            "skip": check_choice("on_missing", on_missing, ("error", "skip")) == "skip",
        }
        self.coreset = None if coreset is None else load_coreset(coreset, self.index)
        rows = None if self.coreset is None else self.coreset.rows
        self._allowed = None if rows is None else torch.from_numpy(packed(rows, len(self))).share_memory_()
        self._plan = ReadPlan(self.index.first_rows, block, rows)
        held = np.flatnonzero(np.diff(self._plan.starts(rows)))
        self._check_seekable(held)
        remote = [shard for shard in held.tolist() if local_path(self.index.shards[shard]) is None]
        self._cache = None
        if remote:
            self._check_limit(limit, remote)
            self._cache = ShardCache(_own_folder() if cache_dir is None else os.fspath(cache_dir), limit)
        self._process: tuple[int, ShardReader] | None = None

    def sampler(
        self,
        *,
        nodes: int = 1,
        num_replicas: int | Literal["auto"] | None = "auto",
        rank: int | None = None,
        shuffle: bool = True,
        **options: Any,
    ) -> PrunedSampler:
        """The sampler that reads a few shards at a time: the rows of the coreset, or all, once an epoch.

        Args:
            nodes: machines that share no cache. Each then fetches shards of its own, and not all of them; ranks must
                be numbered machine by machine, equally many on each. After a resume on another number of machines
                leave it as it was: it is part of the order.
            num_replicas, rank: as of :class:`~prunesampler.PrunedSampler`; by default as torch.distributed says. 1
                where something else splits the rows, as Accelerate does.
            shuffle: False reads rows in ascending order.
            options: ``seed``, ``drop_last``, ``epoch_length``, ``rows`` of the :class:`~prunesampler.PrunedSampler`.

        Raises:
            ArgumentError: an argument breaks its rule.
        """
        plan = self._plan.for_nodes(check_int("nodes", nodes, 1))
        given = {"coreset": self.coreset, "shuffle": plan if shuffle else False, **options}
        sampler = PrunedSampler(self, num_replicas=num_replicas, rank=rank, **given)
        if nodes == 1:
            return sampler
        here, left = divmod(sampler.num_replicas, nodes)
        if left:
            raise ArgumentError("nodes", f"must divide the number of ranks, {sampler.num_replicas}", nodes)
        # ranks take positions in turn, and positions take nodes in turn
        turn = sampler.rank % here * nodes + sampler.rank // here
        return PrunedSampler(self, num_replicas=sampler.num_replicas, rank=turn, **given)

    @property
    def skipped(self) -> list[str]:
        """The URLs of the shards that were left out so far, by this process and its workers."""
        return [self.index.shards[shard] for shard in torch.nonzero(self._plan.skipped).flatten().tolist()]

    def read(self, rows: Int64s) -> tuple[Int64s, list[dict[str, Any]]]:
        """As of every shard dataset; ArgumentError for a row that is not of the coreset."""
        if self._allowed is not None:
            absent = rows[(self._allowed.numpy()[rows >> 3] >> (rows & 7)) & 1 == 0]
            if len(absent):
                rule = "must be of the coreset: give the loader sampler=dataset.sampler()"
                raise ArgumentError("row", rule, int(absent[0]))
        if self._process is None or self._process[0] != os.getpid():
            self._process = os.getpid(), ShardReader(self.index, self._plan, self._cache, **self._options)
        return self._process[1].read(rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_process": None}

    def _check_limit(self, limit: int, remote: list[int]) -> None:
        kept = 1.0 if self.coreset is None or self.coreset.keep >= self._options["ranges_below"] else self.coreset.keep
        sizes = sorted((max(self.index.records[shard].size, 0) for shard in remote), reverse=True)
        block = int(kept * sum(sizes[: self._plan.block + 1]))
        if block > limit:
            rule = (
                f"must hold shuffle_block={self._plan.block} shards and one more, {block:,} bytes of the largest here: "
                "give more, or mix fewer shards"
            )
            raise ArgumentError("cache_limit", rule, limit)


def _own_folder() -> str:
    folder = os.path.join(tempfile.gettempdir(), f"prunesampler-shards-{os.getuid()}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise UnsupportedError(f"{folder} belongs to somebody else: give cache_dir=")
    return folder
