"""The rows that an earlier run wrote down, epoch by epoch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from prunesampler.errors import check_bool
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.schedule import Schedule
from prunesampler.tables.score_table import ScoreTable
from prunesampler.training.policies.policy import Policy


@dataclass(frozen=True)
class Scheduled(Policy):
    """Every epoch the rows that a :class:`~prunesampler.Schedule` names, in its order (see :class:`RecordHardest`).

    One proxy's training serves many runs so. After the last recorded epoch it begins again with the first. A loader
    of round(keep * B) rows a batch, where the recording run had B, trains on the very batches that were recorded, less
    what was left out of them. Ranks take turns row by row; a shard pipeline has an order of its own.

    Args:
        path: of ``schedule.parquet``, read at once.
        shuffle: read the rows of an epoch shuffled, or as the loader's sampler has it. Give it for a schedule of your
            own making: the rows of one in ascending order would else come as the dataset has them, class by class.

    Raises:
        ArgumentError: shuffle is no bool.
        FileNotFoundError, CorruptFileError, MismatchError: as :meth:`prunesampler.Schedule.load` says.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Schedule([[2, 0], [1]], num_rows=3).save(f"{folder}/schedule.parquet")
    ...     policy = Scheduled(f"{folder}/schedule.parquet")
    >>> [policy.draw(epoch, None, np.arange(3), seed=0).rows.tolist() for epoch in range(3)]
    [[0, 2], [1], [0, 2]]
    >>> policy.order(2)
    array([2, 0])
    """

    path: str | os.PathLike[str]
    shuffle: bool = False
    schedule: Schedule = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_bool("shuffle", self.shuffle)
        object.__setattr__(self, "schedule", Schedule.load(self.path))

    def draw(
        self,
        epoch: int,
        table: ScoreTable | None,
        rows: npt.NDArray[np.int64],
        seed: int,
        last: npt.NDArray[np.int64] | None = None,
    ) -> Coreset:
        """The rows of one epoch."""
        schedule = self.schedule
        return Coreset(self._rows(epoch), num_rows=schedule.num_rows, fingerprint=schedule.fingerprint)

    def num_draws(self, eligible: int, epoch: int) -> int:
        """As many as were written down."""
        return len(self._rows(epoch))

    def order(self, epoch: int) -> npt.NDArray[np.int64] | None:
        """The rows as they were written down; None under ``shuffle``."""
        return None if self.shuffle else self._rows(epoch)

    def _rows(self, epoch: int) -> npt.NDArray[np.int64]:
        return self.schedule.epochs[epoch % len(self.schedule.epochs)]

    def to_dict(self) -> dict[str, Any]:
        """What the schedule holds, wherever it lies."""
        return {"name": "Scheduled", "digest": self.schedule.digest, "shuffle": self.shuffle}
