from __future__ import annotations

import array
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from prunesampler.errors import ArgumentError
from prunesampler.tables.columns import (
    flags,
    floats,
    identities,
    integers,
    json_object,
    optional_text,
    row_layout,
    row_numbers,
)

WAYS: list[Callable[[list[Any]], Any]] = [list, tuple, np.array, torch.tensor, pd.Series, pl.Series, pa.array]


@pytest.mark.parametrize("way", WAYS)
def test_every_container_gives_the_same_columns(way: Callable[[list[Any]], Any]) -> None:
    for found, expected in (
        (row_numbers("rows", way([2, 0, 1]), 3), np.array([2, 0, 1])),
        (floats("el2n", way([0.1, 2.5]), 2), np.array([0.1, 2.5], np.float32)),
        (integers("labels", way([7, -1]), 2, lowest=-1), np.array([7, -1], np.int32)),
        (flags("learned", way([True, False]), 2), np.array([True, False])),
        (identities("keys", way([5, 3]), 2), np.array([5, 3])),
    ):
        assert found.dtype == expected.dtype
        assert found.tolist() == expected.tolist()
    if way is not torch.tensor:
        assert identities("keys", way(["b", "é"]), 2).to_pylist() == ["b", "é"]


def test_tensors_of_any_type_are_taken() -> None:
    values = torch.tensor([0.5, 0.25], dtype=torch.bfloat16, requires_grad=True)
    assert floats("el2n", values, 2).tolist() == [0.5, 0.25]
    assert row_numbers("rows", torch.tensor([3], dtype=torch.uint8), 4).dtype == np.int64


def test_columns_are_copies() -> None:
    given = np.array([0.5, 1], np.float32)
    taken = floats("el2n", given, 2)
    given[0] = 7
    assert taken[0] == 0.5
    rows = np.arange(3)
    ascending, _ = row_layout(rows, 3)
    rows[0] = 2
    assert ascending.tolist() == [0, 1, 2]
    assert not ascending.flags.writeable


def test_every_nan_becomes_the_same_bits() -> None:
    odd = np.array([0x7FC00001, 0xFFC00000, 0x3F800000], np.uint32).view(np.float32)
    assert floats("el2n", odd, 3).tobytes() == np.array([np.nan, np.nan, 1], np.float32).tobytes()


@pytest.mark.parametrize(
    ("rows", "rule"),
    [
        ([], "must not be empty"),
        ([0, 5], r"must be in \[0, 5\)"),
        ([-1], r"must be in \[0, 5\)"),
        ([0.0, 1.0], "must be integers"),
        (np.array([2**24 + 1], np.float32), "must be integers"),
        ([True, False], "must be integers"),
        ([[0], [1]], "must be integers"),
        (np.int64(3), "must be integers"),
        ([[0], [1, 2]], "must be integers"),
        (["0"], "must be integers"),
        (None, "must be integers"),
        ([2**70], "must be integers"),
        (np.array([2**63], np.uint64), r"must be in \[0, 5\)"),
    ],
)
def test_rows_that_are_refused(rows: object, rule: str) -> None:
    with pytest.raises(ArgumentError, match=f"^rows {rule}"):
        row_numbers("rows", rows, 5)


def test_layout_reorders_every_kind_of_column() -> None:
    rows, column = row_layout([7, 0, 3], 8)
    assert rows.tolist() == [0, 3, 7]
    assert column("el2n", [0.7, 0.0, 0.3], floats).tolist() == pytest.approx([0, 0.3, 0.7])
    assert column("keys", ["7", "0", "3"], identities).to_pylist() == ["0", "3", "7"]
    assert column("keys", [7, 0, 3], identities).tolist() == [0, 3, 7]
    assert column("labels", None, integers, lowest=-1) is None
    assert not column("learned", [True, False, True], flags).flags.writeable
    with pytest.raises(ArgumentError, match="rows must not repeat, got 3"):
        row_layout([3, 1, 3], 8)


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        (floats, [[0.1], [0.1, np.inf], [0.1, 1e39], ["a", "b"], [0.1, None], [[1, 2]], 0.5, [1j, 2]]),
        (partial(integers, lowest=-1), [[0], [0, -2], [0, 2**31], [0.0, 1.0], [True, False], ["a", "b"]]),
        (flags, [[0, 1], [True], [True, None], ["True", "False"]]),
        (
            identities,
            [["a"], ["a", None], ["a", 1], [1.5, 2.5], [True, False], [b"a", b"b"], [2**63, 1], 7, ["\ud800", "a"]],
        ),
    ],
)
def test_columns_that_are_refused(check: Any, wrong: list[Any]) -> None:
    for values in wrong:
        with pytest.raises(ArgumentError, match=r"^name must"):
            check("name", values, 2)


def test_keys_are_taken_from_any_container() -> None:
    chunked = pa.chunked_array([["a"], ["b", "c"]])
    assert identities("keys", chunked, 3).to_pylist() == ["a", "b", "c"]
    assert identities("keys", pa.array(["x", "a", "b"]).slice(1), 2).to_pylist() == ["a", "b"]
    assert identities("keys", array.array("q", [4, 5]), 2).tolist() == [4, 5]
    assert identities("keys", np.array(["a", "b"]), 2).to_pylist() == ["a", "b"]
    assert identities("keys", (str(i) for i in range(2)), 2).to_pylist() == ["0", "1"]


def test_json_is_copied_deeply_and_anything_else_refused() -> None:
    inner = {"epochs": [1, 2]}
    taken = json_object("protocols", {"el2n": inner, "pair": (1, 2)})
    inner["epochs"].append(3)
    assert taken == {"el2n": {"epochs": [1, 2]}, "pair": [1, 2]}
    assert json_object("protocols", None) == {}
    for value in ({"a": float("nan")}, {"a": object()}, [1], 3):
        with pytest.raises(ArgumentError, match="protocols must be a mapping of JSON values"):
            json_object("protocols", value)  # type: ignore[arg-type]


def test_an_empty_text_is_refused() -> None:
    assert optional_text("fingerprint", None) is None
    for value in ("", 3, b"x"):
        with pytest.raises(ArgumentError, match="fingerprint must be a str"):
            optional_text("fingerprint", value)
