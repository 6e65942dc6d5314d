from __future__ import annotations

from typing import Any

import pytest

from prunesampler.errors import ArgumentError
from prunesampler.selection.select import Selection
from prunesampler.training.config import Plan

PLAN: dict[str, Any] = {
    "score_epochs": 2,
    "scores": ("el2n",),
    "reduction": "mean",
    "rescored": False,
    "selection": None,
    "epoch_length": "kept",
    "seed": 0,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("score_epochs", 0),
        ("score_epochs", 1.5),
        ("score_epochs", True),
        ("epoch_length", "half"),
        ("seed", -1),
        ("seed", 0.5),
    ],
)
def test_wrong_values_name_the_argument_and_what_was_received(name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=f"^{name} must be .*got {value!r}"):
        Plan(**{**PLAN, name: value})


AUTO: dict[str, Any] = {**PLAN, "scores": ("el2n", "margin", "forgetting"), "selection": Selection("auto")}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("rescore", {"rescored": True}),
        ("score_epochs", {"score_epochs": 1}),
        ("reduction", {"reduction": "last"}),
        ("scores", {"scores": ("el2n",)}),
        ("by", {"scores": ("loss", "forgetting")}),
        ("by", {"selection": Selection("auto", by="margin")}),
        ("by", {"selection": Selection("auto", by="forgetting")}),
        ("by", {"selection": Selection("auto", by="el2n_spread")}),
    ],
)
def test_auto_wants_two_halves_and_forgetting(name: str, changes: dict[str, Any]) -> None:
    assert Plan(**AUTO).selection == Selection("auto")
    with pytest.raises(ArgumentError, match=f'^{name} must .*with keep="auto"'):
        Plan(**{**AUTO, **changes})
    if "selection" not in changes:
        Plan(**{**AUTO, **changes, "selection": Selection(0.5)})


def test_a_plan_is_plain_data() -> None:
    assert Plan(**PLAN).to_dict() == {**PLAN, "scores": ["el2n"]}
