"""Several ranks score and prune as one process would that sees all their batches."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import prunesampler as ps
from ranks import run_ranks
from training import Journal, Leaky, Net, Trainer, lookahead

N, BATCH, EPOCHS = 41, 4, 3  # 41 rows over two ranks: one padding duplicate


def train(rank: int, world_size: int, folder: str, options: dict[str, Any]) -> dict[str, Any]:
    warnings.simplefilter("ignore", ps.PruneSamplerWarning)
    model = DistributedDataParallel(Net())
    own = Path(folder, str(rank))  # no shared file system
    sampler = DistributedSampler(range(N), num_replicas=world_size, rank=rank, seed=2)
    rescore = DataLoader(Leaky(N), batch_size=16) if options.get("rescored") else None
    loader = ps.attach(
        DataLoader(Leaky(N), batch_size=BATCH, sampler=sampler),
        model,
        keep=options.get("keep", 0.5),
        threshold=0.4 if options.get("keep") == "auto" else None,
        score_epochs=EPOCHS,
        save_dir=own,
        rescore=rescore,
    )
    trainer = Trainer(model, Journal())
    batches = []
    for epoch in range(EPOCHS + 2):
        sampler.set_epoch(epoch)
        trainer.journal.recording = epoch < EPOCHS
        before = len(trainer.journal.epochs[-1])
        assert before == 0
        if rank == 0:
            with torch.no_grad(), loader.pruning.paused():
                next(iter(loader))  # rank 0 alone looks at its data
        trainer.epoch(lookahead(loader) if options.get("ahead") else loader)
        batches.append(len(trainer.journal.epochs[-2]))
    coreset, table = loader.pruning.coreset, loader.pruning.table
    assert coreset is not None
    return {
        "epochs": trainer.journal.epochs[:-1],
        "seen": {row: list(map(list, seen)) for row, seen in trainer.journal.seen.items()},
        "batches": batches,
        "coreset": coreset.rows.tolist(),
        "files": sorted(os.listdir(own)) if own.exists() else [],
        "el2n": None if table is None else table.scores["el2n"].tolist(),
        "spread": None if table is None or "el2n_spread" not in table.scores else table.scores["el2n_spread"].tolist(),
        "forgetting": [] if table is None or table.forgetting_events is None else table.forgetting_events.tolist(),
    }


def union(results: list[dict[str, Any]]) -> Journal:
    """One journal of what all ranks saw: of padding duplicates in an epoch the lowest rank's counts."""
    journal = Journal()
    cursors = [dict.fromkeys(range(N), 0) for _ in results]
    for epoch in range(EPOCHS):
        taken: set[int] = set()
        for rank, result in enumerate(results):
            for row in result["epochs"][epoch]:
                presentation = result["seen"][row][cursors[rank][row]]
                cursors[rank][row] += 1
                if row not in taken:
                    journal.seen[row].append(tuple(presentation))
            taken |= set(result["epochs"][epoch])
    return journal


@pytest.mark.parametrize("options", [{}, {"ahead": True}], ids=str)
def test_two_ranks_are_one(options: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        results = run_ranks(2, train, folder, options)
    first, second = results
    assert first["coreset"] == second["coreset"]
    assert len(first["coreset"]) == round(N * 0.5)
    assert first["batches"] == second["batches"]
    assert first["files"] == ["coreset.parquet", "scores.parquet"]
    assert second["files"] == []
    journal = union(results)
    assert first["el2n"] == pytest.approx([journal.el2n(row) for row in range(N)], abs=1e-6)
    assert first["forgetting"] == [journal.forgetting(row) for row in range(N)]
    assert sum(first["forgetting"]) > 0
    for epoch in range(EPOCHS, EPOCHS + 2):
        assert sorted(first["epochs"][epoch] + second["epochs"][epoch]) == first["coreset"]


def test_a_pass_of_its_own_gives_all_ranks_one_coreset() -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = run_ranks(2, train, folder, {"rescored": True})
    assert first["coreset"] == second["coreset"]
    assert first["batches"] == second["batches"]
    assert second["files"] == []


def test_two_ranks_find_the_same_rows_superfluous() -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = results = run_ranks(2, train, folder, {"keep": "auto"})
    journal = union(results)
    halves = [journal.halves(row) for row in range(N)]
    assert first["spread"] == pytest.approx([abs(odd - even) for odd, even in halves], abs=1e-6)
    gone = journal.superfluous(N, 0.4)
    assert first["coreset"] == second["coreset"] == sorted(set(range(N)) - gone)
    assert first["batches"] == second["batches"]
    for epoch in range(EPOCHS, EPOCHS + 2):
        assert set(first["epochs"][epoch] + second["epochs"][epoch]) == set(first["coreset"])


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


def test_all_ranks_give_up_together() -> None:
    assert run_ranks(2, fail_on_one, "train_on_all") == ["detached 6", "detached 6"]


def split_elsewhere(rank: int, world_size: int) -> list[int]:
    warnings.simplefilter("ignore", ps.PruneSamplerWarning)
    model = Net()
    loader = ps.attach(
        DataLoader(Leaky(N), batch_size=BATCH, shuffle=True), model, keep=0.5, score_epochs=1, method="random"
    )
    for _ in range(2):
        drawn = []
        for x, y in loader:
            nn.functional.cross_entropy(model(x), y).backward()
            drawn += x[:, 0].long().tolist()
    return drawn


def test_ranks_that_were_not_split_are_not_split_afterwards() -> None:
    first, second = run_ranks(2, split_elsewhere)
    assert first == second  # whoever splits batches needs the same order on every rank
    assert len(set(first)) == len(first) == round(N * 0.5)


def occupied(rank: int, world_size: int, folder: str) -> str:
    warnings.simplefilter("ignore", ps.PruneSamplerWarning)
    own = Path(folder, str(rank))
    if rank == 0:
        own.mkdir()
        (own / "scores.parquet").touch()
    try:
        ps.attach(DataLoader(Leaky(N), batch_size=BATCH), Net(), save_dir=own)
    except ps.StateError as error:
        return str(error)
    return "attached"


def test_a_refusal_on_rank_0_reaches_all() -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = run_ranks(2, occupied, folder)
    assert first == second
    assert "resume=True" in first
