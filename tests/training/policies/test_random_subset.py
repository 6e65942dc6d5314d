from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler, SubsetRandomSampler

import prunesampler as ps
from tests.helpers.attached import check_run_resumes
from tests.helpers.rankruns import rows_of_epochs
from tests.helpers.ranks import run_ranks
from tests.helpers.training import Journal, Leaky, Net, Trainer

N, BATCH = 41, 4


@given(st.integers(2, 60), st.data(), st.integers(0, 2**40))
def test_no_epoch_repeats_a_row_and_over_time_all_rows_come_equally_often(
    count: int, data: st.DataObject, seed: int
) -> None:
    policy = ps.RandomSubset(data.draw(st.integers(2, count)))
    rows = np.arange(count) * 3
    counts = Counter(dict.fromkeys(rows.tolist(), 0))
    epochs = [policy.draw(epoch, None, rows, seed).tolist() for epoch in range(25)]
    for drawn in epochs:
        assert len(drawn) == len(set(drawn)) == policy.keep
        counts.update(drawn)
        assert set(counts) == set(rows.tolist())
        assert max(counts.values()) - min(counts.values()) <= 1
    assert policy.draw(7, None, rows, seed).tolist() == epochs[7]  # in any order of asking


def test_seeds_and_epochs_differ() -> None:
    policy, rows = ps.RandomSubset(0.5), np.arange(100)
    drawn = [frozenset(policy.draw(epoch, None, rows, seed).tolist()) for epoch in range(4) for seed in range(4)]
    assert len(set(drawn)) == len(drawn)


def make(**options: Any) -> tuple[Any, Trainer]:
    model = Net()
    loader = DataLoader(Leaky(N), batch_size=BATCH, **{"shuffle": True, **options})
    return ps.attach(loader, model, policy=ps.RandomSubset(0.3), seed=3), Trainer(model, Journal())


def test_a_loop_trains_on_a_fresh_subset_every_epoch_and_nothing_is_scored() -> None:
    loader, trainer = make()
    assert loader.pruning.phase == "pruned"
    assert (len(loader), loader.pruning.total_steps(10)) == (3, 30)
    for _ in range(10):
        drawn = loader.pruning.coreset.rows.tolist()
        trainer.epoch(loader)
        assert sorted(trainer.journal.epochs[-2]) == drawn
    epochs = trainer.journal.epochs[:-1]
    counts = Counter(row for rows in epochs for row in rows)
    assert all(len(set(rows)) == len(rows) == 12 for rows in epochs)
    assert set(counts.values()) <= {2, 3}
    assert len(set(map(frozenset, epochs))) == 10
    assert (loader.pruning.table, loader.pruning.tracker) == (None, None)


def test_epochs_of_full_length_go_through_their_rows_more_than_once() -> None:
    loader = ps.attach(DataLoader(Leaky(N), BATCH), Net(), policy=ps.RandomSubset(12), epoch_length="full")
    assert (len(loader), loader.pruning.total_steps(3)) == (11, 33)
    for _ in range(3):
        drawn = loader.pruning.coreset.rows.tolist()
        counts = Counter(int(row) for x, _ in loader for row in x[:, 0])
        assert sorted(counts) == drawn
        assert set(counts.values()) <= {3, 4}
        assert counts.total() == N
    for policy, what in ((ps.ProxyFilter(Net()), "ProxyFilter"), (ps.PruneOnce(), "policy=")):
        with pytest.raises(ps.ArgumentError, match=f"^epoch_length must.*{what}"):
            ps.attach(DataLoader(Leaky(N), BATCH), Net(), policy=policy, epoch_length="full")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumes_inside_any_epoch(workers: int) -> None:
    options = {"num_workers": workers, "persistent_workers": workers > 0}
    check_run_resumes(lambda: make(**options), 4, every=4 if workers else 1)


def test_a_state_of_another_policy_is_refused() -> None:
    state = make()[0].pruning.state_dict()
    loader = ps.attach(DataLoader(Leaky(N), batch_size=BATCH), Net(), policy=ps.RandomSubset(0.4), seed=3)
    with pytest.raises(ps.StateError, match="RandomSubset"):
        loader.pruning.load_state_dict(state)


def test_only_rows_that_the_sampler_can_draw_are_drawn() -> None:
    eligible = list(range(0, N, 2))
    loader = DataLoader(Leaky(N), batch_size=BATCH, sampler=SubsetRandomSampler(eligible))
    ps.attach(loader, None, policy=ps.RandomSubset(7))
    seen = Counter(int(row) for _ in range(6) for x, _ in loader for row in x[:, 0])
    assert set(seen) == set(eligible)
    assert set(seen.values()) == {2}


def test_ranks_split_one_subset() -> None:
    options = {"policy": ps.RandomSubset(12)}
    alone, *both = (epochs for world in (1, 2) for epochs in run_ranks(world, rows_of_epochs, N, BATCH, 7, options))
    for whole, first, second in zip(alone, *both, strict=True):
        assert len(first) == len(second) == 6
        assert sorted(first + second) == sorted(whole)


def test_ranks_that_never_say_the_epoch_are_warned() -> None:
    sampler = DistributedSampler(range(N), num_replicas=2, rank=0)  # type: ignore[arg-type]
    loader = DataLoader(Leaky(N), batch_size=BATCH, sampler=sampler)
    ps.attach(loader, None, policy=ps.RandomSubset(12))
    list(loader)
    with pytest.warns(ps.PruneSamplerWarning, match="set_epoch"):
        list(loader)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("keep", {"policy": ps.RandomSubset(N + 1)}),
        ("save_dir", {"policy": ps.RandomSubset(0.5), "save_dir": "runs/a"}),
        ("rescore", {"policy": ps.RandomSubset(0.5), "rescore": DataLoader(Leaky(N))}),
        ("keep", {"policy": ps.RandomSubset(0.5), "keep": 0.2}),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ps.ArgumentError, match=f"^{name} must"):
        ps.attach(DataLoader(Leaky(N), batch_size=BATCH), Net(), **options)


@pytest.mark.parametrize("keep", [0, 1, 1.5, True, "auto"])
def test_keep_is_checked(keep: Any) -> None:
    with pytest.raises(ps.ArgumentError, match=r"^keep must"):
        ps.RandomSubset(keep)
