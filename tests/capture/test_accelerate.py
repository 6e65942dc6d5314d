"""Loaders that Accelerate prepares, and those that it makes of them for the rest of an epoch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import prunesampler as ps
from tests.helpers.attached import EPOCHS, N, attach, make_loader
from tests.helpers.frameworks import accelerator
from tests.helpers.training import Journal, Leaky, Net, Trainer, check_scores, hardest

accelerate = pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore:.*set_vital")


class Noisy(Net):
    """Its dropout tells whether the loop's random numbers are the same."""

    def forward(self, *args: Any, **options: Any) -> Any:
        return nn.functional.dropout(super().forward(*args, **options), 0.2, self.training)


@pytest.mark.parametrize("seedable", [False, True])
@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 1, "persistent_workers": True}], ids=str)
def test_a_stateful_loader_that_prepare_has_asked_for_its_state(options: dict[str, Any], seedable: bool) -> None:
    pytest.importorskip("torchdata.stateful_dataloader")

    def run(*, attached: bool) -> Trainer:
        torch.manual_seed(1)
        model = Noisy()
        prepare = accelerator(use_stateful_dataloader=True, use_seedable_sampler=seedable).prepare
        loader = prepare(DataLoader(Leaky(N), 6, shuffle=True, **options))
        if attached:
            attach(loader, model)
        trainer = Trainer(model, Journal())
        for _ in range(EPOCHS):
            trainer.epoch(loader)
        if attached:
            trainer.journal.recording = False
            trainer.epoch(loader)
            check_scores(loader.pruning.table, trainer.journal, N)
            assert set(trainer.journal.epochs[-2]) == hardest(trainer.journal, N, 28)
        return trainer

    with_us, without = run(attached=True), run(attached=False)
    if not options:  # with workers prepare has drawn the first order already, and it is drawn again
        assert with_us.journal.epochs[:EPOCHS] == without.journal.epochs[:EPOCHS]
        assert with_us.journal.seen == without.journal.seen


@pytest.mark.parametrize("by", ["accelerator", "function", "follow"])
@pytest.mark.parametrize("done", [0, 2, 6])
def test_the_rest_of_an_epoch_is_followed(by: str, done: int) -> None:
    tool, model = accelerator(), Net()
    loader = attach(tool.prepare(make_loader()), model)
    trainer = Trainer(model, Journal())
    if by == "accelerator":
        rest = tool.skip_first_batches(loader, done)
    elif by == "function":
        rest = accelerate.skip_first_batches(loader, num_batches=done)
    else:  # as by a name that was imported before attach
        rest = accelerate.skip_first_batches.__wrapped__(loader, done)
        loader.pruning.follow(rest, skipped=done)
    trainer.epoch(rest)
    assert len(trainer.journal.epochs[0]) == N - 6 * done
    for _ in range(EPOCHS):
        trainer.epoch(loader)
    loader.pruning.finish()
    check_scores(loader.pruning.table, Recorded(trainer.journal, loader.pruning.table), N)


class Recorded(Journal):
    """The journal up to the switch: each row's first presentations."""

    def __init__(self, journal: Journal, table: ps.ScoreTable) -> None:
        super().__init__()
        for row, count in zip(table.rows.tolist(), table.presentations.tolist(), strict=True):
            assert len(journal.seen[row]) >= count
            self.seen[row] = journal.seen[row][:count]


def test_the_rest_of_a_pruned_epoch_is_followed() -> None:
    tool, model = accelerator(), Net()
    loader = attach(tool.prepare(make_loader()), model, coreset=ps.Coreset(range(20), num_rows=N), seed=3)
    trainer = Trainer(model, Journal())
    trainer.epoch(loader)
    trainer.epoch(tool.skip_first_batches(loader, 2))
    assert len(trainer.journal.epochs[1]) == 20 - 12
    assert set(trainer.journal.epochs[1]) <= set(range(20))


def test_a_loader_that_is_not_attached_is_skipped_as_before() -> None:
    tool = accelerator()
    attach(tool.prepare(make_loader()), Net())
    other = tool.prepare(make_loader())
    assert sum(len(x) for x, _ in tool.skip_first_batches(other, 2)) == N - 12
    assert type(tool.skip_first_batches(make_loader(), 2)) is DataLoader


def test_a_rest_that_nobody_told_of_names_the_cure() -> None:
    tool, model = accelerator(), Net()
    loader = attach(tool.prepare(DataLoader(Leaky(90), 1)), model)
    rest = accelerate.skip_first_batches.__wrapped__(loader, 2)
    with pytest.raises(ps.BindingError, match=r"loader.pruning.follow\(that_loader, skipped=number\)"):
        Trainer(model, Journal()).epoch(rest)
