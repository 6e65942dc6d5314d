"""Which rows each epoch of a run was, or shall be, trained on, in which order, and its Parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from prunesampler.errors import ArgumentError, check_int
from prunesampler.tables.columns import integers, optional_text, row_numbers
from prunesampler.tables.parquet import Stored


class Schedule(Stored):
    """Rows for each epoch. Immutable.

    Args:
        epochs: one array of distinct row numbers in [0, num_rows) for each epoch, in the order in which they are
            trained on; at least one epoch.
        num_rows: size of the dataset.
        fingerprint: what the dataset is recognised by.

    Raises:
        ArgumentError: there is no epoch, one is empty, or a row repeats in it or is out of range.

    The file that :meth:`save` writes has the columns ``epoch`` int32 and ``row`` int64, in that order.

    >>> schedule = Schedule([[2, 0], [1]], num_rows=3)
    >>> len(schedule.epochs), schedule.epochs[0]
    (2, array([2, 0]))
    """

    _kind = "schedule"
    _provenance = ("num_rows", "fingerprint")
    key_column = shard_column = None

    def __init__(self, epochs: Sequence[npt.ArrayLike], *, num_rows: int, fingerprint: str | None = None) -> None:
        self.num_rows = check_int("num_rows", num_rows, 1)
        self.fingerprint = optional_text("fingerprint", fingerprint)
        self.epochs = [row_numbers("epochs", rows, self.num_rows) for rows in epochs]
        if not self.epochs or not all(len(rows) for rows in self.epochs):
            raise ArgumentError("epochs", "must be one epoch or more, each of one row or more", epochs)
        if any(len(np.unique(rows)) < len(rows) for rows in self.epochs):
            raise ArgumentError("epochs", "must name no row twice in one epoch", epochs)

    def _facts(self) -> dict[str, Any]:
        return {"epochs": len(self.epochs), "of": self.num_rows}

    @property
    def rows(self) -> npt.NDArray[np.int64]:  # type: ignore[override]
        """(K,) int64, the rows of all epochs one after another."""
        return np.concatenate(self.epochs)

    def _metadata(self) -> dict[str, Any]:
        return {**super()._metadata(), "num_epochs": len(self.epochs)}

    def _all_columns(self) -> dict[str, Any]:
        sizes = [len(rows) for rows in self.epochs]
        return {"epoch": np.repeat(np.arange(len(sizes), dtype=np.int32), sizes), "row": self.rows}

    @classmethod
    def _build(cls, metadata: dict[str, Any], columns: dict[str, Any]) -> Schedule:
        rows = columns["row"]
        epochs = integers("epoch", columns["epoch"], len(rows), lowest=0)
        if len(epochs) and (np.diff(epochs) < 0).any():
            raise ArgumentError("epoch", "must ascend", "an epoch after a later one")
        count = metadata["num_epochs"]
        if count > len(rows) or int(epochs[-1]) + 1 != count:
            raise ArgumentError("epoch", f"must be those of {count} epochs, each with a row", epochs)
        return cls(
            np.split(rows, np.searchsorted(epochs, np.arange(1, count))),
            **{name: metadata[name] for name in cls._provenance},
        )
