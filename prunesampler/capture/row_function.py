"""Rows as a function of the user's tells them: ``row_fn``, batch → rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from prunesampler.capture.rows import UNKNOWN, row_stream
from prunesampler.errors import ArgumentError


class RowFunction:
    """A ``row_fn`` whose answers are checked.

    Attributes:
        num_rows: of the dataset; None where nobody says.

    Args:
        row_fn: batch → (B,) ints, or ids that ``keys`` has.
        loader: whose batches they are.
        num_rows: of its dataset; by default its length, or that of ``keys``.
        keys: the ids of the rows in their order, or a mapping from ids to rows.
    """

    def __init__(
        self, row_fn: Callable[[Any], Any], loader: Any, *, num_rows: int | None = None, keys: Any = None
    ) -> None:
        if not callable(row_fn):
            raise ArgumentError("row_fn", "must be a function from the batch to its rows, or None", row_fn)
        self._row_fn, self._keys = row_fn, keys
        self._rows_of: Mapping[Any, int] | None = keys if isinstance(keys, Mapping) else None
        dataset, stream = getattr(loader, "dataset", loader), row_stream(loader)
        if num_rows is None and stream is not None:
            num_rows = stream.num_rows
        elif num_rows is None and isinstance(dataset, IterableDataset) and keys is not None:
            num_rows = len(keys)
        elif num_rows is None and hasattr(dataset, "__len__"):
            num_rows = len(dataset)
        self.num_rows = num_rows
        if isinstance(dataset, IterableDataset) and stream is None and self._rows_of is None and keys is not None:
            numbers = np.asarray(keys)
            if numbers.dtype.kind in "iu" and not np.array_equal(numbers, np.arange(len(numbers))):
                rule = "must be a mapping {id: row} where the ids are ints, so that row_fn= can tell ids from rows"
                raise ArgumentError("keys", rule, keys)

    def __call__(self, batch: Any, drawn: NDArray[np.int64] = UNKNOWN) -> NDArray[np.int64]:
        """(B,) the rows of a batch; ``drawn`` are those that its sampler gave, where that is known.

        ArgumentError: they are no rows, or not those of this batch.
        """
        given = self._row_fn(batch)
        rows = _array(given)
        if isinstance(self._keys, Mapping) or rows.dtype.kind in "OSU":
            rows = self._looked_up(rows)
        if rows.ndim != 1 or (rows.dtype.kind not in "iu" and rows.size):
            raise ArgumentError("row_fn", "must return ints in one dimension, one for each sample of the batch", given)
        rows = rows.astype(np.int64)
        if rows.size and (rows.min() < 0 or (self.num_rows is not None and rows.max() >= self.num_rows)):
            end = "" if self.num_rows is None else f" and below {self.num_rows}"
            raise ArgumentError("row_fn", f"must return rows of the loader's dataset, >= 0{end}", given)
        if drawn.size and rows.size and not _are_likely(rows, drawn):
            rule = (
                "must return positions in the loader's own dataset (of a Subset those in it, not in the dataset "
                f"inside), and its sampler drew {drawn[:8].tolist()}{'…' * (len(drawn) > 8)} for this batch"
            )
            raise ArgumentError("row_fn", rule, given)
        return rows

    def _looked_up(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        if self._keys is None:
            raise ArgumentError("row_fn", "must return ints, or keys= must have the ids that it returns", ids.tolist())
        if self._rows_of is None:
            self._rows_of = {key: row for row, key in enumerate(np.asarray(self._keys).tolist())}
        wanted = ids.tolist()
        unknown = [item for item in wanted if item not in self._rows_of]
        if unknown:
            raise ArgumentError("row_fn", "must return ids that keys= has", unknown)
        return np.fromiter((self._rows_of[item] for item in wanted), np.int64, len(wanted))


def _array(given: Any) -> NDArray[Any]:
    if isinstance(given, Tensor):
        return given.detach().cpu().numpy()
    try:
        return np.asarray(given)
    except (TypeError, ValueError) as error:
        raise ArgumentError("row_fn", "must return ints in one dimension", given) from error


def _are_likely(rows: NDArray[np.int64], drawn: NDArray[np.int64]) -> bool:
    """Whether most of the rows were drawn, and not one of them for all; a collate function may replace a few."""
    distinct = len(np.unique(rows)) * 2 >= min(len(rows), len(np.unique(drawn)))
    return distinct and bool(np.isin(rows, drawn).mean() >= 0.5)


def ordered_ids(keys: Any) -> Any:
    """``keys``; where they are a mapping from ids to rows, the ids in the order of the rows."""
    if not isinstance(keys, Mapping):
        return keys
    ids = {row: item for item, row in keys.items()}
    if ids.keys() != set(range(len(keys))):
        raise ArgumentError("keys", f"must map ids to rows, to each from 0 to {len(keys) - 1} once", dict(keys))
    return [ids[row] for row in range(len(keys))]
