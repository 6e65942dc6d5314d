"""Which rows of a dataset a sampler can draw at all."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import numpy as np
from torch.utils.data import SubsetRandomSampler, WeightedRandomSampler

from prunesampler.errors import UnsupportedError
from prunesampler.sampling.sampler import PrunedSampler
from prunesampler.tables.columns import Int64s


def eligible_rows(sampler: Any, num_rows: int) -> Int64s | None:
    """The rows of a dataset of ``num_rows`` that a sampler of torch's, or ours, can draw.

    Returns:
        int64, in the sampler's own order where it does not shuffle; None for every row, ascending, and for a sampler
        that does not say.

    Raises:
        UnsupportedError: it draws what is no row of the dataset, or a subset that names a row twice.

    >>> from torch.utils.data import RandomSampler
    >>> eligible_rows(RandomSampler(range(3)), 5), eligible_rows(RandomSampler(range(5)), 5)
    (array([0, 1, 2]), None)
    """
    found = _rows_of(sampler)
    if found is None:
        return None
    low, high = (int(found.min()), int(found.max())) if len(found) else (0, 0)
    if low < 0 or high >= num_rows:
        raise UnsupportedError(
            f"{type(sampler).__name__} draws {low if low < 0 else high}, and the rows of the dataset are 0 to "
            f"{num_rows - 1}: make the sampler for this dataset"
        )
    every = len(found) == num_rows and np.array_equal(found, np.arange(num_rows))
    return None if every else found


def _rows_of(sampler: Any) -> Int64s | None:
    if isinstance(sampler, PrunedSampler):
        return np.arange(sampler.num_rows) if sampler.eligible is None else sampler.eligible
    if isinstance(sampler, WeightedRandomSampler):
        return np.flatnonzero(sampler.weights.numpy() > 0)
    if isinstance(sampler, SubsetRandomSampler):
        drawn = np.asarray(sampler.indices, dtype=np.int64)
        found = np.unique(drawn)
        if len(found) < len(drawn):
            raise UnsupportedError("SubsetRandomSampler.indices names a row more than once: name each row once")
        return found
    for name in ("data_source", "dataset"):  # random and sequential ones, and those that split ranks
        if isinstance(source := getattr(sampler, name, None), Sized):
            return np.arange(len(source))
    return None
