"""A prefetcher's batches are followed as it hands them out; timm's own stands in tests/test_compatibility.py."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import prunesampler as ps
from prunesampler.capture.timm import Prefetched, followed_prefetcher, is_prefetcher
from tests.helpers.training import Journal, Leaky, Net, Trainer, check_scores

N, BATCH = 22, 4


class PrefetchLoader:
    """As timm's: one batch ahead, and every input changed."""

    __module__ = "timm.data.loader"

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        waiting = None
        for x, y in self.loader:
            if waiting is not None:
                yield waiting
            scaled = x.clone()
            scaled[:, 1:] = (x[:, 1:] - 0.1) / 2
            waiting = scaled, y
        yield waiting

    def __len__(self) -> int:
        return len(self.loader)


@pytest.fixture
def loader() -> Any:
    return PrefetchLoader(DataLoader(Leaky(N), batch_size=BATCH, shuffle=True))


def attach(loader: Any, model: Any, **options: Any) -> Any:
    return ps.attach(loader, model, **{"keep": 0.5, "score_epochs": 2, "epoch_length": "full", **options})


def test_batches_are_known_as_they_are_handed_out(loader: Any) -> None:
    model = Net()
    attached = attach(loader, model)
    assert attached is loader
    trainer = Trainer(model, Journal())
    for _ in range(2):
        trainer.epoch(loader)
    trainer.journal.recording = False
    trainer.epoch(loader)
    check_scores(loader.pruning.table, trainer.journal, N)
    assert set(trainer.journal.epochs[2]) == set(loader.pruning.coreset.rows.tolist())


def test_a_pass_that_is_broken_off_leaves_nothing_behind(loader: Any) -> None:
    model, journal = Net(), Journal()
    attach(loader, model, score_epochs=5)
    trainer = Trainer(model, journal)
    trainer.epoch(itertools.islice(loader, 3))
    trainer.epoch(loader)
    trainer.epoch(itertools.islice(loader, 3))
    loader.pruning.finish()
    assert loader.pruning.table.presentations.tolist() == [len(journal.seen[row]) for row in range(N)]


def test_once_detached_it_is_as_before(loader: Any) -> None:
    attach(loader, Net()).pruning.detach()
    assert type(loader.loader) is DataLoader
    assert len(list(loader)) == -(-N // BATCH)
    attach(loader, Net())  # and can be attached again


def test_failure_while_it_runs_trains_on_all(loader: Any) -> None:
    model = Net()
    attach(loader, model, on_error="train_on_all")
    batches = 0
    with pytest.warns(ps.PruneSamplerWarning, match="training goes on with all rows"):
        for _ in range(3):
            for x, y in loader:
                torch.nn.functional.cross_entropy(model(x.flip(0)), y).backward()
                batches += 1
    assert batches == 3 * -(-N // BATCH)


def test_only_timms_is_one() -> None:
    assert is_prefetcher(PrefetchLoader([]))
    assert not is_prefetcher(DataLoader(Leaky(N)))
    followed = followed_prefetcher(PrefetchLoader)
    assert followed_prefetcher(followed) is followed
    assert list(Prefetched(None).follow(iter([]))) == []  # type: ignore[arg-type]
