"""Attached loaders of forty leaky rows, as most tests of a whole run want them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader

import prunesampler as ps
from tests.helpers.resume import through_a_file
from tests.helpers.training import Journal, Leaky, Net, Trainer, check_scores, hardest

N, BATCH, EPOCHS = 40, 6, 3  # 40 rows leave a last batch of 4
AUTO: dict[str, Any] = {"keep": "auto", "method": "stratified", "threshold": 0.4}


def collate_pairs(samples: list[Any]) -> Any:
    return torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])


def attach(loader: Any, model: Any, **options: Any) -> Any:
    options = {"keep": 0.7, "score_epochs": EPOCHS, "method": "top", **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.PruneSamplerWarning)
        return ps.attach(loader, model, **options)


def make_loader(dataset: Any = None, **options: Any) -> Any:
    options = {"batch_size": BATCH, "shuffle": True, "generator": torch.Generator().manual_seed(5), **options}
    return DataLoader(Leaky(N) if dataset is None else dataset, **options)


def started(loader: Any = None, model: Any = None, lr: float = 0.4, **options: Any) -> tuple[Any, Trainer]:
    """An attached loader, and the loop that trains on it and writes down what it sees."""
    model = Net() if model is None else model
    return attach(make_loader() if loader is None else loader, model, **options), Trainer(model, Journal(), lr)


def scored(*args: Any, epochs: int = EPOCHS, **options: Any) -> tuple[Any, Trainer]:
    """The same after its scoring epochs."""
    loader, trainer = started(*args, **options)
    for _ in range(epochs):
        trainer.epoch(loader)
    return loader, trainer


def check_pruned_epochs(loader: Any, trainer: Trainer, kept: set[int], epochs: int = 2) -> None:
    journal = trainer.journal
    journal.recording = False
    assert loader.pruning.phase in ("scoring", "pruned")  # the switch is at the next iter
    for _ in range(epochs):
        trainer.epoch(loader)
        assert loader.pruning.phase == "pruned"
        assert sorted(journal.epochs[-2]) == sorted(kept)
        assert len(loader) == -(-len(kept) // BATCH)


def run(loader: Any, trainer: Trainer, n: int = N) -> None:
    """Scoring epochs with a plain loop, then the checks."""
    for _ in range(EPOCHS):
        trainer.epoch(loader)
    kept = hardest(trainer.journal, n, round(0.7 * n))
    check_pruned_epochs(loader, trainer, kept)
    check_scores(loader.pruning.table, trainer.journal, n)


def check_run_resumes(make: Callable[[], tuple[Any, Trainer]], epochs: int, first: int = 0, every: int = 1) -> None:
    """Cut off after any step from ``first`` on, a run goes on as it would have: with the same rows and weights.

    What resumes may be cut off once more before it trains.
    """
    loader, trainer = make()
    states = []
    for _ in range(epochs):
        for batch in loader:
            trainer.step(batch)
            state = {"pruning": loader.pruning.state_dict(), "model": trainer.model.state_dict()}
            states.append((len(trainer.rows), copy.deepcopy(state)))
        trainer.journal.end_epoch()
    whole, weights = trainer.rows, trainer.model.state_dict()
    for done, state in states[first::every]:
        loader, trainer = make()
        loader.pruning.load_state_dict(through_a_file(state["pruning"]))
        again = loader.pruning.state_dict()
        loader, trainer = make()
        trainer.model.load_state_dict(state["model"])
        loader.pruning.load_state_dict(again)
        while len(trainer.rows) < len(whole) - done:
            trainer.epoch(loader)
        assert trainer.rows == whole[done:]
        for name, value in trainer.model.state_dict().items():
            torch.testing.assert_close(value, weights[name])
