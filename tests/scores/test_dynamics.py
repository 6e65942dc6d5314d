"""Scores over epochs, as the tracker computes them while batches pass, against the formulas on stored trajectories."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import prunesampler as ps
from tests.helpers.ranks import run_ranks
from tests.helpers.resume import through_a_file

N, C, EPOCHS, WINDOW = 7, 4, 14, 10
NAMES = ("aum", "aum_softmax", "dyn_unc", "dual", "el2n")
LABELS = torch.arange(N) % C


def presented(epoch: int) -> list[int]:
    """Row 5 misses every third epoch, row 4 has nine epochs in all, row 6 none."""
    return [row for row in range(6) if not (row == 5 and epoch % 3 == 0) and not (row == 4 and epoch >= 9)]


def logits_of(epoch: int, row: int) -> Tensor:
    return 3 * torch.randn(C, generator=torch.Generator().manual_seed(100 * epoch + row), dtype=torch.float64).float()


def trajectory(row: int) -> list[tuple[float, float, float]]:
    """Margin, softmax margin and probability of each epoch in which a row was presented."""
    seen = []
    for epoch in range(EPOCHS):
        if row in presented(epoch):
            z, y = logits_of(epoch, row).tolist(), int(LABELS[row])
            total = sum(map(math.exp, z))
            p = [math.exp(value) / total for value in z]
            others = [c for c in range(C) if c != y]
            seen.append((z[y] - max(z[c] for c in others), p[y] - max(p[c] for c in others), p[y]))
    return seen


def windows(row: int) -> Iterator[list[float]]:
    values = [p for *_, p in trajectory(row)]
    return (values[start : start + WINDOW] for start in range(len(values) - WINDOW + 1))


def wanted(name: str, row: int) -> float:
    if name.startswith("aum"):
        values = [step[name == "aum_softmax"] for step in trajectory(row)]
    elif name == "dyn_unc":
        values = [statistics.stdev(window) for window in windows(row)]
    else:
        values = [statistics.stdev(window) * (1 - statistics.mean(window)) for window in windows(row)]
    return statistics.mean(values) if values else math.nan


def check(table: ps.ScoreTable) -> None:
    for name in NAMES[:-1]:
        np.testing.assert_allclose(table.scores[name], [wanted(name, row) for row in range(N)], rtol=2e-6, atol=1e-7)
    assert table.directions == {
        **dict.fromkeys(table.directions, "higher"),
        **{name: "lower" for name in table.directions if name in ("aum", "aum_softmax")},
    }


def epoch_of(tracker: ps.ScoreTracker, epoch: int, rank: int = 0, world_size: int = 1) -> None:
    rows = presented(epoch)
    rows = rows[rank::world_size] + rows[:rank]  # of padding, the lowest rank's counts
    for part in (rows[:2], rows[2:]):
        if part:
            tracker.update(part, torch.stack([logits_of(epoch, row) for row in part]), LABELS[part])
    tracker.end_epoch()


@pytest.mark.parametrize("reduction", ["mean", "last", "running"])
def test_they_are_exact_whatever_the_reduction_and_after_a_resume(reduction: Any) -> None:
    tracker = ps.ScoreTracker(N, scores=NAMES, reduction=reduction)
    for epoch in range(EPOCHS):
        state = through_a_file(tracker.state_dict())
        tracker = ps.ScoreTracker(N, scores=NAMES, reduction=reduction)
        tracker.load_state_dict(state)
        epoch_of(tracker, epoch)
        if epoch == WINDOW - 2:
            assert np.isnan(tracker.table().scores["dual"]).all()
    table = tracker.table()
    check(table)
    assert table.protocols["aum"]["reduction"] == "mean"
    assert (table.protocols["dual"]["reduction"], table.protocols["dual"]["window"]) == ("windows", WINDOW)
    assert table.protocols["el2n"]["reduction"] == reduction
    assert "dual_spread" not in table.scores


def rank_of_run(rank: int, world_size: int) -> Any:
    tracker = ps.ScoreTracker(N, scores=NAMES)
    for epoch in range(EPOCHS):
        epoch_of(tracker, epoch, rank, world_size)
        if epoch == 11:
            state = through_a_file(tracker.state_dict())
            tracker = ps.ScoreTracker(N, scores=NAMES, group=tracker._group)
            tracker.load_state_dict(state)
    return (
        {name: torch.from_numpy(column.copy()) for name, column in tracker.table().scores.items()} if not rank else {}
    )


def test_ranks_together_have_what_one_process_would() -> None:
    check(ps.ScoreTable({name: column.numpy() for name, column in run_ranks(2, rank_of_run)[0].items()}))


def test_a_state_without_windows_is_not_one_with_them() -> None:
    tracker, other = (ps.ScoreTracker(N, scores=[name]) for name in ("dual", "el2n"))
    state = tracker.state_dict()
    with pytest.raises(ps.StateError):
        other.load_state_dict(state)
    del state["totals"]["held"]["recent"]
    with pytest.raises(ps.StateError, match="recent"):
        tracker.load_state_dict(state)


def dataset() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(24, 4, generator=generator), torch.arange(24) % 3)


@pytest.mark.filterwarnings("ignore:len.loader:prunesampler.PruneSamplerWarning")
def test_attach_prunes_by_them_and_refuses_too_few_epochs_at_once() -> None:
    options: dict[str, Any] = {"scores": ["dual"], "by": "dual", "keep": 0.5}
    for refused, match in (
        ({"score_epochs": 9}, "score_epochs must be at least 10 with 'dual'"),
        ({"rescore": DataLoader(dataset(), 4)}, "rescore must be None with 'dual'"),
    ):
        with pytest.raises(ps.ArgumentError, match=match):
            ps.attach(DataLoader(dataset(), 4, shuffle=True), nn.Linear(4, 3), **options, **refused)
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader = ps.attach(DataLoader(dataset(), 4, shuffle=True), model, **options, method="bottom", score_epochs=10)
    for _ in range(11):
        seen = 0
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            seen += len(x)
    assert seen == 12
    dual = loader.pruning.table.scores["dual"]
    assert set(loader.pruning.coreset.rows) == set(np.argsort(dual)[:12])


def test_one_pass_has_none_of_them() -> None:
    with pytest.raises(ps.ArgumentError, match="must not name dual, which takes more than one pass"):
        ps.score(nn.Linear(4, 3), DataLoader(dataset(), 4), scores=["el2n", "dual"])
