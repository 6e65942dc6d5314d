"""Attached loaders whose batches say their rows themselves, or whose collate function reorders them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, Sampler

import prunesampler as ps
from tests.helpers.attached import BATCH, EPOCHS, N, attach, make_loader
from tests.helpers.training import Journal, Leaky, Net, Trainer, check_scores, hardest


class Trio(Dataset[Any]):
    """(input, label, index)"""

    def __init__(self, n: int = N) -> None:
        self.inside = Leaky(n)

    def __len__(self) -> int:
        return len(self.inside)

    def __getitem__(self, row: Any) -> Any:
        row = row[0] if isinstance(row, tuple) else row
        return *self.inside[row], row


class Stream(IterableDataset[Any]):
    """The same in an order of its own, with ids."""

    def __init__(self, n: int = N, missing: int = 0) -> None:
        self.inside, self.n, self.missing = Leaky(n), n, missing

    def __iter__(self) -> Iterator[Any]:
        for row in torch.randperm(self.n).tolist():
            if row >= self.missing:
                yield *self.inside[row], f"id-{row}", row


class Mine(Sampler[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(row, "key") for row in torch.randperm(N).tolist()])

    def __len__(self) -> int:
        return N


class ByTwos(BatchSampler):
    """Batches of a kind of their own."""


SCORE_ONLY: dict[str, Any] = {"keep": None, "method": "stratified"}


def third(batch: Any) -> Any:
    return batch[2]


def train(loader: Any, **options: Any) -> tuple[Journal, Trainer]:
    trainer = Trainer(Net(), Journal())
    attach(loader, trainer.model, **options)
    for _ in range(EPOCHS):
        trainer.epoch(loader)
    return trainer.journal, trainer


def shuffled_collate(samples: list[Any]) -> Any:
    """Another order each time, and inputs beyond recognition but for the leak."""
    order = torch.randperm(len(samples)).tolist()
    x, y, rows = torch.utils.data.default_collate([samples[i] for i in order])
    return torch.cat([x[:, :1], x[:, 1:] * 1.5], 1), y, rows


@pytest.mark.parametrize("workers", [0, 2])
def test_a_permuting_collate_with_row_fn_scores_and_prunes(workers: int) -> None:
    loader = DataLoader(Trio(), batch_size=BATCH, shuffle=True, collate_fn=shuffled_collate, num_workers=workers)
    journal, trainer = train(loader, row_fn=third)
    kept = hardest(journal, N, round(0.7 * N))
    journal.recording = False
    trainer.epoch(loader)
    check_scores(loader.pruning.table, journal, N)
    assert sorted(journal.epochs[EPOCHS]) == sorted(kept)


def sorted_collate(samples: list[Any]) -> Any:
    return torch.utils.data.default_collate(sorted(samples, key=lambda sample: int(sample[1])))


def dropping_collate(samples: list[Any]) -> Any:
    return torch.utils.data.default_collate(samples[: max(1, len(samples) // 3)])


@pytest.mark.parametrize("collate", [sorted_collate, dropping_collate])
def test_rows_follow_a_collate_function_without_row_fn(collate: Any) -> None:
    loader, model = make_loader(collate_fn=collate), Net()
    trainer = Trainer(model, Journal())
    attach(loader, model)
    for _ in range(EPOCHS):
        assert loader.pruning.phase == "scoring"
        trainer.epoch(loader)
    trainer.journal.recording = False
    trainer.epoch(loader)
    assert loader.pruning.phase == "pruned"  # after three passes, however many rows they had
    check_scores(loader.pruning.table, trainer.journal, N)


def test_weights_follow_a_collate_function_too() -> None:
    weights = np.arange(1, N + 1, dtype=np.float32)
    loader, model = make_loader(collate_fn=sorted_collate), Net()
    attach(loader, model, coreset=ps.Coreset(np.arange(N), weights=weights, num_rows=N), keep=0.5, score_epochs=10)
    for x, y in loader:
        logits = model(x)
        model.zero_grad()
        cross_entropy(logits, y, reduction="sum").backward()
        plain = torch.softmax(logits.detach(), 1) - torch.eye(3)[y]
        scaled = plain * torch.as_tensor(weights)[x[:, 0].long(), None]
        torch.testing.assert_close(model.head.bias.grad, scaled.sum(0))


def unknown_sampler() -> Any:
    return DataLoader(Trio(), batch_size=BATCH, sampler=Mine())


def own_batches() -> Any:
    return DataLoader(Trio(), batch_sampler=ByTwos(RandomSampler(range(N)), BATCH, False))


def no_batches() -> Any:
    batches = [torch.arange(k, min(k + BATCH, N)) for k in range(0, N, BATCH)]
    collate = torch.utils.data.default_collate

    class Whole(Trio):
        def __getitem__(self, rows: Any) -> Any:
            return collate([super(Whole, self).__getitem__(int(row)) for row in rows])

    return DataLoader(Whole(), batch_size=None, sampler=batches)


def stream() -> Any:
    return DataLoader(Stream(), batch_size=BATCH)


IDS = [f"id-{row}" for row in range(N)]


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (unknown_sampler, {"row_fn": third}),
        (own_batches, {"row_fn": third}),
        (own_batches, {}),
        (no_batches, {"row_fn": third}),
        (stream, {"row_fn": third, "keys": IDS}),
        (stream, {"row_fn": third, "keys": {name: row for row, name in enumerate(IDS)}}),
        (stream, {"row_fn": lambda batch: batch[3], "keys": range(N)}),
    ],
)
def test_any_order_can_be_scored(make: Any, options: dict[str, Any], tmp_path: Path) -> None:
    loader = make()
    with pytest.raises(ps.UnsupportedError, match="keep=None, which scores only"):
        attach(loader, Net(), **options)
    journal, trainer = train(loader, save_dir=tmp_path, **SCORE_ONLY, **options)
    trainer.epoch(loader)
    assert loader.pruning.phase == "scored"
    journal.seen = {row: seen[:EPOCHS] for row, seen in journal.seen.items()}  # type: ignore[assignment]
    table = ps.ScoreTable.load(tmp_path / "scores.parquet")
    check_scores(table, journal, N)
    if "keys" in options and not isinstance(options["keys"], range):
        assert table.keys.tolist() == IDS if hasattr(table.keys, "tolist") else list(table.keys) == IDS
    with pytest.raises(ps.ArgumentError, match="coreset must be None"):
        loader.pruning.detach()
        attach(loader, Net(), coreset=ps.select(table, keep=0.5), **SCORE_ONLY, **options)


def test_the_rows_of_a_stream_that_never_came_are_not_eligible() -> None:
    loader = DataLoader(Stream(missing=8), batch_size=BATCH)
    train(loader, row_fn=third, keys=IDS, **SCORE_ONLY)
    loader.pruning.finish()
    coreset = ps.select(loader.pruning.table, keep=0.99)
    assert coreset.rows.min() >= 8


def test_a_stream_of_unknown_size_wants_keys() -> None:
    with pytest.raises(ps.ArgumentError, match=r"keys must be given with row_fn= for a stream"):
        attach(stream(), Net(), row_fn=third, **SCORE_ONLY)


@pytest.mark.parametrize("options", [{"keys": IDS}, {"keys": {name: row for row, name in enumerate(IDS)}}])
def test_a_stream_is_scored_in_a_pass_of_its_own(options: dict[str, Any]) -> None:
    model = Net()
    expected = ps.score(model, DataLoader(Leaky(N), batch_size=7), progress=False).scores["el2n"]
    table = ps.score(model, stream(), row_fn=third, progress=False, **options)
    np.testing.assert_allclose(table.scores["el2n"], expected, atol=1e-6)
    table = ps.score(model, stream(), row_fn=lambda batch: batch[3], num_rows=N, progress=True)
    np.testing.assert_allclose(table.scores["el2n"], expected, atol=1e-6)


def test_rescore_is_read_by_row_fn_too() -> None:
    plain = DataLoader(Trio(), batch_size=7, collate_fn=shuffled_collate)
    loader = DataLoader(Trio(), batch_size=BATCH, shuffle=True)
    model = Net()
    attach(loader, model, row_fn=third, rescore=plain, score_epochs=1)
    trainer = Trainer(model, Journal(), lr=0.0)
    trainer.epoch(loader)
    trainer.epoch(loader)
    scaled = Leaky(N)
    scaled.x[:, 1:] *= 1.5
    expected = ps.score(model, DataLoader(scaled, batch_size=N), progress=False)
    np.testing.assert_allclose(loader.pruning.table.scores["el2n"], expected.scores["el2n"], atol=1e-6)


def mixing_collate(samples: list[Any]) -> Any:
    x, y = torch.utils.data.default_collate(samples)
    return x + x.flip(0), y.flip(0)


def test_rows_matter_only_where_training_batches_are_scored() -> None:
    model = Net()
    refused = make_loader(collate_fn=mixing_collate)
    attach(refused, model)
    with pytest.raises(ps.UnsupportedError, match="give row_fn="):
        for x, _ in refused:
            model(x)
    refused.pruning.detach()
    loader = make_loader(collate_fn=mixing_collate)
    attach(loader, model, rescore=DataLoader(Leaky(N), batch_size=7), score_epochs=1)
    for _ in range(2):
        for x, y in loader:
            cross_entropy(model(x), y).backward()
    assert loader.pruning.phase == "pruned"


def test_a_refused_collate_may_train_on_all() -> None:
    model = Net()
    loader = make_loader(collate_fn=mixing_collate, num_workers=1)
    attach(loader, model, on_error="train_on_all")
    with pytest.warns(ps.PruneSamplerWarning, match="training goes on with all rows"):
        assert sum(len(x) for x, _ in loader) == N


def test_what_row_fn_returns_is_checked_as_it_comes() -> None:
    model = Net()
    loader = DataLoader(Trio(), batch_size=BATCH)
    attach(loader, model, row_fn=lambda batch: batch[2][:-1])
    with pytest.raises(ps.BindingError, match="5 rows, 6 logits, 6 targets"):
        for x, *_ in loader:
            model(x)
