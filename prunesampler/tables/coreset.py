"""The rows that are kept, and their Parquet file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from prunesampler.errors import ArgumentError, check_int
from prunesampler.tables.columns import floats, identities, json_object, optional_text, row_layout
from prunesampler.tables.parquet import Stored


class Coreset(Stored):
    """The rows to train on, with optional weights and provenance. Immutable.

    Args:
        rows: (K,) distinct row numbers in [0, num_rows), in any order; at least one.
        num_rows: size of the dataset, N.
        weights: (K,) positive floats, in the order of ``rows``; None, or all 1, means none.
        keys: (K,) str or int that name the samples outside of this dataset.
        shards: (K,) names of the tar shards that the samples lie in.
        fingerprint: what the dataset is recognised by.
        scores_digest: digest of the table that the rows were selected from.
        selection: JSON, how they were selected.

    Raises:
        ArgumentError: there are no rows, one repeats or is out of range; another column breaks its rule.

    ``rows`` is int64 and ascending, ``weights`` float32 or None; both are copies, read-only. The file that
    :meth:`save` writes has the columns ``row`` int64, and ``weight`` float32, ``shard``, ``key`` where there are any.

    >>> import tempfile
    >>> coreset = Coreset([4, 0, 2], num_rows=6)
    >>> coreset.rows, coreset.keep
    (array([0, 2, 4]), 0.5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     coreset.save(f"{folder}/coreset.parquet")
    ...     Coreset.load(f"{folder}/coreset.parquet")
    Coreset(kept=3, of=6, method=None)
    """

    _kind = "coreset"
    _provenance = ("num_rows", "fingerprint", "scores_digest", "selection")

    def __init__(
        self,
        rows: npt.ArrayLike,
        *,
        num_rows: int,
        weights: npt.ArrayLike | None = None,
        keys: Any = None,
        shards: Any = None,
        fingerprint: str | None = None,
        scores_digest: str | None = None,
        selection: Mapping[str, Any] | None = None,
    ) -> None:
        self.num_rows = check_int("num_rows", num_rows, 1)
        self.fingerprint = optional_text("fingerprint", fingerprint)
        self.scores_digest = optional_text("scores_digest", scores_digest)
        self.selection = json_object("selection", selection)
        self.rows, column = row_layout(rows, self.num_rows)
        self.weights: npt.NDArray[np.float32] | None = column("weights", weights, floats)
        if self.weights is not None:
            if not (self.weights > 0).all():
                raise ArgumentError("weights", "must be positive", weights)
            if (self.weights == 1).all():
                self.weights = None
        self.key_column = column("keys", keys, identities)
        self.shard_column = column("shards", shards, identities)

    def __repr__(self) -> str:
        return f"Coreset(kept={len(self)}, of={self.num_rows}, method={self.options.get('method')!r})"

    @property
    def options(self) -> dict[str, Any]:
        """The options that it was selected by; empty where ``selection`` does not say so in the library's form."""
        options = self.selection.get("options")
        return options if isinstance(options, dict) else {}

    @property
    def keep(self) -> float:
        """The fraction of the dataset that is kept, in (0, 1]."""
        return len(self) / self.num_rows

    def _all_columns(self) -> dict[str, Any]:
        return {"row": self.rows, "weight": self.weights, "shard": self.shard_column, "key": self.key_column}

    @classmethod
    def _build(cls, metadata: dict[str, Any], columns: dict[str, Any]) -> Coreset:
        return cls(**cls._shared_arguments(metadata, columns), weights=columns.get("weight"))
