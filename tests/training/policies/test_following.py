"""Policies that follow rows over many epochs: small losses, and exchanges by forgetting."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

import prunesampler as ps
from tests.helpers.attached import check_run_resumes
from tests.helpers.training import Journal, Leaky, Net, Trainer

N, BATCH = 40, 5


def attached(policy: Any, **options: Any) -> tuple[Any, Trainer]:
    model = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.PruneSamplerWarning)  # of the length
        loader = ps.attach(DataLoader(Leaky(N), BATCH, shuffle=True), model, policy=policy, seed=2, **options)
    return loader, Trainer(model, Journal())


def running(values: list[float]) -> float:
    mean = values[0]
    for value in values[1:]:
        mean = 0.7 * mean + 0.3 * value
    return mean


def test_small_loss_draws_the_easiest_by_their_running_mean_and_some_others() -> None:
    policy = ps.SmallLoss(keep=0.5, back=0.2, score_epochs=2)
    loader, trainer = attached(policy)
    others: list[frozenset[int]] = []
    for epoch in range(7):
        means = {row: running([value for value, _ in seen]) for row, seen in trainer.journal.seen.items()}
        trainer.epoch(loader)
        rows = set(trainer.journal.epochs[epoch])
        if epoch < 2:
            assert rows == set(range(N))
            continue
        easiest = set(sorted(means, key=lambda row: means[row])[:20])
        assert easiest <= rows
        assert len(rows) == len(trainer.journal.epochs[epoch]) == 24 == policy.num_draws(N, epoch)
        others.append(frozenset(rows - easiest))
    assert len(set(others)) == len(others)
    loader.pruning.finish()
    table = loader.pruning.table
    assert table.protocols["el2n"]["reduction"] == "running"
    last = [max(epoch for epoch, rows in enumerate(trainer.journal.epochs) if row in rows) for row in range(N)]
    assert table.last_epoch.tolist() == last


def test_swap_forgotten_exchanges_the_least_forgotten() -> None:
    policy = ps.SwapForgotten(keep=0.6, swap=0.1, every=3, until=6)
    loader, trainer = attached(policy)
    inside: set[int] = set()
    for epoch in range(11):
        trainer.epoch(loader)
        rows = set(trainer.journal.epochs[epoch])
        assert len(rows) == 24
        if epoch in (3, 6):
            gone, come = inside - rows, rows - inside
            assert len(gone) == len(come) == 4
            history = {row: [right for _, right in trainer.journal.seen[row]] for row in inside}
            drawn = {row: [e for e in range(epoch) if row in trainer.journal.epochs[e]] for row in inside}
            begin = epoch - 3

            def recent(row: int, history: Any = history, drawn: Any = drawn, begin: int = begin) -> int:
                past = list(zip(drawn[row], history[row], strict=False))
                events = sum(a[1] and not b[1] and b[0] >= begin for a, b in itertools.pairwise(past))
                return events + 3 * (not any(right for _, right in past))

            assert max(map(recent, gone)) <= min(map(recent, inside - gone))
        elif epoch:
            assert rows == inside
        inside = rows


def test_ties_are_broken_at_random_so_that_a_sorted_dataset_loses_no_class() -> None:
    tied, rows = ps.ScoreTable({"el2n": np.full(N, 0.5), "recent_forgetting": np.zeros(N)}), np.arange(N)
    policy = ps.SwapForgotten(keep=0.5, swap=0.25, every=1)
    kept = [ps.SmallLoss(keep=0.5, back=0.0).draw(4, tied, rows, seed) for seed in range(3)]
    kept.append(np.setdiff1d(rows[: N // 2], policy.draw(1, tied, rows, 0, last=rows[: N // 2])))
    for drawn in kept:
        assert not np.array_equal(drawn, np.arange(len(drawn)) + drawn[0])
    assert len({tuple(drawn.tolist()) for drawn in kept[:3]}) == 3


def test_exchanges_read_the_scores_of_rows_whichever_of_them_the_sampler_draws() -> None:
    table = ps.ScoreTable({"recent_forgetting": np.arange(N)}).only(np.arange(1, N, 2))
    policy, last = ps.SwapForgotten(keep=4, swap=0.1, every=1), np.array([5, 9, 1, 39])
    assert set(last) - set(policy.draw(1, table, table.rows, 0, last=np.sort(last))) == {1, 5}


@pytest.mark.parametrize("policy", [ps.SmallLoss(keep=0.5, score_epochs=1), ps.SwapForgotten(0.5, 0.2, 2, 9)], ids=str)
def test_a_run_resumes_after_any_step(policy: Any) -> None:
    check_run_resumes(lambda: attached(policy), 5, first=N // BATCH, every=3)  # the first epoch is the loader's own


@pytest.mark.parametrize(
    ("argument", "make"),
    [
        ("keep", lambda: ps.SmallLoss(keep=0.0)),
        ("by", lambda: ps.SmallLoss(by="forgetting")),
        ("back", lambda: ps.SmallLoss(back=1.5)),
        ("score_epochs", lambda: ps.SmallLoss(score_epochs=0)),
        ("keep", lambda: ps.SwapForgotten(keep=1)),
        ("swap", lambda: ps.SwapForgotten(swap=1.0)),
        ("every", lambda: ps.SwapForgotten(every=0)),
        ("until", lambda: ps.SwapForgotten(until=-1)),
    ],
)
def test_options_are_checked_at_once(argument: str, make: Any) -> None:
    with pytest.raises(ps.ArgumentError, match=rf"^{argument} must"):
        make()


def test_a_margin_is_hard_where_it_is_low() -> None:
    table = ps.ScoreTable({"margin": [3.0, -1.0, 2.0, 0.5]})
    drawn = ps.SmallLoss(keep=2, by="margin", back=0.0).draw(4, table, np.arange(4), 0)
    assert drawn.tolist() == [0, 2]
