from __future__ import annotations

from typing import Any

import pytest
import torch

from prunesampler.errors import StateError
from prunesampler.tracking.state import check_identity, check_layout, names_in

EXPECTED = {"version": int, "labels": (torch.int32, 3), "totals": {"sums": {"el2n": (torch.float64, 3)}}, "share": None}


def good() -> dict[str, Any]:
    return {
        "version": 1,
        "labels": torch.zeros(3, dtype=torch.int32),
        "totals": {"sums": {"el2n": torch.zeros(3, dtype=torch.float64)}},
        "share": None,
    }


def test_the_same_layout_passes() -> None:
    check_layout(good(), EXPECTED)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        ({"version": True}, r"state\['version'\] must be of type int, got bool"),
        ({"version": None}, r"state\['version'\] must be of type int, got NoneType"),
        ({"share": {}}, r"state\['share'\] must be None, got dict"),
        ({"labels": torch.zeros(3)}, r"state\['labels'\] must be a tensor of torch.int32 \(3,\), got torch.float32"),
        ({"labels": torch.zeros(3, 1, dtype=torch.int32)}, r"\(3, 1\)"),
        ({"labels": [0, 0, 0]}, "got list"),
        ({"more": 1}, "state must hold .*'more'"),
        ({"totals": {}}, r"state\['totals'\] must hold \['sums'\], got \[\]"),
        ({"totals": {"sums": None}}, r"state\['totals'\]\['sums'\] must hold \['el2n'\], got NoneType"),
    ],
)
def test_another_layout_is_refused_by_its_place(damage: dict[str, Any], match: str) -> None:
    with pytest.raises(StateError, match=match):
        check_layout({**good(), **damage}, EXPECTED)


def test_a_missing_key_is_refused() -> None:
    state = good()
    del state["share"]
    with pytest.raises(StateError, match="state must hold"):
        check_layout(state, EXPECTED)


def test_identities() -> None:
    with pytest.raises(StateError, match="saved with num_rows 7, and here it is 8"):
        check_identity({"num_rows": 7}, {"num_rows": 8})


@pytest.mark.parametrize("state", [None, 3, {}, {"a": None}, {"a": {"b": 1}}, {"a": {"b": {1: 2}}}])
def test_names_in_what_is_not_there(state: Any) -> None:
    assert names_in(state, "a", "b") == []
