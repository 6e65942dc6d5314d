from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from prunesampler.errors import ArgumentError, StateError
from prunesampler.tracking.epoch_buffers import BAD_CLASS, BAD_ROW, CHANGED_LABEL, EpochBuffers
from prunesampler.tracking.ranks import Group
from prunesampler.tracking.totals import Totals

N = 4


def share_of(values: dict[int, list[float]], name: str = "el2n") -> EpochBuffers:
    share = EpochBuffers(N, ("el2n",), forgetting=True)
    for row, seen in values.items():
        for value in seen:
            share.add(torch.tensor([row]), {"el2n": torch.tensor([value])}, torch.tensor([value < 0.5]))
            if name != "el2n":
                share.record(torch.tensor([row]), name, torch.tensor([value]))
    return share


def merged(epochs: list[dict[int, list[float]]], reduction: Any, name: str = "el2n") -> Totals:
    totals = Totals(N, ("el2n",), reduction, forgetting=True)
    for epoch in epochs:
        totals.merge(share_of(epoch, name), Group())
    return totals


EPOCHS = [{0: [1.0, 2.0], 1: [3.0]}, {0: [6.0]}, {2: [4.0, 8.0]}]


def test_many_epochs_lose_no_precision() -> None:
    totals = merged([{0: [0.1]}] * 500, "mean")
    assert totals.value("el2n")[0] == np.float32(0.1)


def test_a_half_that_is_not_finite_has_no_spread() -> None:
    table = merged([{0: [math.inf], 1: [1.0], 2: [3e38]}, {0: [1.0], 1: [2.0], 2: [-3e38]}], "mean").table(
        kind="online"
    )
    assert table.scores["el2n_spread"][1] == 1
    assert np.isnan(table.scores["el2n_spread"][[0, 2]]).all()
    assert table.scores["el2n"][2] == 0


def test_an_overflowing_mean_is_no_value() -> None:
    totals = merged([{0: [3e38, 3e38], 1: [1.0]}], "mean")
    assert math.isnan(totals.value("el2n")[0])
    assert totals.without_value() == {"el2n": 1}


@pytest.mark.parametrize(
    ("problem", "error", "match"),
    [
        (BAD_ROW, ArgumentError, r"rows must be in \[0, 4\)"),
        (BAD_CLASS, ArgumentError, "targets must be class indices.*row 2"),
        (CHANGED_LABEL, StateError, "row 2 came with two"),
    ],
)
def test_a_share_with_problems_is_refused_whole(problem: int, error: type, match: str) -> None:
    totals = merged(EPOCHS, "mean")
    before = str(totals.state_dict())
    share = share_of({1: [1.0]})
    share.problems[problem] = 2
    with pytest.raises(error, match=match):
        totals.merge(share, Group())
    assert str(totals.state_dict()) == before


def test_ranks_above_0_hold_no_sums() -> None:
    totals = Totals(N, ("el2n",), "mean", forgetting=True, first=False)
    held = [tensor for tensor in vars(totals).values() if isinstance(tensor, torch.Tensor) and len(tensor)]
    assert len(held) == 2  # flags and labels
    assert totals.state_dict()["held"] is None


def test_a_state_restores_everything() -> None:
    totals = merged(EPOCHS, "mean", "mine")
    other = Totals(N, ("el2n",), "mean", forgetting=True)
    other.load_state_dict(totals.state_dict())
    assert other.table(kind="online") == totals.table(kind="online")
    for each in (other, totals):  # what came before the state counts in its half, and so does what comes after
        before = each.table(kind="online").scores["el2n_spread"][1]
        each.merge(share_of({0: [1.0], 1: [7.0]}), Group())
        assert np.isnan(before)
        assert each.table(kind="online").scores["el2n_spread"][1] == 4
    assert other.table(kind="online") == totals.table(kind="online")
    other.merge(share_of({0: [1.0]}), Group())
    assert totals.presentations.tolist() == [4, 2, 2, 0], "the state shares memory with what it was taken from"
