"""The sampler: which rows an epoch reads, in which order, on which rank."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sized
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch.utils.data import Sampler

from prunesampler.errors import ArgumentError, StateError, check_bool, check_int
from prunesampler.sampling.block_shuffle import BlockShuffle, BlockStream
from prunesampler.sampling.epochs import MAX_EPOCHS, EpochReader, RowIterator, RowOrder
from prunesampler.sampling.permutation import rank_length, stream_rows
from prunesampler.sampling.weighted import Weighted, draw_rows
from prunesampler.tables.columns import Int64s, row_numbers
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.fingerprint import fingerprint

_VERSION = 1
# With MAX_EPOCHS it keeps every position of a stream within int64.
_MAX_ROWS = 2**33


class PrunedSampler(Sampler[int]):
    """Rows of a dataset in a seeded order: all of them, or after :meth:`prune` those of a coreset.

    Takes the place of ``RandomSampler``, ``SequentialSampler`` (``shuffle=False``), ``DistributedSampler``
    (``num_replicas=``, ``rank=``), ``SubsetRandomSampler`` (``rows=``) and ``WeightedRandomSampler``
    (``sampling_weights=``). No order is held in memory, none draws from a global generator, and resuming is
    exact and instant at any size.

    The kept rows form one endless stream of passes, each in an order of its own, and an epoch is the next
    ``epoch_length`` positions of it. With one replica each ``iter()`` reads the next epoch, unless
    :meth:`set_epoch` was called since; with several, only :meth:`set_epoch` moves it. :meth:`prune` may be called
    before every epoch with another coreset: the epoch number and the seed go on. A running iterator is not affected
    by what happens to the sampler.

    Args:
        data_source: a dataset with a length, or its number of rows, 1 to 2**33.
        shuffle: without it rows come in the order of ``rows``, by default ascending. A
            :class:`~prunesampler.sampling.block_shuffle.BlockShuffle` mixes rows of a few shards at a time.
        seed: any int, the same on all ranks.
        coreset: prune from the start.
        num_replicas: ranks that split an epoch; "auto": as torch.distributed says; None: 1, and refused in a
            process group of several ranks, where it is not clear who splits the rows.
        rank: this rank; by default as torch.distributed says.
        drop_last: leave out the tail of an epoch that is too short for all ranks, instead of padding it from the
            beginning of the same epoch.
        epoch_length: positions of an epoch, all ranks together: "kept": one for each kept row; "full": one
            for each eligible row, so that pruning does not change the number of steps; or a number.
        generator: draw the seed from it, once, now; ``seed`` must then be left at 0.
        rows: the eligible rows, before pruning; by default all.
        sampling_weights: one for each row of the dataset, finite, >= 0: draw in proportion to them.
        replacement: whether rows are drawn independently of one another. Without, a pass holds each row
            once, with weights those above 0; a weighted epoch of fewer draws than that is a pass of its own.

    Attributes:
        data_source, generator: as given.
        num_rows: rows of the dataset.
        seed, shuffle, num_replicas, rank, drop_last, epoch_length, replacement: as given or found out.
        sampling_weights: (num_rows,) float64 as given, or None.

    Raises:
        ArgumentError: an argument breaks its rule.

    >>> sampler = PrunedSampler(10, seed=0)
    >>> sorted(sampler), len(sampler)
    ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 10)
    >>> sampler.prune(Coreset([2, 3, 5, 7], num_rows=10))
    >>> sorted(sampler), len(sampler)
    ([2, 3, 5, 7], 4)
    """

    def __init__(
        self,
        data_source: int | Sized,
        *,
        shuffle: bool | BlockShuffle = True,
        seed: int = 0,
        coreset: Coreset | None = None,
        num_replicas: int | Literal["auto"] | None = None,
        rank: int | None = None,
        drop_last: bool = False,
        epoch_length: Literal["kept", "full"] | int = "kept",
        generator: torch.Generator | None = None,
        rows: npt.ArrayLike | None = None,
        sampling_weights: npt.ArrayLike | None = None,
        replacement: bool = False,
    ) -> None:
        if generator is not None and seed != 0:
            raise ArgumentError("seed", "must be left at 0 if a generator is given", seed)
        self.data_source: Final = data_source
        self.num_rows: Final = _rows_of(data_source)
        self.generator = generator
        self.seed: Final = check_int("seed", seed, -(2**63), 2**64 - 1) if generator is None else _drawn(generator)
        self.num_replicas, self.rank = _replicas_and_rank(num_replicas, rank)
        self.drop_last: Final = check_bool("drop_last", drop_last)
        self.shuffle: Final = shuffle if isinstance(shuffle, BlockShuffle) else check_bool("shuffle", shuffle)
        self.replacement: Final = check_bool("replacement", replacement)
        if shuffle is not True and (replacement or sampling_weights is not None):
            raise ArgumentError("shuffle", "must be True with replacement or sampling_weights", shuffle)
        if isinstance(shuffle, BlockShuffle) and shuffle.num_rows != self.num_rows:
            raise ArgumentError("shuffle", f"must be of groups of {self.num_rows} rows", f"one of {shuffle.num_rows}")
        self.epoch_length: Final = _epoch_length(epoch_length)
        self._rows = None if rows is None else _distinct(rows, self.num_rows)
        self.sampling_weights: Final = None if sampling_weights is None else _weights(sampling_weights, self.num_rows)
        self._coreset = coreset
        self._stream = self._stream_of(coreset)
        # The sampler's position is that of the latest iterator, or else of the next one.
        self._reader: EpochReader | None = None
        self._epoch, self._start = 0, 0
        self._began: tuple[int, int] | None = None

    @classmethod
    def from_parquet(
        cls, path: str | os.PathLike[str], data_source: int | Sized | None = None, **options: Any
    ) -> PrunedSampler:
        """A sampler of the coreset in a file.

        Args:
            path: a coreset.parquet.
            data_source: the dataset, to be checked against the file, or its number of rows; by default the
                number in the file.
            options: as for the constructor.

        Raises:
            MismatchError: the file belongs to another dataset.
            CorruptFileError: the file is damaged.

        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "coreset.parquet")
        ...     Coreset([2, 3, 5], num_rows=10).save(path)
        ...     sorted(PrunedSampler.from_parquet(path))
        [2, 3, 5]
        """
        found = fingerprint(data_source) if isinstance(data_source, Sized) else None
        coreset = Coreset.load(path, found, None if data_source is None else _rows_of(data_source))
        return cls(coreset.num_rows if data_source is None else data_source, coreset=coreset, **options)

    @property
    def coreset(self) -> Coreset | None:
        """What the next iterator reads; None: all eligible rows."""
        return self._coreset

    @property
    def eligible(self) -> npt.NDArray[np.int64] | None:
        """(E,) the rows that can be drawn now; None: every row of the dataset."""
        kept = self._kept(self._coreset)
        if self.sampling_weights is None:
            return kept
        kept = np.arange(self.num_rows) if kept is None else kept
        return kept[self.sampling_weights[kept] > 0]

    @property
    def draws(self) -> int:
        """Positions of one epoch, all ranks together."""
        return self._stream.length

    @property
    def epoch(self) -> int:
        """The epoch that the next iterator reads."""
        if self._reader is None:
            return self._epoch
        return self._reader.epoch + (self.num_replicas == 1)

    @property
    def began(self) -> tuple[int, int]:
        """Epoch and global position at which the latest iterator began; without one, where the next will begin."""
        return (self._epoch, self._start) if self._began is None else self._began

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iterator reads, 0 to 2**30 - 1. The epoch of a loaded state keeps its position."""
        epoch = check_int("epoch", epoch, 0, MAX_EPOCHS - 1)
        if self._reader is not None or epoch != self._epoch:
            self._go_to(epoch, 0)

    def prune(self, coreset: Coreset | None) -> None:
        """Read only these rows from the next iterator on; None: all eligible rows again.

        The next iterator reads the whole of the epoch that it would have read anyway, so a policy may prune before
        each epoch. The same coreset again changes nothing.

        Raises:
            ArgumentError: the coreset belongs to another number of rows, keeps one that is not eligible, or has no
                row with a weight above 0. The sampler is as it was.
        """
        if _digest(coreset) != _digest(self._coreset):
            self._stream = self._stream_of(coreset)
            self._coreset = coreset
            self._go_to(self.epoch, 0)
            self._began = None

    def __len__(self) -> int:
        """How many rows this rank's next full epoch yields."""
        return self._length(0)

    def __iter__(self) -> RowIterator:
        """The next epoch's rows on this rank, as Python ints. Which epoch that is, is fixed by this call."""
        self._reader = EpochReader(
            self._stream,
            rank=self.rank,
            num_replicas=self.num_replicas,
            drop_last=self.drop_last,
            epoch=self.epoch,
            start=self._start if self._reader is None else 0,
        )
        self._began = self._reader.epoch, self._reader.start
        return self._reader.iterator()

    def __repr__(self) -> str:
        return (
            f"PrunedSampler(rows={self._stream.count}, of={self.num_rows}, seed={self.seed}, epoch={self.epoch}, "
            f"rank={self.rank}, num_replicas={self.num_replicas})"
        )

    def state_dict(self, position: int | None = None) -> dict[str, Any]:
        """Where the latest iterator is and what it reads, in plain ints, strs and bools; no communication.

        The coreset is in it as a digest: give the same one to :meth:`prune` before :meth:`load_state_dict`.

        Args:
            position: how many positions of the epoch are done, all ranks together; by default what this
                rank's latest iterator has yielded times the number of ranks. A loader that fetches ahead has
                taken more than was trained on.
        """
        reader = self._reader
        epoch, done = (self._epoch, self._start) if reader is None else (reader.epoch, reader.position)
        if position is not None:
            done = check_int("position", position, 0, 2 * _MAX_ROWS)
        epoch, done = self._settled(epoch, done)
        return {"version": _VERSION, "epoch": epoch, "position": done, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iterator goes on exactly there: it yields the unread rest of that epoch.

        The number of ranks may differ: the unread rest is split anew. ``len()`` stays that of a full epoch.

        Raises:
            StateError: the state is of another configuration or version, or not a state of a sampler.
        """
        own = self.state_dict()
        if not isinstance(state, Mapping) or state.keys() != own.keys():
            keys = sorted(state) if isinstance(state, Mapping) else type(state).__name__
            raise StateError(f"expected a sampler's state, which holds {sorted(own)}; got {keys}")
        for name, value in state.items():
            if not isinstance(value, int | str):
                raise StateError(f"the state is damaged: {name} must be an int or a str, got {type(value).__name__}")
        if state["version"] != _VERSION:
            found = state["version"]
            raise StateError(f"expected a state of version {_VERSION}; got version {found!r}: update prunesampler")
        different = [name for name, value in self._identity().items() if state[name] != value]
        if different:
            pairs = (f"{name} {state[name]!r} in the state and {own[name]!r} here" for name in different)
            cure = "; call prune() with the coreset of the state first" if "coreset" in different else ""
            raise StateError(f"the state is of another sampler: {', '.join(pairs)}{cure}")
        try:
            epoch = check_int("epoch", state["epoch"], 0, MAX_EPOCHS - 1)
            position = check_int("position", state["position"], 0, 2 * _MAX_ROWS)
        except ArgumentError as error:
            raise StateError(f"the state is damaged: {error}") from error
        self._go_to(*self._settled(epoch, position))
        self._began = None

    def _kept(self, coreset: Coreset | None) -> Int64s | None:
        if coreset is None:
            return self._rows
        if coreset.num_rows != self.num_rows:
            rule = f"must belong to a dataset of {self.num_rows} rows"
            raise ArgumentError("coreset", rule, f"one of {coreset.num_rows} rows")
        if self._rows is None:
            return coreset.rows
        kept = self._rows[np.isin(self._rows, coreset.rows)]
        if len(kept) != len(coreset):
            raise ArgumentError("coreset", "must keep eligible rows only", np.setdiff1d(coreset.rows, kept))
        return kept

    def _stream_of(self, coreset: Coreset | None) -> RowOrder:
        kept = self._kept(coreset)
        count = self.num_rows if kept is None else len(kept)
        full = self.num_rows if self._rows is None else len(self._rows)
        length = {"kept": count, "full": full}.get(self.epoch_length, self.epoch_length)
        numbers: Callable[[Int64s], Int64s]
        if self.sampling_weights is not None:
            weights = self.sampling_weights if kept is None else self.sampling_weights[kept]
            if not weights.any():
                raise ArgumentError("sampling_weights", "must be above 0 for a row that is kept", "zeros")
            # An epoch of fewer draws is a pass of its own, or later epochs would get what the heavy rows left.
            numbers = Weighted(weights, seed=self.seed, replacement=self.replacement, longest_pass=length)
        elif isinstance(self.shuffle, BlockShuffle):
            kept = None if kept is None else np.sort(kept)
            numbers = BlockStream(self.shuffle, kept, self.seed)
        elif self.replacement:
            numbers = functools.partial(draw_rows, size=count, seed=self.seed)
        else:
            numbers = functools.partial(stream_rows, size=count, seed=self.seed, shuffle=self.shuffle)
        return RowOrder(numbers, kept, count, length)

    def _identity(self) -> dict[str, Any]:
        """What must be equal for two samplers to have the same stream."""
        names = ("num_rows", "seed", "shuffle", "replacement", "epoch_length", "drop_last")
        coreset = {"kept": self._stream.count, "coreset": _digest(self._coreset)}
        blocks = {"shuffle": str(self.shuffle)} if isinstance(self.shuffle, BlockShuffle) else {}
        return {name: getattr(self, name) for name in names} | blocks | self._array_digests | coreset

    @functools.cached_property
    def _array_digests(self) -> dict[str, str]:
        arrays = {"rows": self._rows, "sampling_weights": self.sampling_weights}
        return {name: "" if a is None else hashlib.sha256(a.tobytes()).hexdigest() for name, a in arrays.items()}

    def _settled(self, epoch: int, position: int) -> tuple[int, int]:
        """The end of an epoch as the start of the next."""
        return (epoch, position) if position == 0 or self._length(position) else (epoch + 1, 0)

    def _length(self, start: int) -> int:
        return rank_length(self._stream.length, self.num_replicas, self.drop_last, start)

    def _go_to(self, epoch: int, start: int) -> None:
        self._reader, self._epoch, self._start = None, epoch, start


def _rows_of(data_source: int | Sized) -> int:
    size = len(data_source) if isinstance(data_source, Sized) else data_source
    try:
        return check_int("data_source", size, 1, _MAX_ROWS)
    except ArgumentError:
        rule = "must be a dataset with a length, or a number of rows, from 1 to 2**33"
        raise ArgumentError("data_source", rule, size) from None


def _epoch_length(value: Any) -> Any:
    if not isinstance(value, str):
        return check_int("epoch_length", value, 1, _MAX_ROWS)
    if value not in ("kept", "full"):
        raise ArgumentError("epoch_length", 'must be "kept", "full" or a number of rows', value)
    return value


def _distinct(values: npt.ArrayLike, num_rows: int) -> Int64s:
    rows = row_numbers("rows", values, num_rows)
    if len(np.unique(rows)) < len(rows):
        raise ArgumentError("rows", "must not repeat a row", values)
    return rows


def _weights(values: npt.ArrayLike, num_rows: int) -> npt.NDArray[np.float64]:
    weights = np.asarray(values).astype(np.float64)
    if weights.shape != (num_rows,):
        raise ArgumentError("sampling_weights", f"must hold {num_rows} values, one per row", weights.shape)
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ArgumentError("sampling_weights", "must be finite and >= 0", values)
    return weights


def _drawn(generator: torch.Generator) -> int:
    drawn = torch.empty((), dtype=torch.int64, device=generator.device).random_(generator=generator)
    return int(drawn.item())


def _replicas_and_rank(num_replicas: int | Literal["auto"] | None, rank: int | None) -> tuple[int, int]:
    joined = dist.is_available() and dist.is_initialized()
    world = dist.get_world_size() if joined else 1
    if num_replicas is None:
        if world > 1:
            rule = f'must be given among {world} ranks: 1 if something else splits the rows, or "auto"'
            raise ArgumentError("num_replicas", rule, None)
        num_replicas = 1
    elif num_replicas == "auto":
        if not joined and os.environ.get("WORLD_SIZE", "1") != "1":
            rule = 'can be "auto" only after torch.distributed.init_process_group'
            raise ArgumentError("num_replicas", rule, num_replicas)
        num_replicas = world
    elif isinstance(num_replicas, str):
        raise ArgumentError("num_replicas", 'must be "auto" or a number of ranks', num_replicas)
    num_replicas = check_int("num_replicas", num_replicas, 1, 2**31)
    if rank is None:
        if num_replicas not in (1, world):
            raise ArgumentError("rank", f"must be given for num_replicas={num_replicas} without a process group", None)
        rank = dist.get_rank() if num_replicas > 1 else 0
    return num_replicas, check_int("rank", rank, 0, num_replicas - 1)


def _digest(coreset: Coreset | None) -> str:
    return "" if coreset is None else coreset.digest
