from __future__ import annotations

from typing import Any

import pytest

from prunesampler.errors import ArgumentError
from prunesampler.plan import Plan

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


def test_a_plan_is_plain_data() -> None:
    assert Plan(**PLAN).to_dict() == {**PLAN, "scores": ["el2n"]}
