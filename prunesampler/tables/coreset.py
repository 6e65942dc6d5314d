"""The rows that are kept, and their Parquet file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from prunesampler._format import number, percent, printable
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

    def _facts(self) -> dict[str, Any]:
        return {"kept": len(self), "of": self.num_rows, "method": self.options.get("method")}

    def summary(self) -> str:
        """Lines that say what was kept and how, as far as ``selection`` tells.

        >>> print(Coreset([1, 2], num_rows=4, weights=[0.5, 1.5]).summary())
        kept 2 of 4 rows (50 %)
        weights: 0.500 to 1.500, mean 1
        """
        return "\n".join(summary_lines(self.selection, len(self), self.num_rows, self.weights))

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


def summary_lines(found: Mapping[str, Any], kept: int, num_rows: int, weights: Any = None) -> Iterator[str]:
    """What a ``selection`` says, for people; one of another tool's making says less."""
    eligible, options = found.get("eligible", num_rows), found.get("options")
    options = options if isinstance(options, dict) else {}
    how = ""
    if "superfluous" in found:
        how = f": all but {eligible - kept:,} superfluous rows by {printable(options.get('by'))}"
    elif "wrong" in found:
        how = f": all but {eligible - kept:,} rows whose label is likely wrong"
    elif method := options.get("method"):
        by = "" if found.get("threshold", 0) is None else f" by {printable(options.get('by'))}"  # scores were not read
        how = f": {printable(method)}" + by
    yield f"kept {kept:,} of {eligible:,} rows ({percent(kept / eligible)}){how}"
    if "superfluous" in found:
        low = f"{printable(options.get('by'))} at most {options.get('threshold', math.nan):g} in both halves"
        yield f"superfluous: learned, never forgotten, {low}"
    elif (rates := found.get("noise_rate")) and len(rates) == 3:
        rate, least, most = map(percent, rates)
        yield f"about {rate} of the labels are wrong ({least} to {most})"
    elif offset := found.get("offset"):
        yield f"left out the hardest {f'{offset:,}' if isinstance(offset, int) else percent(offset)}"
    if threshold := found.get("threshold"):
        yield f"{printable(options.get('by'))} of the kept rows: {threshold[0]:.4g} to {threshold[1]:.4g}"
    if unscored := found.get("unscored"):
        yield f"kept without a score: {unscored:,}"
    if weights is not None:
        low, high, mean = (number(float(each)) for each in (weights.min(), weights.max(), weights.mean(dtype=float)))
        yield f"weights: {low} to {high}, mean {mean}"
