"""Arguments and saved states are checked before anything is taken from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from prunesampler.errors import ArgumentError, StateError
from prunesampler.tracking.inputs import as_tensor, check_range, column_tensor, row_tensor, score_names
from prunesampler.tracking.state import check_identity, check_layout, names_in


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


EXPECTED = {"version": int, "labels": (torch.int32, 3), "totals": {"sums": {"el2n": (torch.float64, 3)}}, "share": None}


def good() -> dict[str, Any]:
    return {
        "version": 1,
        "labels": torch.zeros(3, dtype=torch.int32),
        "totals": {"sums": {"el2n": torch.zeros(3, dtype=torch.float64)}},
        "share": None,
    }


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        ({"version": True}, r"state\['version'\] must be of type int, got bool"),
        ({"version": None}, r"state\['version'\] must be of type int, got NoneType"),
        ({"share": {}}, r"state\['share'\] must be None, got dict"),
        (
            {"labels": torch.zeros(3)},
            r"state\['labels'\] must be a dense tensor of torch.int32 \(3,\), got torch.float32",
        ),
        ({"labels": torch.zeros(3, 1, dtype=torch.int32)}, r"\(3, 1\)"),
        ({"labels": [0, 0, 0]}, "got list"),
        ({"more": 1}, "state must hold .*'more'"),
        ({"totals": {}}, r"state\['totals'\] must hold \['sums'\], got \[\]"),
        ({"totals": {"sums": None}}, r"state\['totals'\]\['sums'\] must hold \['el2n'\], got NoneType"),
    ],
)
def test_another_layout_is_refused_by_its_place(damage: dict[str, Any], match: str) -> None:
    check_layout(good(), EXPECTED)
    with pytest.raises(StateError, match=match):
        check_layout({**good(), **damage}, EXPECTED)


def test_a_missing_key_and_another_configuration_are_refused() -> None:
    with pytest.raises(StateError, match="state must hold"):
        check_layout({"version": 1}, EXPECTED)
    with pytest.raises(StateError, match="saved with num_rows 7, and here it is 8"):
        check_identity({"num_rows": 7}, {"num_rows": 8})


@pytest.mark.parametrize("state", [None, 3, {}, {"a": None}, {"a": {"b": 1}}, {"a": {"b": {1: 2}}}])
def test_names_in_what_is_not_there(state: Any) -> None:
    assert names_in(state, "a", "b") == []
