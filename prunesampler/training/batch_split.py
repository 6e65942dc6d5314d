"""How the batches of a sampler are split over processes by something behind it, as Accelerate does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.utils.data import BatchSampler

__all__ = ["STATEFUL", "BatchSplit", "is_named"]

STATEFUL = "torchdata.stateful_dataloader.sampler"
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
        if type(inner) is BatchSampler or is_named(inner, STATEFUL, "BatchSampler"):
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
