"""Several ranks score and prune as one process would that sees all their batches."""

from __future__ import annotations

import functools
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

import prunesampler as ps
from tests.helpers.rankruns import Run, together
from tests.helpers.ranks import run_ranks
from tests.helpers.training import Leaky, Net

N, BATCH, EPOCHS, PRUNED = 41, 4, 3, 2
CASES: dict[str, dict[str, Any]] = {
    "DistributedSampler": {},
    "PrunedSampler": {"own": True},
    "one batch ahead": {"ahead": True},
    "ranks drop their tails": {"split_drops": True, "loader_drops": True},
    "an order that is not shuffled": {"shuffle": False},
    "fewer rows than places": {"rows": 9, "keep": 2, "batch": 2},
    "as many steps as before": {"epoch_length": "full"},
    "one batch in whatever world": {"rows": 48, "batch": 12},
    "one batch in whatever world, PrunedSampler": {"rows": 48, "batch": 12, "own": True},
    "one batch in whatever world, FSDP": {"rows": 48, "batch": 12, "wrap": "fsdp"},
    "the superfluous go": {"keep": "auto", "threshold": 0.4},
    "a pass of its own": {"rescore": True},
}
SHARED = [name for name in CASES if name.startswith("one batch in")]


def options_of(name: str, world_size: int) -> dict[str, Any]:
    options = {"rows": N, "batch": BATCH, "score_epochs": EPOCHS, "keep": 0.5, **CASES[name]}
    if name in SHARED:
        options["batch"] //= world_size
    return options


def every_case(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    found = {}
    for name in CASES:
        options = options_of(name, world_size)
        if options.get("rescore"):
            options["rescore"] = DataLoader(Leaky(options["rows"]), batch_size=16)
        own = Path(folder, name, str(rank))  # no shared file system
        run = Run(rank, world_size, save_dir=own, **options)
        for epoch in range(EPOCHS + PRUNED):
            if rank == 0:
                with torch.no_grad(), run.loader.pruning.paused():
                    next(iter(run.loader))  # rank 0 alone looks at its data
            run.epoch(epoch)
        found[name] = {**run.found(), "files": sorted(os.listdir(own)) if own.exists() else []}
        run.loader.pruning.detach()
    return found


@functools.cache
def world(world_size: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        return run_ranks(world_size, every_case, folder)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_any_number_of_ranks_is_as_one(name: str, world_size: int) -> None:
    options = options_of(name, world_size)
    ranks = [found[name] for found in world(world_size)]
    rows = options["rows"]
    first = ranks[0]
    kept = first["coreset"].tolist()
    for rank, found in enumerate(ranks):
        assert found["phase"] == "pruned"
        assert found["coreset"].tolist() == kept
        assert found["batches"] == first["batches"]
        assert [len(epoch) for epoch in found["log"]] == [len(epoch) for epoch in first["log"]]
        assert found["files"] == (["coreset.parquet", "scores.parquet"] if rank == 0 else [])

    scored = [[found["log"][epoch] for found in ranks] for epoch in range(EPOCHS)]
    journal = together(scored)
    table = first["table"]
    if not options.get("rescore"):
        expected = torch.tensor([journal.el2n(row) for row in range(rows)], dtype=torch.float64)
        torch.testing.assert_close(table["el2n"].double(), expected, rtol=0, atol=1e-6, equal_nan=True)
        for column, oracle in (("forgetting_events", journal.forgetting), ("learned", journal.learned)):
            assert table[column].tolist() == [oracle(row) for row in range(rows)]
        assert table["presentations"].tolist() == [len(journal.seen[row]) for row in range(rows)]
        assert rows < 40 or table["forgetting_events"].sum() > 0
    if options["keep"] == "auto":
        halves = torch.tensor([journal.halves(row) for row in range(rows)])
        torch.testing.assert_close(table["el2n_spread"], (halves[:, 0] - halves[:, 1]).abs(), rtol=0, atol=1e-6)
        assert kept == sorted({*range(rows)} - journal.superfluous(rows, 0.4))
    else:
        assert len(kept) == (2 if options["keep"] == 2 else round(rows * 0.5))

    for epoch in range(EPOCHS, EPOCHS + PRUNED):
        read = Counter(row for found in ranks for row, *_ in found["log"][epoch])
        assert set(read) <= set(kept)
        if "epoch_length" in options:
            assert set(read) == set(kept)
            assert read.total() == -(-rows // world_size) * world_size
            continue
        dropped = options.get("split_drops", False)
        drawn = len(kept) // world_size * world_size if dropped else -(-len(kept) // world_size) * world_size
        if dropped:
            drawn = drawn // world_size // BATCH * BATCH * world_size
            assert max(read.values()) == 1
        else:
            assert set(read) == set(kept)
        assert read.total() == drawn


@pytest.mark.parametrize("name", SHARED)
def test_scores_and_coreset_do_not_depend_on_the_number_of_ranks(name: str) -> None:
    alone = world(1)[0][name]
    for world_size in (2, 3):
        first = world(world_size)[0][name]
        torch.testing.assert_close(first["table"]["el2n"], alone["table"]["el2n"], rtol=0, atol=1e-5)
        for column in ("forgetting_events", "learned", "presentations"):
            assert first["table"][column].tolist() == alone["table"][column].tolist()
        assert first["coreset"].tolist() == alone["coreset"].tolist()


class Collectives(TorchDispatchMode):
    """Counts them, and the numbers that they carry."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            tensors = args[0] if isinstance(args[0], (list, tuple)) else [args[0]]
            self.sizes.append(sum(tensor.numel() for tensor in tensors if isinstance(tensor, torch.Tensor)))
        return func(*args, **(kwargs or {}))


def count(rank: int, world_size: int) -> dict[str, list[list[int]]]:
    found = {}
    for batch in (8, 200):
        run = Run(rank, world_size, rows=800, batch=batch, wrap="", keep=0.5, score_epochs=EPOCHS)
        found[str(batch)] = []
        for epoch in range(EPOCHS + PRUNED):
            with Collectives() as collectives:
                run.epoch(epoch)
            found[str(batch)].append(collectives.sizes)
        run.loader.pruning.detach()
    return found


def test_ranks_meet_once_an_epoch_in_few_large_collectives() -> None:
    for found in run_ranks(2, count):
        of_50_steps, of_2_steps = found["8"], found["200"]
        assert [*map(len, of_50_steps)] == [*map(len, of_2_steps)]
        assert [*map(len, of_50_steps[EPOCHS:])] == [0] * PRUNED
        for sizes in of_50_steps[:EPOCHS]:
            assert len(sizes) <= 15  # the last of them broadcast the coreset
            # labels, owners, flags, what the model says, and what is summed: presentations, EL2N, forgetting events
            assert sum(size == 800 for size in sizes) == 7
        for sizes in of_50_steps[: EPOCHS - 1]:
            assert all(size < 800 / 4 for size in sizes if size != 800)


def fail_on_one(rank: int, world_size: int, on_error: str) -> str:
    warnings.simplefilter("ignore", ps.PruneSamplerWarning)
    model = Net()
    sampler = DistributedSampler(range(N), num_replicas=world_size, rank=rank)
    loader = ps.attach(
        DataLoader(Leaky(N), batch_size=BATCH, sampler=sampler), model, keep=0.5, score_epochs=1, on_error=on_error
    )
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for x, y in loader:
            nn.functional.cross_entropy(model(x + 1 if rank else x), y).backward()
    return f"{loader.pruning.phase} {len(loader)}"


def split_elsewhere(rank: int, world_size: int) -> list[int]:
    warnings.simplefilter("ignore", ps.PruneSamplerWarning)
    model = Net()
    loader = ps.attach(
        DataLoader(Leaky(N), batch_size=BATCH, sampler=ps.PrunedSampler(N, num_replicas=1)),
        model,
        keep=0.5,
        score_epochs=1,
        method="random",
    )
    for _ in range(2):
        drawn = []
        for x, y in loader:
            nn.functional.cross_entropy(model(x), y).backward()
            drawn += x[:, 0].long().tolist()
    return drawn


def refusal(rank: int, rows: int = N, labels: int = 0, **options: Any) -> str:
    dataset = Leaky(rows)
    dataset.targets[0] = labels
    try:
        ps.attach(DataLoader(dataset, batch_size=BATCH), Net(), **options)
    except ps.PruneSamplerError as error:
        return f"{type(error).__name__}: {error}"
    return "attached"


def apart(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    warnings.simplefilter("ignore", ps.PruneSamplerWarning)
    own = Path(folder, str(rank))
    if rank == 0:
        own.mkdir()
        (own / "scores.parquet").touch()
    return {
        "fails": fail_on_one(rank, world_size, "train_on_all"),
        "drawn": split_elsewhere(rank, world_size),
        "occupied": refusal(rank, save_dir=own),
        "seed": refusal(rank, seed=rank),
        "keep": refusal(rank, keep=0.5 if rank else 0.6),
        "rows": refusal(rank, rows=N + rank),
        "dataset": refusal(rank, labels=rank),
    }


def test_ranks_that_differ() -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = run_ranks(2, apart, folder)
    assert first["fails"] == second["fails"] == "detached 6"
    # Whoever splits batches needs the same order on every rank.
    assert first["drawn"] == second["drawn"]
    assert len(set(first["drawn"])) == len(first["drawn"]) == round(N * 0.5)
    assert first["occupied"] == second["occupied"]
    assert "resume=True" in first["occupied"]
    assert first["dataset"] == second["dataset"]
    assert "give every rank the whole dataset" in first["dataset"]
    for name, values in (("seed", "[0, 1]"), ("keep", "[0.6, 0.5]"), ("rows", "[41, 42]")):
        argument = "len(loader.dataset)" if name == "rows" else name
        expected = f"ArgumentError: {argument} must be the same on every rank, got {values}"
        assert first[name] == second[name] == expected


OWN: dict[str, tuple[Callable[[int], Any], str]] = {
    "random": (lambda rank: RandomSampler(range(N)), "draws its rows on its own, by a RandomSampler"),
    "seeded": (
        lambda rank: RandomSampler(range(N), generator=torch.Generator().manual_seed(rank)),
        'sampler=prunesampler.PrunedSampler(dataset, num_replicas="auto")',
    ),
    "weighted": (
        lambda rank: WeightedRandomSampler([1.0] * N, 24),
        "PrunedSampler(dataset, sampling_weights=weights, replacement=True, epoch_length=rows_of_all_ranks, num_rep",
    ),
    "subset": (lambda rank: SubsetRandomSampler(range(N)), "PrunedSampler(dataset, rows=indices, num_replicas="),
    "subset of a rank": (lambda rank: SubsetRandomSampler(range(rank, N, 2)), "draws its rows on its own"),
    "ours with a rank's rows": (
        lambda rank: ps.PrunedSampler(N, rows=range(rank, N, 2), num_replicas=1),
        "draw from different rows",
    ),
    "ours with a rank's seed": (
        lambda rank: ps.PrunedSampler(N, seed=rank, num_replicas=1),
        "the loader's sampler must be the same on every rank",
    ),
    "all are rank 0": (lambda rank: DistributedSampler(range(N), 2, 0), "read the parts [0, 0] of 2"),
    "more parts than ranks": (lambda rank: DistributedSampler(range(N), 3, rank), "read the parts [0, 1] of 3"),
    "other lengths": (lambda rank: DistributedSampler(range(N - rank), 2, rank), "draw from different rows"),
    "other tails": (
        lambda rank: DistributedSampler(range(N), 2, rank, drop_last=rank > 0),
        "the loader's sampler must be the same",
    ),
    # What is alike, or split, is followed.
    "split": (lambda rank: DistributedSampler(range(N), 2, rank), "attached"),
    "sequential": (lambda rank: SequentialSampler(range(N)), "attached"),
    "cure": (lambda rank: ps.PrunedSampler(N, num_replicas="auto"), "attached"),
    "cure, alike": (lambda rank: ps.PrunedSampler(N, num_replicas=1), "attached"),
    "cure of weights": (
        lambda rank: ps.PrunedSampler(
            N, sampling_weights=[1.0] * N, replacement=True, epoch_length=48, num_replicas="auto"
        ),
        "attached",
    ),
    "cure of a subset": (lambda rank: ps.PrunedSampler(N, rows=range(9), num_replicas="auto"), "attached"),
}


def attached(loader: Any, **options: Any) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ps.PruneSamplerWarning)
            ps.attach(loader, Net(), **options).pruning.detach()
    except ps.PruneSamplerError as error:
        return f"{type(error).__name__}: {error}"
    return "attached"


def on_their_own(rank: int, world_size: int) -> dict[str, str]:
    found = {
        name: attached(DataLoader(Leaky(N), batch_size=BATCH, sampler=sampler(rank)))
        for name, (sampler, _) in OWN.items()
    }
    split = DataLoader(Leaky(N), batch_size=BATCH + rank, sampler=DistributedSampler(range(N), 2, rank))
    found["batches"] = attached(split)
    split = DataLoader(Leaky(N), batch_size=BATCH, sampler=DistributedSampler(range(N), 2, rank))
    found["coreset"] = attached(split, coreset=ps.Coreset(range(20 + rank), num_rows=N))
    found["function"] = attached(split, policy=lambda epoch, table: range(9))
    return found


def test_ranks_that_draw_on_their_own_are_refused_at_attach() -> None:
    first, second = run_ranks(2, on_their_own)
    assert first == second
    for name, (_, expected) in OWN.items():
        assert expected in first[name], name
    assert "batches of a pass over the loader must be the same on every rank, got [6, 5]" in first["batches"]
    assert "coreset must be the same on every rank" in first["coreset"]
    assert first["function"] == "attached"
