from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from prunesampler.errors import ArgumentError
from prunesampler.tracking.inputs import as_tensor, check_range, column_tensor, row_tensor, score_names, torch_device


@pytest.mark.parametrize(
    "rows",
    [
        [5, 0, 5],
        (5, 0, 5),
        np.array([5, 0, 5], np.int16),
        np.array([5, 9, 0, 9, 5])[::2],
        np.array([5, 0, 5])[::-1],
        torch.tensor([5, 0, 5], dtype=torch.uint8),
    ],
)
def test_rows_become_int64(rows: Any) -> None:
    tensor = row_tensor(rows, 3, 6)
    assert tensor.dtype == torch.int64
    assert tensor.tolist() == [5, 0, 5]


def test_read_only_arrays_are_copied() -> None:
    rows = np.array([1, 2])
    rows.flags.writeable = False
    as_tensor("rows", rows)[0] = 7
    assert rows.tolist() == [1, 2]


def test_no_rows_are_rows() -> None:
    assert row_tensor([], 0, 6).dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.uint8])
def test_ranges(dtype: torch.dtype) -> None:
    check_range("rows", torch.tensor([0, 9], dtype=dtype), 10)
    check_range("rows", torch.tensor([], dtype=dtype), 10)
    for bad in ([10], [0, 11, 3]) + (() if dtype == torch.uint8 else ([-1], [3, -128])):
        with pytest.raises(ArgumentError, match=r"rows must be in \[0, 10\)"):
            check_range("rows", torch.tensor(bad, dtype=dtype), 10)


@pytest.mark.parametrize("rows", [[20_000_001.0], ["a"], [[1]], 3, None, [2**70], [True]])
def test_what_cannot_be_rows(rows: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^rows must be"):
        row_tensor(rows, 1, 10)


def test_columns_are_real_numbers() -> None:
    assert column_tensor("mine", [True, False], 2).dtype == torch.bool
    for bad in ([1.0], [1j, 2j], [[1.0, 2.0]], 1.0):
        with pytest.raises(ArgumentError, match=r"^mine must be"):
            column_tensor("mine", bad, 2)


def test_one_score_need_not_stand_in_a_list() -> None:
    assert score_names("el2n", own=False) == ("el2n",)
    assert score_names(["anything"], own=True) == ("anything",)


def test_devices() -> None:
    assert torch_device(torch.device("cpu")) == torch.device("cpu")
    for bad in ("no such", 1.5, "cuda:99"):
        with pytest.raises(ArgumentError, match=r"^device must be"):
            torch_device(bad)
