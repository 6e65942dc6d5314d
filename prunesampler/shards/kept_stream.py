"""A coreset in a webdataset pipeline: dropped samples are not decoded, and where possible not even read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import torch

from prunesampler.errors import ArgumentError, StateError, UnsupportedError, check_choice, check_int
from prunesampler.shards.dataset import load_coreset
from prunesampler.shards.index import ShardIndex
from prunesampler.shards.range_reader import Locations, RangeReader
from prunesampler.shards.urls import absolute_path, local_path
from prunesampler.shards.worker_split import Remainder, Slice, WorkerSamples, split_samples
from prunesampler.tables.columns import Int64s
from prunesampler.tables.coreset import Coreset

_MOST_SKIPPED = 1000, 100  # resampled shards in a row without a kept sample: at least, and for each shard of the index
_READ_BYTES = 1 << 20


class Keep:
    """The kept samples of tar shards, as stages of a webdataset pipeline. Made by :func:`keep`.

    ``kept.shards`` takes the place of the node and worker splitters: it passes on only the shards that hold kept
    samples for this worker. ``kept.samples`` takes the place of ``tarfile_to_samples`` and seeks over what is dropped.
    Where another stage reads the tars, put ``kept`` itself behind it, before ``decode``. Without ``kept.shards`` the
    pipeline's own splitters stay in force: then all shards are opened, and ranks are uneven.

    One object may be in one pass at a time in each process. The rows to keep lie in shared memory, so a switch reaches
    worker processes, persistent ones too, at their next pass.
    """

    def __init__(
        self, index: ShardIndex, *, remainder: Remainder, seed: int, rank: int | None, num_replicas: int | None
    ) -> None:
        self.index = index
        self._remainder, self._seed, self._rank, self._num_replicas = remainder, seed, rank, num_replicas
        self._bits = torch.zeros(-(-len(index) // 8) + 1, dtype=torch.uint8).share_memory_()
        self._counts = torch.zeros(len(index.shards), dtype=torch.int64).share_memory_()
        self._state = torch.zeros(2, dtype=torch.int64).share_memory_()  # epoch, whether a coreset is in force
        self._assigned: WorkerSamples | None = None
        self.switch(None)

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker does not know the process group of its rank.
        state = dict(vars(self))
        rank, num_replicas = _worker_of(self._rank, self._num_replicas)[:2]
        if num_replicas > 1:
            state.update(_rank=rank, _num_replicas=num_replicas)
        return state

    @property
    def active(self) -> bool:
        """Whether a coreset is in force."""
        return bool(self._state[1])

    def switch(self, coreset: Coreset | None) -> None:
        """Keep these samples from the next pass on; None keeps all.

        Raises:
            MismatchError: a coreset of another dataset.
        """
        counts = np.diff(self.index.first_rows)
        if coreset is None:
            self._bits.fill_(255)
        else:
            rows = load_coreset(coreset, self.index).rows
            kept = np.zeros(len(self._bits) * 8, dtype=bool)
            kept[rows] = True
            counts = np.diff(np.searchsorted(rows, self.index.first_rows))
            self._bits.copy_(torch.from_numpy(np.packbits(kept, bitorder="little")))
        self._counts.copy_(torch.from_numpy(counts))
        self._state[1] = coreset is not None

    def set_epoch(self, epoch: int) -> None:
        """Assign shards to ranks and workers anew, from the next pass on; give every rank the same epoch.

        Raises:
            ArgumentError: not an int >= 0.
        """
        self._state[0] = check_int("epoch", epoch)

    def shards(self, source: Iterable[Any]) -> Iterator[Any]:
        """The stage behind the list of shards: ``dict(url=…)`` in and out.

        A list that names a shard twice is taken for resampled shards, which are not split over ranks and workers.

        Raises:
            StateError: none of the shards holds a kept sample.
        """
        urls = iter(source)
        listed: dict[int, Any] = {}
        repeated = None
        for item in urls:
            number = self.index.shard_number(item["url"])
            if number in listed:
                repeated = item
                break
            listed[number] = item
        self._assigned = mine = self.assigned(None if repeated else list(listed))
        if repeated is None:
            yield from (item for number, item in listed.items() if number in mine)
            return
        skipped = 0
        for item in itertools.chain(listed.values(), [repeated], urls):
            if self.index.shard_number(item["url"]) in mine:
                skipped = 0
                yield item
                continue
            skipped += 1
            if skipped > _MOST_SKIPPED[0] + _MOST_SKIPPED[1] * len(self.index.shards):
                raise StateError(f"none of the last {skipped} resampled shards holds a kept sample, nor {item['url']}")

    def samples(self, source: Iterable[Any]) -> Iterator[Any]:
        """The stage that reads the tars: ``dict(url=…)`` in, samples with ``__key__`` and ``__url__`` out.

        Raises:
            OSError, MismatchError, CorruptFileError: a shard cannot be read, has changed, or is cut short.
            StateError: a pass ended without all samples that were assigned to this worker.
        """
        import webdataset

        self.begin()
        return (sample for _, sample in self.read(source, webdataset.tarfile_to_samples()))

    def read(self, source: Iterable[Any], stream: Callable[[Any], Iterable[Any]]) -> Iterator[tuple[int, Any]]:
        """Rows and samples of shards, ``dict(url=…)``: local ones are read at offsets, others by ``stream``."""
        with closing(RangeReader(self.index, open_files=1)) as reader:
            for item in source:
                url, shard = item["url"], self.index.shard_number(item["url"])
                if self._can_seek(url, shard):
                    yield from self._seek(reader, url, self._present.take(shard))
                    continue
                for sample in stream(iter([item])):
                    shard, row = shard_and_row(sample, self.index)
                    if self.takes(shard, row):
                        yield row, sample
        self.end()

    def __call__(self, source: Iterable[Any]) -> Iterator[Any]:
        """The stage behind the reading of the tars: samples with ``__key__`` and ``__url__`` in and out.

        Raises:
            ArgumentError: a sample is not in the index.
            StateError: a pass ended without all samples that were assigned to this worker.
        """
        self.begin()
        for sample in source:
            if self.takes(*shard_and_row(sample, self.index)):
                yield sample
        self.end()

    def begin(self) -> None:
        """A pass of this process begins."""
        self._assigned = None

    def takes(self, shard: int, row: int) -> bool:
        """Whether a sample is kept and assigned to this worker, which counts it as delivered."""
        return self._present.takes(shard, row)

    def end(self) -> None:
        """A pass of this process ends; StateError if not all samples that were assigned to it have come."""
        if self._assigned is not None:
            self._assigned.check()

    @property
    def _present(self) -> WorkerSamples:
        if self._assigned is None:
            self._assigned = self.assigned(None)
        return self._assigned

    def assigned(self, listed: list[int] | None) -> WorkerSamples:
        """The kept samples of the listed shards that this worker delivers; None: those of all shards, not split.

        Raises:
            StateError: none of the listed shards holds a kept sample.
        """
        counts = self._counts.numpy().copy()
        bits = self._bits.numpy()
        if listed is None:
            whole = [Slice(shard, 0, int(count)) for shard, count in enumerate(counts) if count]
            return WorkerSamples(self.index, bits, whole, None)
        if not counts[listed].sum():
            raise StateError(f"none of the {len(listed)} shards listed holds a kept sample")
        epoch = int(self._state[0])
        order = np.random.default_rng([self._seed, epoch]).permutation(np.sort(listed))
        rank, num_replicas, worker, num_workers = _worker_of(self._rank, self._num_replicas)
        slices = split_samples(
            order,
            counts[order],
            rank=rank,
            num_replicas=num_replicas,
            worker=worker,
            num_workers=num_workers,
            remainder=self._remainder,
        )
        return WorkerSamples(self.index, bits, slices, sum(one.stop - one.start for one in slices))

    def _can_seek(self, url: str, shard: int) -> bool:
        """Whether a URL is that of the index for this shard, a local tar that is not compressed."""
        known = self.index.shards[shard]
        return local_path(url) is not None and self.index.seekable(shard) and absolute_path(url) == absolute_path(known)

    def _seek(self, reader: RangeReader, url: str, rows: Int64s) -> Iterator[tuple[int, dict[str, Any]]]:
        """Ascending rows of one shard with their samples as webdataset would give them, about 1 MiB in one read."""
        if not len(rows):
            return
        locations = Locations(self.index, rows)
        reads = np.cumsum(locations.sizes)[locations.starts[1:] - 1] // _READ_BYTES
        for places in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(reads)) + 1):
            for row, sample in zip(rows[places].tolist(), reader.samples(locations, places), strict=True):
                sample.update(__url__=url, __local_path__=local_path(url))
                yield row, sample


def keep(
    coreset: Coreset | None,
    index: ShardIndex,
    *,
    remainder: Remainder = "pad",
    seed: int = 0,
    rank: int | None = None,
    num_replicas: int | None = None,
) -> Keep:
    """Stages that let only the kept samples through, before they are decoded, and open no shard without any.

    In a pipeline of stages, dropped samples of local shards are not even read; in the fluid form, webdataset reads
    them first::

        kept = prunesampler.shards.keep(coreset, index)
        wds.DataPipeline(wds.SimpleShardList(urls), kept.shards, kept.samples, wds.decode("pil"))
        dataset = wds.WebDataset(urls, nodesplitter=kept.shards, workersplitter=None, empty_check=False)
        dataset.compose(kept).decode("pil")

    Every kept sample comes once an epoch. Ranks get equal numbers of samples, and the workers of a rank numbers that
    differ by one at most, even where they are more than the shards.

    Args:
        coreset: rows of the index; None keeps all until :meth:`Keep.switch`.
        index: of the shards.
        remainder: what to do where the samples do not divide by the number of ranks. ``"pad"``: up to one sample a
            rank comes twice. ``"drop"``: as many are left out. ``"exact"``: neither, and ranks differ by one.
        seed: of the order in which shards are assigned, an int >= 0.
        rank, num_replicas: of this process; by default as webdataset finds them, from ``torch.distributed`` or the
            environment.

    Raises:
        ArgumentError: an argument breaks its rule.
        MismatchError: a coreset of another dataset.

    >>> import tempfile, webdataset as wds, prunesampler
    >>> from prunesampler.shards import build_index, keep
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for i in range(3):
    ...         with wds.TarWriter(f"{folder}/{i}.tar") as writer:
    ...             _ = writer.write({"__key__": f"{i}", "cls": i})
    ...     index = build_index(f"{folder}/*.tar", progress=False)
    >>> kept = keep(prunesampler.Coreset([1], num_rows=3), index)
    >>> [item["url"][-5:] for item in wds.DataPipeline(wds.SimpleShardList(index.shards), kept.shards)]
    ['1.tar']
    """
    if not isinstance(index, ShardIndex):
        raise ArgumentError("index", "must be a ShardIndex", index)
    check_choice("remainder", remainder, ("pad", "drop", "exact"))
    seed = check_int("seed", seed)
    if (rank is None) != (num_replicas is None):
        raise ArgumentError("rank", "must be given together with num_replicas", rank)
    if rank is not None and num_replicas is not None:
        check_int("rank", rank, 0, check_int("num_replicas", num_replicas, 1) - 1)
    if coreset is not None and not isinstance(coreset, Coreset):
        raise ArgumentError("coreset", "must be a Coreset or None", coreset)
    kept = Keep(index, remainder=remainder, seed=seed, rank=rank, num_replicas=num_replicas)
    if coreset is not None:
        kept.switch(coreset)
    return kept


def shard_and_row(sample: Any, index: ShardIndex) -> tuple[int, int]:
    """Where a sample of a webdataset pipeline is in the index; it is refused if it has lost its key or its shard."""
    if not isinstance(sample, dict) or "__key__" not in sample or "__url__" not in sample:
        raise UnsupportedError(
            "samples must have __key__ and __url__ here, as webdataset's tarfile_to_samples gives them: put this "
            "stage directly behind the one that reads the tars"
        )
    shard = index.shard_number(sample["__url__"])
    try:
        return shard, index.row(shard, sample["__key__"])
    except ArgumentError as error:
        rule = (
            f"{error.rule} (where rename_files= renames keys, leave it out and rename fields by .rename or .map behind "
            "the tars; where the shard has changed, build the index anew)"
        )
        raise ArgumentError("key", rule, error.value) from None


def _worker_of(rank: int | None = None, num_replicas: int | None = None) -> tuple[int, int, int, int]:
    """Rank, number of ranks, worker and number of workers of this process."""
    from webdataset.utils import pytorch_worker_info  # an optional dependency

    found = pytorch_worker_info()
    ranks = found[:2] if rank is None or num_replicas is None else (rank, num_replicas)
    return int(ranks[0]), int(ranks[1]), int(found[2]), int(found[3])
