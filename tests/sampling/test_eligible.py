"""Which rows a sampler can draw: what it is made of says so, and an order that is not shuffled is kept."""

from __future__ import annotations

from typing import Any

import pytest
from torch.utils.data import DistributedSampler, RandomSampler, SequentialSampler, SubsetRandomSampler
from torch.utils.data import WeightedRandomSampler as Weighted

from prunesampler.errors import UnsupportedError
from prunesampler.sampling.eligible import eligible_rows
from prunesampler.sampling.sampler import PrunedSampler

N = 6


@pytest.mark.parametrize(
    ("sampler", "rows"),
    [
        (RandomSampler(range(N)), None),
        (RandomSampler(range(4)), [0, 1, 2, 3]),
        (SequentialSampler(range(4)), [0, 1, 2, 3]),
        (DistributedSampler(range(4), 2, 1), [0, 1, 2, 3]),
        (SubsetRandomSampler([5, 2]), [2, 5]),
        (Weighted([0.0, 1.0, 2.0], 9), [1, 2]),
        (PrunedSampler(N), None),
        (PrunedSampler(4), [0, 1, 2, 3]),
        (PrunedSampler(N, rows=[5, 1, 2]), [5, 1, 2]),
        (PrunedSampler(N, rows=[5, 1, 2, 0, 4, 3], shuffle=False), [5, 1, 2, 0, 4, 3]),
        (object(), None),
    ],
)
def test_what_a_sampler_can_draw(sampler: Any, rows: list[int] | None) -> None:
    found = eligible_rows(sampler, N)
    assert (None if found is None else found.tolist()) == rows


@pytest.mark.parametrize("sampler", [RandomSampler(range(7)), SubsetRandomSampler([-1]), Weighted([1.0] * 8, 2)])
def test_what_is_no_row_of_the_dataset_is_refused(sampler: Any) -> None:
    with pytest.raises(UnsupportedError, match="rows of the dataset are 0 to 5"):
        eligible_rows(sampler, N)
