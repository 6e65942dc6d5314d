"""What takes the place of a loader's sampler once its set is pruned."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from prunesampler.capture.rows import row_stream
from prunesampler.errors import ArgumentError, StateError, UnsupportedError
from prunesampler.sampling.eligible import eligible_rows
from prunesampler.sampling.permutation import rank_length
from prunesampler.sampling.sampler import PrunedSampler
from prunesampler.tables.coreset import Coreset
from prunesampler.training.config import comparable
from prunesampler.training.policies.policy import Policy
from prunesampler.training.policies.prune_once import PruneOnce
from prunesampler.training.progress import Progress
from prunesampler.training.stream_swap import FixedOrder, StreamSwap

_SCORE_ONLY = (
    "give keep=None, which scores only (with row_fn=, a function from the batch to its rows, where it does not yield "
    "positions in the dataset), and have it draw the rows of select(loader.pruning.table) afterwards"
)
_STATEFUL = "torchdata.stateful_dataloader.sampler"
"""Where StatefulDataLoader has samplers of its own, which it puts in the place of torch's."""


@dataclass(frozen=True)
class BatchSplit:
    """What one process reads of the batches.

    Attributes:
        batch_size: rows of a batch before the split.
        drop_last: whether what does not fill a batch is left out.
        processes, index: how many there are, and which this is.
        cuts_batches: whether each batch is cut into one part for each process; else whole batches go round.
        even: whether all processes have as many batches, all full, what is missing taken from the beginning.
    """

    batch_size: int
    drop_last: bool
    processes: int = 1
    index: int = 0
    cuts_batches: bool = False
    even: bool = False

    @classmethod
    def of(cls, batch_sampler: Any) -> tuple[Any, BatchSplit | None]:
        """The batch sampler that makes the batches, and how they are split; None where that is not known."""
        if is_named(batch_sampler, "accelerate.data_loader", "BatchSamplerShard"):
            inner, shard = batch_sampler.batch_sampler, batch_sampler
            given = {"processes": shard.num_processes, "index": shard.process_index}
            given |= {"cuts_batches": shard.split_batches, "even": shard.even_batches}
        else:
            inner, given = batch_sampler, {}
        if type(inner) is BatchSampler or is_named(inner, _STATEFUL, "BatchSampler"):
            return inner, cls(inner.batch_size, inner.drop_last, **given)
        return inner, None

    @property
    def rows_per_step(self) -> int:
        """Rows that the processes read together while each reads one batch."""
        return self.batch_size if self.cuts_batches else self.batch_size * self.processes

    @property
    def fills_up(self) -> bool:
        """Whether a last batch may have rows that are repeated from the beginning."""
        return self.even and not self.drop_last

    def batches(self, draws: int) -> int:
        """Batches of this process, of so many rows that all of them read together."""
        whole, rest = divmod(draws, self.rows_per_step)
        if self.drop_last or not rest:
            return whole
        return whole + (self.even or self.real(draws, whole) > 0)

    def rows(self, draws: int) -> int:
        """Rows in them."""
        whole, batches = draws // self.rows_per_step, self.batches(draws)
        if self.even or batches == whole:
            return batches * self._size
        return whole * self._size + self.real(draws, whole)

    def real(self, draws: int, batch: int) -> int:
        """Rows of this process's batch that are not repeated from the beginning to fill it; they come first."""
        return min(max(draws - batch * self.rows_per_step - self.index * self._size, 0), self._size)

    @property
    def _size(self) -> int:
        return self.batch_size // self.processes if self.cuts_batches else self.batch_size


def is_named(value: Any, module: str, name: str) -> bool:
    """Whether a value is of this very class, known by name so that its package need not be there."""
    kind = type(value)
    return kind.__module__ == module and kind.__name__ == name


@dataclass(eq=False)
class SamplerSwap:
    """A loader's batch sampler and sampler as they were found, and how to order a coreset in their way.

    Attributes:
        batch_sampler: what makes the loader's batches, whose ``sampler`` is exchanged.
        split: how its batches are split over processes.
        base: the sampler that was found there.
        num_rows: rows of the dataset.
        eligible: int64, the rows that ``base`` can draw; None where that is all of them, ascending.
        draws: rows that one epoch draws, over all ranks.
        options: how a :class:`PrunedSampler` does what ``base`` does.
        follows: whether ``base`` takes its epoch from ``set_epoch``.
        counter: a framework's loader around this one, which counts its passes in ``iteration``; or None.
        batch_size: rows of a batch as the loader was made.
    """

    batch_sampler: Any
    split: BatchSplit
    base: Sampler[int]
    num_rows: int
    eligible: NDArray[np.int64] | None
    draws: int
    options: dict[str, Any] = field(default_factory=dict)
    follows: bool = False
    counter: Any = None

    def __post_init__(self) -> None:
        self.batch_size = self.split.batch_size

    @classmethod
    def of(cls, loader: DataLoader[Any], *, scores_only: bool = False) -> SamplerSwap | FixedOrder:
        """Understand the samplers of ``loader``; where nothing is ever exchanged unknown ones will do."""
        batch_sampler, split = BatchSplit.of(loader.batch_sampler)
        rows = len(loader.dataset)  # type: ignore[arg-type]
        if split is None:
            if scores_only and batch_sampler is loader.batch_sampler:
                return FixedOrder(loader, rows)
            raise UnsupportedError(
                f"the batch sampler {type(batch_sampler).__name__} makes up batches in a way of its own, which "
                f"pruning would break: use a plain torch.utils.data.BatchSampler, or {_SCORE_ONLY}"
            )
        if split.processes > 1 and not (split.even or split.drop_last):
            raise UnsupportedError(
                "with even_batches=False processes have different numbers of batches, and their scores could not be "
                "merged without waiting for one another: leave even_batches=True, or give the loader drop_last=True"
            )
        if split.fills_up and not getattr(loader, "in_order", True):
            raise UnsupportedError(
                "with in_order=False a batch that is filled up, as processes have equal numbers of batches, cannot be "
                "told from the others: give the loader in_order=True"
            )
        base: Any = batch_sampler.sampler
        follows = False
        options: dict[str, Any] = {}
        if _is(base, RandomSampler, "RandomSampler") or _is_seedable(base):
            draws, options = len(base), {"replacement": base.replacement}
        elif type(base) is SequentialSampler:
            draws, options = len(base), {"shuffle": False}
        elif type(base) is SubsetRandomSampler:
            draws = len(base)
        elif type(base) is WeightedRandomSampler:
            weights = _padded(base.weights.numpy(), rows)
            draws, options = len(base), {"sampling_weights": weights, "replacement": base.replacement}
        elif _is(base, DistributedSampler, "StatefulDistributedSampler"):
            draws, follows = len(base.dataset), True
            options = {"shuffle": base.shuffle, **_shared(base, split)}
        elif type(base) is PrunedSampler:
            draws, follows = base.draws, base.num_replicas > 1
            options = {"shuffle": base.shuffle, "replacement": base.replacement, **_shared(base, split)}
            if base.sampling_weights is not None:
                options["sampling_weights"] = _padded(base.sampling_weights, rows)
        elif scores_only and split.processes == 1:
            return FixedOrder(loader, rows)
        else:
            raise UnsupportedError(
                f"the sampler {type(base).__name__} is unknown, and its order cannot be reproduced for the kept rows: "
                f"use a sampler of torch.utils.data or prunesampler.PrunedSampler, or {_SCORE_ONLY}"
            )
        swap = cls(batch_sampler, split, base, rows, eligible_rows(base, rows), draws, options, follows=follows)
        swap._leave_out_tail()
        return swap

    def _leave_out_tail(self) -> None:
        """A sampler that splits ranks with drop_last, and does not shuffle, never draws its last rows."""
        drawn = self._local(self.draws) * self.num_replicas
        if not self.options.get("shuffle", True) and 0 < drawn < self.draws == self.num_eligible:
            order = np.arange(self.num_rows) if self.eligible is None else self.eligible
            self.eligible, self.draws = order[:drawn], drawn

    @property
    def num_eligible(self) -> int:
        """How many rows the base sampler can draw."""
        return self.num_rows if self.eligible is None else len(self.eligible)

    @property
    def num_replicas(self) -> int:
        """Ranks that the base sampler splits its rows over."""
        return int(self.options.get("num_replicas", 1))

    @property
    def rows_per_pass(self) -> int:
        """Rows that one pass of this rank's loader hands out now."""
        return self.split.rows(self._local(self.draws))

    @property
    def rows_per_step(self) -> int:
        """Rows of the order that all ranks read together while each reads one batch."""
        return self.split.rows_per_step * self.num_replicas

    def batches(self, draws: int | None = None, share: float = 1.0) -> int:
        """Batches of one pass of this rank's loader, at so many rows an epoch over all ranks.

        ``share`` is that of each fetched batch that is handed out.
        """
        return self._fetching(share).batches(self._local(self.draws if draws is None else draws))

    def fetch(self, share: float) -> None:
        """Fetch batches of which this share has as many rows as the loader's batches had."""
        self.split = self._fetching(share)
        self.batch_sampler.batch_size = self.split.batch_size

    def handed_out(self, rows: int, share: float) -> int:
        """How many rows of a fetched batch are handed out."""
        return self.batch_size if rows == self.split.batch_size else max(1, round(share * rows))

    def _fetching(self, share: float) -> BatchSplit:
        return replace(self.split, batch_size=round(self.batch_size / share))

    def real_rows(self, batch: int, draws: int | None = None) -> int:
        """Rows of this rank's batch, numbered in its pass, that do not only fill it up; they come first."""
        if not self.split.fills_up:  # batches may come in any order
            return self.split.batch_size
        return self.split.real(self._local(self.draws if draws is None else draws), batch)

    @property
    def epoch(self) -> int | None:
        """Which the next pass is, where the loop or its framework says so."""
        counts = self.base.epoch if self.follows else None  # type: ignore[attr-defined]
        return counts if self.counter is None else self.counter.iteration

    def count_by(self, counter: Any) -> None:
        """A framework's loader around this one counts the passes, in ``iteration``."""
        self.counter = counter

    def go_to(self, epoch: int) -> None:
        """Have the framework count on from there."""
        if self.counter is not None:
            self.counter.iteration = epoch

    def progress(self, epochs: int) -> Progress:
        """Of so many scoring epochs."""
        return Progress(epochs, self.rows_per_pass, self.batches())

    def draws_of(self, kept: int, epoch_length: Literal["kept", "full"]) -> int:
        """Rows that one epoch draws over all ranks, once so many rows are kept."""
        return self.draws if epoch_length == "full" else max(1, round(self.draws * kept / self.num_eligible))

    def sampler(
        self,
        coreset: Coreset,
        *,
        seed: int,
        epoch_length: Literal["kept", "full"],
        order: NDArray[np.int64] | None = None,
    ) -> PrunedSampler:
        """The sampler that draws the coreset in the way of the base sampler, or in a given order of its rows."""
        options: dict[str, Any] = {"num_replicas": 1, "rows": self.eligible, **self.options, "seed": seed}
        if order is not None:
            options |= {"rows": order, "shuffle": False, "replacement": False, "sampling_weights": None}
        draws = self.draws_of(len(coreset), epoch_length)
        return PrunedSampler(self.num_rows, coreset=coreset, epoch_length=draws, **options)

    def agreement(self) -> dict[str, Any]:
        """What must be alike on every rank, in plain data; and ``place``, which part is read here."""
        options = {name: comparable(value) for name, value in self.options.items() if name != "rank"}
        options["processes"] = self.split.processes
        return {
            "place": self.split.index if self.split.processes > 1 else self.options.get("rank", 0),
            "drawn": None if self.eligible is None else comparable(self.eligible),
            "sampler": {
                "type": type(self.base).__name__,
                "draws": self.draws,
                "seed": getattr(self.base, "seed", None),
                **options,
            },
            "batches": self.batches(),
        }

    def check_ranks(self, ranks: list[dict[str, Any]]) -> None:
        """Refuse ranks that draw on their own: pruned, all would draw the same rows, or some rows be drawn by none."""
        if len(ranks) == 1:
            return
        kind = type(self.base).__name__
        parts = max(self.num_replicas, self.split.processes)
        of_one_order = "num_replicas" in self.options or not self.options.get("shuffle", True)
        if parts == 1 and not of_one_order:
            raise UnsupportedError(
                f"each of {len(ranks)} ranks draws its rows on its own, by a {kind}, and once pruned all would draw "
                f"the same ones: give the loader sampler={self._split_form()}, and call its set_epoch(epoch) before "
                "every epoch; or num_replicas=1 in it, where all ranks are to read the same batches"
            )
        if any(rank["drawn"] != ranks[0]["drawn"] for rank in ranks):
            raise UnsupportedError(
                f"the ranks' samplers ({kind}) draw from different rows: give every rank the rows of all ranks, which "
                'are then split, in sampler=prunesampler.PrunedSampler(dataset, rows=rows, num_replicas="auto")'
            )
        places = [rank["place"] for rank in ranks]
        if {*places} != {*range(parts)}:
            raise UnsupportedError(
                f"{len(ranks)} ranks read the parts {places} of {parts}, so some rows are read by no rank, or by "
                f"several: give {kind} num_replicas and rank as torch.distributed says, or the loader sampler="
                'prunesampler.PrunedSampler(dataset, num_replicas="auto")'
            )
        for name, what in (("sampler", "the loader's sampler"), ("batches", "batches of a pass over the loader")):
            values = [rank[name] for rank in ranks]
            if any(value != values[0] for value in values):
                raise ArgumentError(what, "must be the same on every rank", values)

    def _split_form(self) -> str:
        """How our sampler does on all ranks together what the base sampler does on each."""
        if type(self.base) is SubsetRandomSampler:
            return 'prunesampler.PrunedSampler(dataset, rows=indices, num_replicas="auto")'
        if type(self.base) is WeightedRandomSampler:
            options = f"sampling_weights=weights, replacement={self.base.replacement}, epoch_length=rows_of_all_ranks, "
            return f'prunesampler.PrunedSampler(dataset, {options}num_replicas="auto")'
        return 'prunesampler.PrunedSampler(dataset, num_replicas="auto")'

    def exchange(self, sampler: Sampler[int]) -> None:
        """Have the loader's batches made from this sampler's rows, from the next pass on."""
        self.batch_sampler.sampler = sampler

    def leave(self) -> None:
        """The base sampler is back already."""

    def check_in_place(self, loader: DataLoader[Any], expected: Sampler[int]) -> None:
        """Notice that somebody exchanged the samplers since."""
        batch_sampler, _ = BatchSplit.of(loader.batch_sampler)
        found = getattr(batch_sampler, "sampler", None)
        if batch_sampler is not self.batch_sampler or found is not expected:
            raise StateError(
                f"the loader's sampler was exchanged after attach ({type(found).__name__} instead of "
                f"{type(expected).__name__}): call attach after the framework has prepared the loader"
            )

    def _local(self, draws: int) -> int:
        return rank_length(draws, num_replicas=self.num_replicas, drop_last=bool(self.options.get("drop_last", False)))


def _shared(base: Any, split: BatchSplit) -> dict[str, Any]:
    if base.num_replicas > 1 and split.processes > 1:
        raise UnsupportedError(
            f"{type(base).__name__} splits its rows over {base.num_replicas} ranks, and Accelerate splits them once "
            "more: give the loader that it prepares a sampler of all rows, such as shuffle=True"
        )
    return {"num_replicas": base.num_replicas, "rank": base.rank, "drop_last": base.drop_last}


def _padded(weights: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    """A weight for each row of the dataset; rows beyond those of the sampler are never drawn."""
    padded = np.zeros(max(rows, len(weights)))
    padded[: len(weights)] = weights
    return padded[:rows]


def _is_seedable(value: Any) -> bool:
    # Accelerate's, which takes its epoch from set_epoch; so does ours once it stands in its place.
    return is_named(value, "accelerate.data_loader", "SeedableRandomSampler")


def _is(value: Any, plain: type, stateful: str) -> bool:
    return type(value) is plain or is_named(value, _STATEFUL, stateful)


def swap_of(loader: Any, policy: Policy, seed: int, num_rows: int | None) -> SamplerSwap | StreamSwap:
    """What takes the place of a loader's order; ``num_rows`` of a stream whose rows a ``row_fn`` tells."""
    stream = row_stream(loader)
    scores_only = isinstance(policy, PruneOnce) and policy.selection is None
    if stream is not None:
        return StreamSwap(stream, policy, seed)
    if getattr(loader, "batch_sampler", None) is not None and not isinstance(loader.dataset, IterableDataset):
        return SamplerSwap.of(loader, scores_only=scores_only)
    if not scores_only:
        raise UnsupportedError(
            f"{type(loader).__name__} has no sampler whose order could be exchanged for the kept rows: give "
            "keep=None, which scores only, and have the loader leave out the rows that select(loader.pruning.table) "
            "does not keep"
        )
    if num_rows is None:
        rule = "must be given with row_fn= for a stream without a length: one id for each row, or {id: row}"
        raise ArgumentError("keys", rule, None)
    return FixedOrder(loader, num_rows)
