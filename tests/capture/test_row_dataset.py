"""Rows reach whoever reads the loader, in whatever order and process batches are made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Subset

from prunesampler.capture.row_dataset import _carriers
from prunesampler.capture.row_loader import with_rows
from prunesampler.errors import UnsupportedError
from tests.helpers.squares import GRID, Squares, SquaresAtOnce


class Wide:
    def __init__(self, values: list[int]) -> None:
        self.values = torch.tensor(values)


def set_offset(_: int) -> None:
    torch.utils.data.get_worker_info().dataset.offset = 1000


@pytest.mark.parametrize("options", GRID, ids=str)
@pytest.mark.parametrize("kind", [Squares, SquaresAtOnce])
def test_every_batch_comes_with_its_rows(options: dict[str, Any], kind: type[Squares]) -> None:
    loader = DataLoader(kind(), batch_size=5, shuffle=True, **options)
    for _ in range(2):
        seen = []
        for rows, batch in with_rows(loader):
            assert rows.dtype == torch.int64
            assert (rows**2).tolist() == batch.tolist()
            seen += rows.tolist()
        assert sorted(seen) == list(range(23))
        assert all(isinstance(batch, torch.Tensor) for batch in loader)  # plain passes stay plain


def test_custom_batch_samplers_collate_subsets_and_tiny_batches() -> None:
    sampler = BatchSampler(RandomSampler(range(10)), 3, drop_last=True)
    for rows, batch in with_rows(DataLoader(Squares(10), batch_sampler=sampler)):
        assert (rows**2).tolist() == batch.tolist()
    for rows, batch in with_rows(DataLoader(Squares(), batch_size=4, collate_fn=Wide)):
        assert (rows**2).tolist() == batch.values.tolist()
    subset = Subset(Squares(), [20, 3, 4])
    assert [(r.tolist(), b.tolist()) for r, b in with_rows(DataLoader(subset, batch_size=1))] == [
        ([0], [400]),
        ([1], [9]),
        ([2], [16]),
    ]


def test_negative_indices_are_positions_too() -> None:
    loader = DataLoader(list(range(10)), batch_size=2, sampler=[-1, 3])
    assert [rows.tolist() for rows, _ in with_rows(loader)] == [[9, 3]]


def test_workers_see_the_dataset_itself() -> None:
    loader = DataLoader(Squares(), batch_size=5, num_workers=1, worker_init_fn=set_offset)
    for rows, batch in with_rows(loader):
        assert (rows**2 + 1000).tolist() == batch.tolist()


def test_rows_beyond_float32_stay_exact() -> None:
    rows, _ = next(iter(with_rows(DataLoader(Squares(20_000_010), batch_size=2, sampler=[20_000_001, 20_000_000]))))
    assert rows.tolist() == [20_000_001, 20_000_000]


@pytest.mark.parametrize("indices", [[2, 0], np.array([2, 0]), [np.int32(2), 0], torch.tensor([2, 0]), [-1, 0]])
def test_rows_are_the_integers_that_a_sampler_yields(indices: Any) -> None:
    rows, samples = _carriers(DataLoader([5, 6, 7]))["dataset"].__getitems__(indices)
    assert (rows.dtype, rows.tolist(), samples) == (np.int64, [2, 0], [7, 5])


@pytest.mark.parametrize("indices", [[2.0, 0.0], ["a", "b"], [(1, 2), (0, 1)], [(1, 2), 0], [None, 1]])
def test_other_keys_are_no_rows(indices: Any) -> None:
    with pytest.raises(UnsupportedError, match="positions in the dataset as ints"):
        _carriers(DataLoader([5, 6, 7]))["dataset"].__getitems__(indices)
