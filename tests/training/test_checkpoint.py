"""States go through torch.save and back, and foreign ones are refused."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from prunesampler.errors import StateError
from prunesampler.tables.coreset import Coreset
from prunesampler.training.checkpoint import check_state, coreset_state, load_coreset


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weights": [1.5, 2.5, 3.5]},
        {"keys": ["a", "b", "c"]},
        {"keys": [7, 8, 9], "selection": {"kept": 3}, "shards": ["x", "x", "y"]},
    ],
)
def test_a_coreset_survives_weights_only_loading(options: dict[str, Any]) -> None:
    coreset = Coreset([3, 1, 8], num_rows=9, fingerprint="f", scores_digest="d", **options)
    buffer = io.BytesIO()
    torch.save(coreset_state(coreset), buffer)
    buffer.seek(0)
    assert load_coreset(torch.load(buffer, weights_only=True)) == coreset


@pytest.mark.parametrize("change", [{"rows": None}, {"rows": torch.tensor([9])}, {"weights": 1}, {"extra": 1}])
def test_a_damaged_coreset_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(StateError, match="no sound coreset"):
        load_coreset({**coreset_state(Coreset([3, 1, 8], num_rows=9)), **change})


@pytest.mark.parametrize("state", [None, [], {"a": 1}, {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 3}])
def test_foreign_states_are_refused(state: Any) -> None:
    with pytest.raises(StateError):
        check_state(state, {"a", "b"}, {"b": 2})
