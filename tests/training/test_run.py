"""What a run follows: passes that are broken off, skipped batches, batches fetched ahead, evaluations between."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from tests.helpers.attached import BATCH, EPOCHS, N, attach, check_pruned_epochs, make_loader, started
from tests.helpers.training import Journal, Leaky, Net, Trainer, check_scores, evaluate, hardest, lookahead


class BreakingTrainer(Trainer):
    def epoch(self, batches: Any) -> None:
        for number, batch in enumerate(batches):
            if number == 4:
                break
            self.step(batch)
        self.journal.end_epoch()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_early_break_ends_the_epoch(workers: int) -> None:
    model = Net()
    loader = attach(make_loader(num_workers=workers), model, keep=0.5)
    trainer = BreakingTrainer(model, Journal())
    while loader.pruning.phase == "scoring":
        before = copy.deepcopy(trainer.journal)
        assert len(trainer.journal.epochs) < 10
        trainer.epoch(loader)
    # Of 40 rows a pass, 24 are trained on: the switch comes when 2.5 passes of rows were bound, after 5 passes.
    assert len(before.epochs) == 6
    check_scores(loader.pruning.table, before, N)


def test_the_last_epoch_alone_is_that_of_each_row() -> None:
    model = Net()
    loader = attach(make_loader(), model, reduction="last")
    trainer = BreakingTrainer(model, Journal())
    for _ in range(EPOCHS):
        trainer.epoch(loader)
    loader.pruning.finish()
    expected = [trainer.journal.seen[row][-1][0] if trainer.journal.seen[row] else None for row in range(N)]
    found = [None if score != score else score for score in loader.pruning.table.scores["el2n"].tolist()]
    assert found == [value if value is None else pytest.approx(value, abs=1e-6) for value in expected]


class SkippingTrainer(Trainer):
    skips = (1, 4)

    def epoch(self, batches: Any) -> None:
        for number, batch in enumerate(batches):
            if number in self.skips:
                continue
            self.step(batch)
        self.journal.end_epoch()


class SkippingLastTrainer(SkippingTrainer):
    skips = (0, 6)


@pytest.mark.parametrize("kind", [SkippingTrainer, SkippingLastTrainer])
@pytest.mark.parametrize("ahead", [False, True])
def test_skipped_batches_are_credited_to_nobody(kind: type[Trainer], ahead: bool) -> None:
    model = Net()
    loader = attach(make_loader(), model)
    trainer = kind(model, Journal())
    for _ in range(4):  # 28 of 40 rows each: 2.5 passes of rows after the fourth
        trainer.epoch(lookahead(loader) if ahead else loader)
    trainer.journal.recording = False
    before = trainer.journal
    trainer.epoch(lookahead(loader) if ahead else loader)
    assert loader.pruning.phase == "pruned"
    check_scores(loader.pruning.table, before, N)


def counting(loader: Any) -> Iterator[Any]:
    """Never asks whether there is one more."""
    batches = iter(loader)
    for _ in range(len(loader)):
        yield next(batches)


@pytest.mark.parametrize(
    "options", [{}, {"keep": "auto", "threshold": 0.4}, {"rescore": True}, {"workers": 1}], ids=str
)
@pytest.mark.parametrize("ask", [iter, lookahead, counting])
def test_the_length_is_right_before_each_pass_and_inside_it(ask: Any, options: dict[str, Any], tmp_path: Path) -> None:
    if options.get("rescore"):
        if ask is not iter:
            pytest.skip("a model is not rescored inside its own forward")
        options = {"rescore": make_loader()}
    options = {"method": "stratified", **options}
    workers = options.pop("workers", 0)
    torch.manual_seed(0)
    model = Net()
    loader = attach(make_loader(num_workers=workers), model, score_epochs=2, save_dir=tmp_path, **options)
    trainer = Trainer(model, Journal())
    lengths, states = [], []
    for _ in range(4):
        announced, last, read = len(loader), [], 0
        for batch in ask(loader):
            trainer.step(batch)
            read += 1
            last.append(read == len(loader))  # as a loop asks that accumulates gradients
            states.append(loader.pruning.state_dict()["phase"])
        assert last == [False] * (announced - 1) + [True]
        assert read == announced
        lengths.append(announced)
        assert (tmp_path / "coreset.parquet").exists() is (len(lengths) >= 2)
    assert lengths[0] == lengths[1] == 7
    assert lengths[2] == lengths[3] == -(-len(loader.pruning.coreset) // BATCH)
    # A state of the last batch that is scored is one of scoring, and goes on with what was selected.
    assert states == ["scoring"] * 14 + ["pruned"] * 2 * lengths[2]


def test_a_loop_that_looks_one_batch_ahead() -> None:
    loader, trainer = started(make_loader(num_workers=2))
    for _ in range(EPOCHS):
        trainer.epoch(lookahead(loader))
    kept = hardest(trainer.journal, N, 28)
    trainer.journal.recording = False
    for _ in range(2):
        trainer.epoch(lookahead(loader))
        assert sorted(trainer.journal.epochs[-2]) == sorted(kept)
    check_scores(loader.pruning.table, trainer.journal, N)


def test_one_batch_ahead_over_a_cycle() -> None:
    loader, trainer = started()

    def cycle() -> Any:
        while True:
            yield from loader

    batches = lookahead(cycle())
    steps = 0
    while loader.pruning.phase == "scoring":
        # The switch comes with the iter that fetches a batch ahead: the step after it is not scored any more.
        snapshot = copy.deepcopy(trainer.journal)
        trainer.step(next(batches))
        steps += 1
        assert steps <= 7 * EPOCHS
    assert steps == 7 * EPOCHS
    check_scores(loader.pruning.table, snapshot, N)
    trainer.journal.epochs = [[]]
    for _ in range(5):
        trainer.step(next(batches))
    assert sorted(trainer.journal.epochs[0]) == loader.pruning.coreset.rows.tolist()


def test_evaluation_between_and_over_the_train_loader() -> None:
    loader, trainer = started()
    model = trainer.model
    other = DataLoader(Leaky(12, seed=1), batch_size=4)
    for epoch in range(EPOCHS):
        for number, batch in enumerate(loader):
            trainer.step(batch)
            if number == 2:
                evaluate(model, other)
                evaluate(model, loader)
        trainer.journal.end_epoch()
        evaluate(model, loader)
        with torch.no_grad():  # as batch-norm statistics are brought up to date
            seen = 0
            for x, _ in loader:
                model(x)
                seen += len(x)
        assert seen == (28 if epoch == EPOCHS - 1 else N)
    kept = hardest(trainer.journal, N, 28)
    check_pruned_epochs(loader, trainer, kept)
    check_scores(loader.pruning.table, trainer.journal, N)
