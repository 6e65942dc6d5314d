from __future__ import annotations

import contextlib
import copy
import itertools
import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from prunesampler.errors import ArgumentError, MismatchError, StateError
from prunesampler.sampling.sampler import PrunedSampler
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.fingerprint import fingerprint
from tests.helpers.resume import check_resume
from tests.sampling.test_permutation import assert_even

# torchdata calls it on current PyTorch
TORCHDATA = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
CORESET = Coreset([1, 2, 3, 5, 8, 13, 21], num_rows=30)
WEIGHTED = {"sampling_weights": np.ones(30)}


def ranks(world, *arguments, **options):
    return [PrunedSampler(*arguments, num_replicas=world, rank=rank, **options) for rank in range(world)]


def of_epoch(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


# --- orders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 4096, 5000, 140_000])
def test_an_epoch_holds_every_row_once(n):
    sampler = PrunedSampler(n)
    for _ in range(2):
        rows = list(sampler)
        assert all(type(row) is int for row in rows)
        assert sorted(rows) == list(range(n))
    assert len(sampler) == n


def test_takes_a_dataset_or_its_length():
    dataset = TensorDataset(torch.arange(9))
    assert list(PrunedSampler(dataset)) == list(PrunedSampler(9)) == list(PrunedSampler(np.int64(9)))
    assert PrunedSampler(dataset).data_source is dataset


def test_without_shuffling_rows_come_as_given():
    assert list(PrunedSampler(5, shuffle=False)) == [0, 1, 2, 3, 4]
    assert list(PrunedSampler(9, shuffle=False, rows=[7, 2, 5])) == [7, 2, 5]
    pruned = PrunedSampler(9, shuffle=False, rows=[7, 2, 5], coreset=Coreset([2, 7], num_rows=9))
    assert list(pruned) == [7, 2]
    shuffled = PrunedSampler(100, rows=torch.tensor([50, 4, 99]))
    assert (sorted(shuffled), len(shuffled)) == ([4, 50, 99], 3)


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [of_epoch(PrunedSampler(50, seed=seed), epoch) for seed in range(5) for epoch in range(5)]
    assert len(set(map(tuple, orders))) == 25


def test_each_iterator_is_the_next_epoch_on_one_replica():
    sampler, other = PrunedSampler(20), PrunedSampler(20)
    assert [list(sampler) for _ in range(3)] == [of_epoch(other, epoch) for epoch in range(3)]
    assert sampler.epoch == 3
    sampler.set_epoch(1)
    assert [list(sampler), list(sampler)] == [of_epoch(other, 1), of_epoch(other, 2)]


def test_only_set_epoch_moves_several_replicas():
    (sampler, _) = ranks(2, 20)
    first = list(sampler)
    assert list(sampler) == first
    assert of_epoch(sampler, 1) != first
    assert of_epoch(sampler, 0) == first


def test_iterators_at_the_same_time_are_independent():
    sampler, other = PrunedSampler(9000), PrunedSampler(9000)
    first, second = iter(sampler), iter(sampler)
    pairs = list(zip(first, second, strict=True))
    assert [one for one, _ in pairs] == of_epoch(other, 0)
    assert [two for _, two in pairs] == of_epoch(other, 1)
    assert next(first, None) is None, "an epoch that has ended stays ended"


def test_the_epoch_of_an_iterator_is_fixed_when_it_is_made():
    sampler = PrunedSampler(20)
    iterator = iter(sampler)
    sampler.set_epoch(7)
    sampler.prune(Coreset([3], num_rows=20))
    assert list(iterator) == of_epoch(PrunedSampler(20), 0)


def test_no_global_generator_is_touched():
    def states():
        _, state, *rest = np.random.get_state()  # noqa: NPY002
        return torch.get_rng_state().tolist(), state.tolist(), rest, random.getstate()

    before = states()
    sampler = PrunedSampler(30, generator=torch.Generator(), sampling_weights=np.ones(30), replacement=True)
    sampler.prune(CORESET)
    assert len(list(sampler)) == 7
    assert states() == before


def test_the_seed_is_drawn_from_the_generator_once():
    generators = [torch.Generator().manual_seed(number) for number in (1, 1, 2)]
    samplers = [PrunedSampler(50, generator=generator) for generator in generators]
    states = [generator.get_state() for generator in generators]
    orders = [list(sampler) for sampler in samplers]
    assert orders[0] == orders[1] != orders[2]
    assert samplers[0].generator is generators[0]
    assert all(torch.equal(state, generator.get_state()) for state, generator in zip(states, generators, strict=True))


# --- pruning and lengths ----------------------------------------------------------------------------------


def test_pruning_takes_effect_at_the_next_iterator():
    sampler = PrunedSampler(30)
    assert len(sampler) == len(list(sampler)) == 30
    sampler.prune(CORESET)
    assert len(sampler) == 7
    assert sampler.coreset is CORESET
    assert [sorted(sampler), sorted(sampler)] == [CORESET.rows.tolist()] * 2
    sampler.prune(None)
    assert len(sampler) == len(list(sampler)) == 30


@pytest.mark.parametrize(("epoch_length", "before", "after"), [("kept", 30, 7), ("full", 30, 30), (12, 12, 12)])
def test_epoch_length(epoch_length, before, after):
    sampler = PrunedSampler(30, epoch_length=epoch_length)
    assert len(sampler) == len(list(sampler)) == before
    sampler.prune(CORESET)
    sampler.set_epoch(0)
    epochs = [list(sampler) for _ in range(7)]
    assert [len(epoch) for epoch in epochs] == [len(sampler)] * 7 == [after] * 7
    stream = list(itertools.chain(*epochs))
    for start in range(0, len(stream) - 6, 7):
        assert sorted(stream[start : start + 7]) == CORESET.rows.tolist(), "each pass holds each row once"
    fewer = PrunedSampler(30, rows=range(20), epoch_length="full", coreset=Coreset([1, 2], num_rows=30))
    assert len(fewer) == len(list(fewer)) == 20, "the full length is the number of eligible rows"


def test_a_refused_coreset_leaves_the_sampler_as_it_was():
    sampler = PrunedSampler(30, rows=range(1, 30))
    for coreset, rule in ((Coreset([1], num_rows=31), "30 rows"), (Coreset([0, 1], num_rows=30), "eligible")):
        with pytest.raises(ArgumentError, match=rule):
            sampler.prune(coreset)
    assert sampler.coreset is None
    assert sorted(sampler) == list(range(1, 30))


def test_pruning_speaks_of_the_next_iterator():
    sampler = PrunedSampler(30)
    iterator = iter(sampler)
    next(iterator)
    sampler.prune(CORESET)
    state = sampler.state_dict()
    assert (state["epoch"], state["position"], state["kept"]) == (1, 0, 7)
    assert len(list(iterator)) == 29

    sampler.set_epoch(3)
    assert next(iter(sampler)) in CORESET.rows
    resumed = PrunedSampler(30, coreset=CORESET)
    resumed.load_state_dict(sampler.state_dict())
    resumed.prune(Coreset(CORESET.rows, num_rows=30))
    assert resumed.state_dict()["position"] == 1, "the same set: nothing changes"
    resumed.prune(None)
    assert (resumed.epoch, len(list(resumed))) == (3, 30)


# --- ranks ------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 23), st.integers(1, 5), st.booleans(), st.booleans(), st.integers(0, 3))
def test_ranks_read_what_a_plain_distributed_sampler_would(n, world, drop_last, shuffle, epoch):
    order = of_epoch(PrunedSampler(n, shuffle=shuffle), epoch)
    share = n // world if drop_last else -(-n // world)
    padded = [order[at % n] for at in range(share * world)]
    for rank, sampler in enumerate(ranks(world, n, shuffle=shuffle, drop_last=drop_last)):
        assert of_epoch(sampler, epoch) == padded[rank::world]
        assert len(sampler) == share


def test_ranks_share_the_pruned_rows():
    samplers = ranks(3, 30, coreset=CORESET, drop_last=True)
    shares = [list(sampler) for sampler in samplers]
    assert [len(share) for share in shares] == [len(sampler) for sampler in samplers] == [2, 2, 2]
    assert len(set(itertools.chain(*shares))) == 6


@pytest.fixture
def joined(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)


def test_a_process_group_has_to_be_mentioned(joined):
    with pytest.raises(ArgumentError, match="num_replicas must be given among 3 ranks"):
        PrunedSampler(10)
    assert PrunedSampler(10, num_replicas=1).num_replicas == 1
    assert PrunedSampler(10, num_replicas=1).rank == 0
    for asked in ("auto", 3):
        sampler = PrunedSampler(10, num_replicas=asked)
        assert (sampler.num_replicas, sampler.rank) == (3, 2)


def test_auto_without_a_process_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert PrunedSampler(10, num_replicas="auto").num_replicas == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ArgumentError, match="init_process_group"):
        PrunedSampler(10, num_replicas="auto")


# --- draws ------------------------------------------------------------------------------------------------


def test_draws_with_replacement_follow_the_weights_of_the_kept_rows():
    uniform = PrunedSampler(30, replacement=True, coreset=CORESET, epoch_length=7000)
    assert_even(np.bincount(list(uniform), minlength=30)[CORESET.rows], 1000)
    assert len(PrunedSampler(30, replacement=True)) == 30
    weights = np.arange(30.0)
    sampler = PrunedSampler(30, sampling_weights=weights, replacement=True, epoch_length=20_000)
    assert_even(np.bincount(list(sampler), minlength=30)[1:], 20_000 * weights[1:] / weights.sum())
    sampler.prune(CORESET)
    counts = np.bincount(list(sampler), minlength=30)
    kept = CORESET.rows
    assert counts.sum() == counts[kept].sum()
    assert_even(counts[kept], 20_000 * weights[kept] / weights[kept].sum())


def test_weighted_draws_without_replacement():
    weights = torch.arange(30.0)
    sampler = PrunedSampler(30, sampling_weights=weights, coreset=CORESET)
    assert [sorted(sampler) for _ in range(3)] == [CORESET.rows.tolist()] * 3
    shorter = PrunedSampler(30, sampling_weights=weights, coreset=CORESET, epoch_length=1)
    counts = np.bincount([row for _ in range(3000) for row in shorter], minlength=30)[CORESET.rows]
    assert_even(counts, 3000 * CORESET.rows / CORESET.rows.sum())


def test_rows_of_weight_zero_are_never_drawn():
    weights = (np.arange(30) == 8) + 0.0
    for replacement in (False, True):
        sampler = PrunedSampler(30, sampling_weights=weights, replacement=replacement)
        assert list(sampler) == [8] * 30
        with pytest.raises(ArgumentError, match="above 0"):
            sampler.prune(Coreset([1, 2], num_rows=30))


# --- resuming ---------------------------------------------------------------------------------------------

CONFIGURATIONS = [
    {},
    {"coreset": CORESET},
    {"shuffle": False, "rows": [9, 1, 4, 2]},
    {"coreset": CORESET, "epoch_length": "full"},
    {"epoch_length": 11},
    {"sampling_weights": np.arange(30.0), "replacement": True, "epoch_length": 5},
    {"sampling_weights": np.arange(30.0), "coreset": CORESET},
    {"coreset": CORESET, "num_replicas": 3, "rank": 1},
    {"coreset": CORESET, "num_replicas": 3, "rank": 2, "drop_last": True},
]


def with_set_epoch(sampler, number, start):
    sampler.set_epoch(number)
    return iter(sampler)


@pytest.mark.parametrize("options", CONFIGURATIONS)
def test_resumes_anywhere(options):
    check_resume(lambda: PrunedSampler(30, **options), with_set_epoch)
    if "num_replicas" not in options:
        check_resume(lambda: PrunedSampler(30, **options), lambda sampler, number, start: iter(sampler))


def test_resumes_in_every_chunk():
    order = list(PrunedSampler(150_000))
    for taken in (1, 4095, 4096, 4097, 69_631, 69_632, 69_633, 149_999):
        sampler = PrunedSampler(150_000)
        iterator = iter(sampler)
        assert list(itertools.islice(iterator, taken)) == order[:taken]
        resumed = PrunedSampler(150_000)
        resumed.load_state_dict(sampler.state_dict())
        assert list(resumed) == list(iterator) == order[taken:]


def test_the_state_is_plain_and_survives_json():
    sampler = PrunedSampler(30, coreset=CORESET, epoch_length="full", sampling_weights=np.ones(30))
    next(iter(sampler))
    state = sampler.state_dict()
    assert json.loads(json.dumps(state)) == state
    assert {type(value) for value in state.values()} <= {int, str, bool}
    assert (state["epoch"], state["position"]) == (0, 1)


def test_the_position_may_be_given():
    sampler = PrunedSampler(30)
    iterator = iter(sampler)
    order = [next(iterator) for _ in range(20)]
    state = sampler.state_dict(position=8)
    resumed = PrunedSampler(30)
    resumed.load_state_dict(state)
    assert list(resumed)[:12] == order[8:]
    assert sampler.state_dict(position=30) == sampler.state_dict() | {"epoch": 1, "position": 0}


def test_the_end_of_an_epoch_is_the_start_of_the_next():
    for options in ({}, {"num_replicas": 4, "rank": 3}, {"num_replicas": 4, "rank": 3, "drop_last": True}):
        sampler = PrunedSampler(30, **options)
        list(itertools.islice(sampler, len(sampler)))
        state = sampler.state_dict()
        assert (state["epoch"], state["position"]) == (1, 0)


def test_where_the_latest_iterator_began():
    sampler = PrunedSampler(30)
    assert sampler.began == (0, 0), "without an iterator, where the next will begin"
    list(sampler)
    assert sampler.began == (0, 0)
    next(iter(sampler))
    assert sampler.began == (1, 0)
    resumed = PrunedSampler(30)
    resumed.load_state_dict(sampler.state_dict())
    assert resumed.began == (1, 1)
    list(itertools.islice(resumed, 5))
    assert resumed.began == (1, 1)
    resumed.set_epoch(1)  # Lightning says the epoch again, after workers have asked for rows
    assert resumed.began == (1, 1)
    iter(resumed)
    assert resumed.began == (1, 0)


def test_length_is_that_of_a_full_epoch_after_loading():
    sampler = PrunedSampler(30)
    next(iter(sampler))
    resumed = PrunedSampler(30)
    resumed.load_state_dict(sampler.state_dict())
    assert len(resumed) == 30
    assert [len(list(resumed)), len(list(resumed))] == [29, 30]


def test_set_epoch_keeps_the_loaded_position_only_in_its_epoch():
    sampler = PrunedSampler(30)
    sampler.set_epoch(4)
    next(iter(sampler))
    for epoch, left in ((4, 29), (5, 30)):
        resumed = PrunedSampler(30)
        resumed.load_state_dict(sampler.state_dict())
        assert resumed.epoch == 4
        assert len(of_epoch(resumed, epoch)) == left


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 25), st.integers(1, 5), st.integers(1, 5), st.integers(0, 25), st.booleans(), st.integers(0, 2))
def test_another_number_of_ranks_reads_the_rest(n, before, after, steps, drop_last, epoch):
    order = of_epoch(PrunedSampler(n), epoch)
    old = ranks(before, n, drop_last=drop_last)
    steps = min(steps, max(len(old[0]) - 1, 0))
    read = []
    for sampler in old:
        sampler.set_epoch(epoch)
        read += itertools.islice(sampler, steps)
    (state,) = {json.dumps(sampler.state_dict()) for sampler in old}
    assert sorted(read) == sorted(order[: steps * before])

    new = ranks(after, n, drop_last=drop_last)
    for sampler in new:
        sampler.load_state_dict(json.loads(state))
    rest = order[steps * before :]
    if drop_last and steps and len(rest) < after:
        assert {sampler.epoch for sampler in new} == {epoch + 1}, "none of the rest can be shared"
        return
    assert {sampler.epoch for sampler in new} == {epoch}
    shares = [list(sampler) for sampler in new]
    dealt = [row for step in zip(*shares, strict=True) for row in step]
    if drop_last:
        assert dealt == rest[: len(rest) // after * after]
    else:
        assert dealt[: len(rest)] == rest
        assert len(dealt) - len(rest) < after


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 1},
        {"shuffle": False},
        {"drop_last": True},
        {"epoch_length": 7},
        {"coreset": None},
        {"coreset": Coreset([1, 2, 3, 5, 8, 13, 22], num_rows=30)},
        {"rows": range(30)},
        {"replacement": True},
        {"sampling_weights": np.ones(30)},
        {"data_source": 31, "coreset": None},
    ],
)
def test_a_state_of_another_configuration_is_refused(options):
    options = {"data_source": 30, "coreset": CORESET, **options}
    sampler = PrunedSampler(options.pop("data_source"), **options)
    with pytest.raises(StateError, match="another sampler"):
        sampler.load_state_dict(PrunedSampler(30, coreset=CORESET).state_dict())
    assert sampler.state_dict()["position"] == 0


def test_a_damaged_state_is_refused():
    sampler = PrunedSampler(30)
    state = sampler.state_dict()
    wrong = [{"position": -1}, {"position": 1.5}, {"epoch": "0"}, {"epoch": True}, {"version": 2}, {"more": 1}]
    for damaged in [state | change for change in wrong]:
        with pytest.raises(StateError):
            sampler.load_state_dict(damaged)
    missing = [{key: value for key, value in state.items() if key != name} for name in state]
    for nonsense in (*missing, {}, None, [1]):
        with pytest.raises(StateError, match="holds"):
            sampler.load_state_dict(nonsense)


def test_copies_and_pickles_go_on_alone():
    sampler = PrunedSampler(30, sampling_weights=np.ones(30), generator=torch.Generator())
    iterator = iter(sampler)
    next(iterator)
    copies = [copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))]
    rest = list(iterator)
    for each in copies:
        assert each.state_dict()["position"] == 1
        each.load_state_dict(each.state_dict())
        assert list(each) == rest


# --- a new coreset every epoch ----------------------------------------------------------------------------


def coreset_of(epoch):
    """What a dynamic policy might draw before an epoch: other rows, another number of them, other weights."""
    rng = np.random.default_rng(epoch)
    rows = rng.permutation(30)[: 7 + epoch % 3]
    return Coreset(rows, num_rows=30, weights=rng.random(len(rows)) + 0.5 if epoch % 2 else None)


def pruned_epoch(sampler, number, start):
    """One epoch of a loop that draws a coreset, gives it to the sampler and, on several ranks, says the epoch."""
    sampler.prune(coreset_of(number))
    if sampler.num_replicas > 1:
        sampler.set_epoch(number)
    return iter(sampler)


@pytest.mark.parametrize("epoch_length", ["kept", "full", 11])
def test_every_epoch_may_have_another_coreset(epoch_length):
    sampler = PrunedSampler(30, seed=3, epoch_length=epoch_length)
    for epoch in range(5):
        coreset = coreset_of(epoch)
        rows = list(pruned_epoch(sampler, epoch, 0))
        assert len(rows) == len(sampler) == {"kept": len(coreset), "full": 30}.get(epoch_length, epoch_length)
        assert set(rows) <= set(coreset.rows.tolist())
        assert rows == of_epoch(PrunedSampler(30, seed=3, epoch_length=epoch_length, coreset=coreset), epoch)
        assert sampler.epoch == epoch + 1


def test_ranks_split_every_new_coreset():
    samplers = ranks(3, 30)
    single = PrunedSampler(30)
    for epoch in range(5):
        order = list(pruned_epoch(single, epoch, 0))
        parts = [list(pruned_epoch(sampler, epoch, 0)) for sampler in samplers]
        dealt = [row for step in zip(*parts, strict=True) for row in step]
        assert dealt == order + order[: -len(order) % 3]


class PolicySampler:
    """A sampler and the loop around it, which gives the epoch's coreset back before a state is loaded."""

    def __init__(self, **options):
        self.sampler = PrunedSampler(30, **options)
        self.state_dict = self.sampler.state_dict

    def load_state_dict(self, state):
        kept = {coreset_of(epoch).digest: coreset_of(epoch) for epoch in range(5)}
        self.sampler.prune(kept.get(state["coreset"]))
        self.sampler.load_state_dict(state)


@pytest.mark.parametrize(
    "options", [{}, {"epoch_length": "full"}, {"epoch_length": 11}, {"num_replicas": 3, "rank": 1}, {"drop_last": True}]
)
def test_an_epoch_of_a_dynamic_policy_resumes_anywhere(options):
    check_resume(
        lambda: PolicySampler(**options),
        lambda policy, number, start: pruned_epoch(policy.sampler, number, start),
        epochs=4,
    )


def test_the_state_of_an_epoch_needs_the_coreset_of_that_epoch():
    sampler = PrunedSampler(30)
    next(pruned_epoch(sampler, 0, 0))
    resumed = PrunedSampler(30, coreset=coreset_of(1))
    with pytest.raises(StateError, match=r"call prune\(\) with the coreset of the state first"):
        resumed.load_state_dict(sampler.state_dict())


# --- earlier releases -------------------------------------------------------------------------------------


def test_a_state_of_the_first_release_resumes_on_its_own_rows():
    coreset = Coreset.load(Path(__file__).parents[1] / "tables" / "data" / "coreset.parquet")
    sampler = PrunedSampler(40, seed=7, coreset=coreset, epoch_length="full", num_replicas=2, rank=1)
    sampler.set_epoch(3)
    running = iter(sampler)
    assert list(itertools.islice(running, 4)) == [32, 39, 21, 14]
    state = {
        **{"version": 1, "epoch": 3, "position": 8, "num_rows": 40, "seed": 7, "shuffle": True},
        **{"replacement": False, "epoch_length": "full", "rows": "", "sampling_weights": "", "kept": 12},
        "coreset": "sha256:4840b9b2f88bfad7e41234e3acb8a542683ae450e8e4303adfc26fba2fadfa21",
        "drop_last": False,
    }
    assert sampler.state_dict() == state
    rest = [28, 0, 28, 32, 11, 18, 21, 7, 7, 14, 18, 28, 11, 39, 18, 7]
    assert list(running) == rest
    sampler.load_state_dict(state)
    assert list(sampler) == rest


def test_a_weighted_state_of_the_first_release_resumes_on_its_own_rows():
    rows = [row for row in range(40) if row % 7 != 3]
    sampler = PrunedSampler(40, seed=7, rows=rows, sampling_weights=np.arange(40) % 5)
    state = {
        **{"version": 1, "epoch": 1, "position": 20, "num_rows": 40, "seed": 7, "shuffle": True},
        **{"replacement": False, "epoch_length": "kept", "kept": 34, "coreset": "", "drop_last": False},
        "rows": "568ea18dd7aba451bd4987cc4a5ed86aecbe3f5e59fd23fd80a05e3fab8c58ac",
        "sampling_weights": "e318e6f562e5afe3a8f5d41e56f576b4550499f6165bce8422788bbce7d6c964",
    }
    sampler.load_state_dict(state)
    assert list(sampler) == [34, 7, 26, 39, 22, 28, 29, 13, 18, 4, 27, 36, 37, 9]


# --- loaders ----------------------------------------------------------------------------------------------


def test_takes_the_place_of_a_sampler_in_a_loader():
    dataset = TensorDataset(torch.arange(30))
    loader = DataLoader(dataset, batch_size=4, sampler=PrunedSampler(dataset, coreset=CORESET))
    for _ in range(2):
        batches = [batch.tolist() for (batch,) in loader]
        assert [len(batch) for batch in batches] == [4, 3]
        assert sorted(itertools.chain(*batches)) == CORESET.rows.tolist()
    assert len(loader) == 2


def stateful_loader(workers, batch_size, **options):
    dataset = list(range(30))
    sampler = PrunedSampler(dataset, coreset=CORESET, epoch_length=10, **options)
    return StatefulDataLoader(
        dataset, batch_size, sampler=sampler, num_workers=workers, collate_fn=list if batch_size else None
    )


@TORCHDATA
@pytest.mark.parametrize(("workers", "batch_size"), [(0, 3), (0, 5), (0, None), (2, 5)])
def test_resumes_inside_a_stateful_loader(workers, batch_size):
    whole = stateful_loader(workers, batch_size)
    record = [list(whole) for _ in range(3)]
    steps = len(record[0])
    for epoch, step in itertools.product((0, 1), range(steps + 1) if not workers else (0, 1, steps)):
        loader = stateful_loader(workers, batch_size)
        for _ in range(epoch):
            list(loader)
        running = iter(loader)
        assert list(itertools.islice(running, step)) == record[epoch][:step]
        state = copy.deepcopy(loader.state_dict())
        resumed = stateful_loader(workers, batch_size)
        resumed.load_state_dict(state)
        assert list(resumed) == list(running) == record[epoch][step:]
        assert list(resumed) == record[epoch + 1]
    between = stateful_loader(workers, batch_size)
    assert list(between) == record[0]
    resumed = stateful_loader(workers, batch_size)
    resumed.load_state_dict(copy.deepcopy(between.state_dict()))
    assert [list(resumed), list(resumed)] == record[1:]


@TORCHDATA
def test_a_stateful_loader_whose_state_is_asked_for_first():
    loader = stateful_loader(0, 3)
    resumed = stateful_loader(0, 3)
    resumed.load_state_dict(copy.deepcopy(loader.state_dict()))
    assert list(resumed) == list(loader) == list(stateful_loader(0, 3))


# --- construction -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "wrong"),
    [
        ("data_source", [{"data_source": value} for value in (0, [], 2.0, True)]),
        ("seed", [{"seed": 1.0}, {"seed": 1, "generator": torch.Generator()}]),
        ("shuffle", [{"shuffle": "no"}, *({"shuffle": False, **more} for more in ({"replacement": True}, WEIGHTED))]),
        ("replacement", [{"replacement": 1}]),
        ("drop_last", [{"drop_last": None}]),
        ("num_replicas", [{"num_replicas": 0}, {"num_replicas": "all"}]),
        ("rank", [{"num_replicas": 2}, {"num_replicas": 2, "rank": 2}, {"rank": 1}]),
        ("epoch_length", [{"epoch_length": value} for value in (0, "half", 0.5)]),
        ("rows", [{"rows": value} for value in ([1, 1], [30], [], [1.5])]),
        (
            "sampling_weights",
            [{"sampling_weights": np.full(30, value)} for value in (-1, np.nan, np.inf, 0)]
            + [{"sampling_weights": [1.0] * 29}],
        ),
        ("coreset", [{"coreset": Coreset([1], num_rows=29)}, {"coreset": CORESET, "rows": [1, 2]}]),
    ],
)
def test_bad_arguments_are_refused_at_once(argument, wrong):
    for options in wrong:
        with pytest.raises(ArgumentError) as caught:
            PrunedSampler(**{"data_source": 30, **options})
        assert caught.value.argument == argument


def test_epochs_go_to_the_last_one_of_the_largest_dataset():
    for epoch in (-1, 1.0, 2**30):
        with pytest.raises(ArgumentError, match="epoch"):
            PrunedSampler(30).set_epoch(epoch)
    sampler = PrunedSampler(2**33)
    sampler.set_epoch(2**30 - 1)
    rows = list(itertools.islice(sampler, 10))
    assert 0 <= min(rows) <= max(rows) < 2**33


# --- files ------------------------------------------------------------------------------------------------


def test_from_parquet(tmp_path):
    path = tmp_path / "coreset.parquet"
    CORESET.save(path)
    for source in (None, 30, list(range(30))):
        sampler = PrunedSampler.from_parquet(path, source, seed=5)
        assert sampler.seed == 5
        assert sorted(sampler) == CORESET.rows.tolist()
    for source in (31, list(range(31))):
        with pytest.raises(MismatchError, match="30 rows"):
            PrunedSampler.from_parquet(path, source)


def test_from_parquet_knows_the_dataset(tmp_path):
    path = tmp_path / "coreset.parquet"
    dataset = list(range(30))
    for found, sound in ((fingerprint(dataset), True), ("sha256:of-another-dataset", False)):
        Coreset([1, 2], num_rows=30, fingerprint=found).save(path)
        assert len(PrunedSampler.from_parquet(path)) == 2
        with contextlib.nullcontext() if sound else pytest.raises(MismatchError):
            assert len(PrunedSampler.from_parquet(path, dataset)) == 2


def test_its_repr_and_what_torch_makes_of_it():
    assert repr(PrunedSampler(30, coreset=CORESET)).startswith("PrunedSampler(rows=7, of=30, seed=0")
    assert list(BatchSampler(PrunedSampler(3, shuffle=False), 2, False)) == [[0, 1], [2]]
