"""What has rows, and what is refused for want of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset, IterableDataset

from prunesampler.capture.row_loader import with_rows
from prunesampler.capture.rows import RowBatch
from prunesampler.errors import UnsupportedError
from tests.helpers.squares import Squares


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        return itertools.count()


class Lazy(DataLoader):
    def __iter__(self) -> Any:
        yield from super().__iter__()


@pytest.mark.parametrize(
    ("loader", "cure"),
    [
        (DataLoader(Endless(), batch_size=2), "map-style"),
        (DataLoader(Squares(), batch_size=None), "batch_size"),
        (DataLoader({"a": 1, "b": 2}, batch_size=2, sampler=["a", "b"]), "positions"),
        ([1, 2, 3], "DataLoader"),
        (Lazy(Squares(), batch_size=2), "plain DataLoader"),
    ],
)
def test_what_has_no_rows_is_refused(loader: Any, cure: str) -> None:
    with pytest.raises(UnsupportedError, match=cure):
        list(with_rows(loader))


class Pipeline:
    def iter_rows(self) -> Any:
        yield RowBatch(np.array([4, 2]), "batch")


def test_a_pipeline_that_knows_its_rows_is_a_row_source() -> None:
    ((rows, batch),) = with_rows(Pipeline())
    assert (rows.tolist(), batch) == ([4, 2], "batch")


class Frame(Dataset[int]):
    """A table's wrapper; data frames have a method of this name."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, row: int) -> int:
        return 10 * row

    def iter_rows(self) -> Iterator[Any]:
        raise AssertionError("a map-style dataset is read by its rows")


def test_a_map_style_dataset_may_have_a_method_of_any_name() -> None:
    found = [(rows.tolist(), batch.tolist()) for rows, batch in with_rows(DataLoader(Frame(), batch_size=2))]
    assert found == [([0, 1], [0, 10]), ([2, 3], [20, 30])]
