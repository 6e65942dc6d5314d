"""The rows that are kept, and their Parquet file."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from prunesampler.errors import ArgumentError
from prunesampler.tables.columns import floats, identities, json_object, optional_text, row_count, row_layout
from prunesampler.tables.parquet import content_digest, load_checked, write_columns

__all__ = ["Coreset"]


class Coreset:
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
        ArgumentError: rows repeat, are out of range or none; another column breaks its rule.

    ``rows`` is int64 and ascending, ``weights`` float32 or None; both are copies, read-only.

    >>> coreset = Coreset([4, 0, 2], num_rows=6)
    >>> coreset.rows, coreset.keep
    (array([0, 2, 4]), 0.5)
    """

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
        self.num_rows = row_count(num_rows)
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

    def __len__(self) -> int:
        return len(self.rows)

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Coreset) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        method = self.selection.get("options", {}).get("method")
        return f"Coreset(kept={len(self)}, of={self.num_rows}, method={method!r})"

    @property
    def keep(self) -> float:
        """The fraction of the dataset that is kept, in (0, 1]."""
        return len(self) / self.num_rows

    @property
    def keys(self) -> list[str] | list[int] | None:
        """The keys in the order of ``rows``, made anew at each call (``key_column`` holds them compactly)."""
        return None if self.key_column is None else self.key_column.tolist()

    @functools.cached_property
    def digest(self) -> str:
        """``"sha256:…"`` of every value and all provenance; the same before saving and after loading."""
        return content_digest(self._metadata(), self._columns())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``coreset.parquet``: all of it or nothing.

        Columns: ``row`` int64 ascending, and ``weight`` float32, ``shard``, ``key`` where there are any.

        Raises:
            OSError: the file cannot be written; an older one is then still intact.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Coreset([4, 0, 2], num_rows=6).save(f"{folder}/coreset.parquet")
        ...     Coreset.load(f"{folder}/coreset.parquet")
        Coreset(kept=3, of=6, method=None)
        """
        write_columns(path, self._metadata(), self._columns())

    @classmethod
    def load(cls, path: str | os.PathLike[str], fingerprint: str | None = None) -> Coreset:
        """Read what :meth:`save` wrote.

        Args:
            path: the file.
            fingerprint: of the dataset at hand; compared where the file holds one too.

        Raises:
            FileNotFoundError: no such file.
            CorruptFileError: damaged, cut short, edited, or not a file of ours.
            MismatchError: of another dataset, another kind, or a newer format.
        """
        return load_checked(path, "coreset", fingerprint, cls._build)

    def _columns(self) -> dict[str, Any]:
        columns = {"row": self.rows, "weight": self.weights, "shard": self.shard_column, "key": self.key_column}
        return {name: column for name, column in columns.items() if column is not None}

    def _metadata(self) -> dict[str, Any]:
        names = ("num_rows", "fingerprint", "scores_digest", "selection")
        return {"kind": "coreset", **{name: getattr(self, name) for name in names}}

    @classmethod
    def _build(cls, metadata: dict[str, Any], columns: dict[str, Any]) -> Coreset:
        return cls(
            columns["row"],
            weights=columns.get("weight"),
            keys=columns.get("key"),
            shards=columns.get("shard"),
            **{name: metadata[name] for name in ("num_rows", "fingerprint", "scores_digest", "selection")},
        )
