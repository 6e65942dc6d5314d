"""What a run follows: passes that are broken off, skipped batches, batches fetched ahead, evaluations between."""

from __future__ import annotations

import copy
import itertools
import pkgutil
import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, SequentialSampler

import prunesampler as ps
from prunesampler.scores.logits import el2n
from tests.helpers.attached import AUTO, BATCH, EPOCHS, N, attach, check_pruned_epochs, make_loader, started
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
    ("ask", "options"),
    [
        *itertools.product([iter, lookahead, counting], [{}, {"keep": "auto", "threshold": 0.4}]),
        (counting, {"workers": 1}),
        (iter, {"rescore": make_loader()}),
    ],
)
def test_the_length_is_right_before_each_pass_and_inside_it(ask: Any, options: dict[str, Any], tmp_path: Path) -> None:
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


# -- peeks: next(iter(loader)) ------------------------------------------------------------------------------------


def peek(loader: Any, grad: bool) -> Any:
    with torch.set_grad_enabled(grad):
        return next(iter(loader))


class PeekingTrainer(Trainer):
    """Looks at a batch before every epoch and in the middle of it, as scripts do to log pictures."""

    def __init__(self, *args: Any, loader: Any, grad: bool, copies: bool) -> None:
        super().__init__(*args)
        self.loader, self.grad, self.copies = loader, grad, copies

    def forward(self, batch: Any) -> Any:
        x, y = batch
        return super().forward((x.clone(), y) if self.copies else batch)

    def epoch(self, batches: Any) -> None:
        peek(self.loader, self.grad)
        for number, batch in enumerate(batches):
            self.step(batch)
            if number == 2:
                peek(self.loader, False)
        self.journal.end_epoch()


@pytest.mark.parametrize(
    ("grad", "copies", "workers"), [*itertools.product([False, True], [False, True], [0]), (True, True, 2)]
)
def test_a_peek_is_no_epoch(grad: bool, copies: bool, workers: int) -> None:
    model = Net()
    persistent = {"num_workers": workers, "persistent_workers": False}
    loader = attach(make_loader(shuffle=False, generator=None, **persistent), model, score_epochs=4, **AUTO)
    trainer = PeekingTrainer(model, Journal(), loader=loader, grad=grad, copies=copies)
    for _ in range(4):
        trainer.epoch(loader)
    loader.pruning.begin_pass()
    table = loader.pruning.table
    assert table.protocols["el2n"]["epochs"] == 4
    check_scores(table, trainer.journal, N)
    halves = [trainer.journal.halves(row) for row in range(N)]
    expected = [pytest.approx(abs(odd - even), abs=1e-6) for odd, even in halves]
    assert table.scores["el2n_spread"].tolist() == expected
    assert set(loader.pruning.coreset.rows.tolist()) == set(range(N)) - trainer.journal.superfluous(N, 0.4)


def subset_run() -> tuple[Any, Trainer]:
    model = Net()
    loader = make_loader(generator=torch.Generator().manual_seed(5))
    return ps.attach(loader, model, policy=ps.RandomSubset(0.5)), Trainer(model, Journal())


@pytest.mark.parametrize("grad", [False, True])
def test_a_peek_at_a_pruned_pass_is_no_epoch_of_the_order(grad: bool) -> None:
    orders = []
    for peeks in (0, 1, 2):
        loader, trainer = subset_run()
        for _ in range(3):
            for _ in range(peeks):
                peek(loader, grad)
            trainer.epoch(loader)
        orders.append(trainer.journal.epochs)
    assert orders[0] == orders[1] == orders[2]
    assert sorted(orders[0][0] + orders[0][1]) == list(range(N))  # without replacement


def test_an_evaluation_over_the_pruned_loader_is_no_epoch_of_the_order() -> None:
    orders = []
    for evaluates in (False, True):
        loader, trainer = subset_run()
        for _ in range(4):
            if evaluates:
                evaluate(trainer.model, loader)
            trainer.epoch(lookahead(loader))
        orders.append(trainer.journal.epochs)
    assert orders[0] == orders[1]


# -- loaders that are read ahead by a thread ----------------------------------------------------------------------


class Ahead(DataLoader):
    """As prefetch_generator's BackgroundGenerator reads."""

    size = 4

    def __iter__(self) -> Any:
        found: Any = queue.Queue(self.size)
        batches = super().__iter__()

        def fetch() -> None:
            try:
                for batch in batches:
                    found.put(batch)
            finally:
                found.put(None)

        thread = threading.Thread(target=fetch, daemon=True)
        thread.start()
        yield from iter(found.get, None)
        thread.join()


@pytest.mark.parametrize(
    ("size", "rows", "shuffle", "copies"),
    [(1, N, True, True), (3, N, False, False), (100, N, False, True), (3, 420, True, True), (1000, 420, True, True)],
)
def test_a_thread_reads_the_loader_ahead(size: int, rows: int, shuffle: bool, copies: bool) -> None:
    plain = Ahead(Leaky(rows), batch_size=BATCH, shuffle=shuffle)
    plain.size = size
    model = Net()
    loader = attach(plain, model)
    trainer = PeekingTrainer(model, Journal(), loader=loader, grad=False, copies=copies)
    for _ in range(EPOCHS):
        Trainer.epoch(trainer, loader)
    kept = hardest(trainer.journal, rows, round(0.7 * rows))
    trainer.journal.recording = False
    Trainer.epoch(trainer, loader)
    assert sorted(trainer.journal.epochs[-2]) == sorted(kept)
    check_scores(loader.pruning.table, trainer.journal, rows)


def test_one_thread_reads_all_passes_ahead() -> None:
    model = Net()
    loader = attach(make_loader(sampler=SequentialSampler(range(N)), shuffle=None, generator=None), model, keep=None)
    trainer, found = Trainer(model, Journal()), queue.Queue(3)

    def fetch() -> None:
        for _ in range(EPOCHS):
            for batch in loader:
                found.put(batch)
        found.put(None)

    thread = threading.Thread(target=fetch)
    thread.start()
    for x, y in iter(found.get, None):
        trainer.step((x.clone(), y))
    thread.join()
    loader.pruning.finish()
    assert loader.pruning.table.protocols["el2n"]["epochs"] == EPOCHS
    check_scores(loader.pruning.table, trainer.journal, N)


def test_a_pause_in_the_loop_does_not_pause_what_a_thread_reads_for_it() -> None:
    loader, trainer = started()
    batches, fetched = iter(loader), []
    trainer.step(next(batches))
    with loader.pruning.paused():
        thread = threading.Thread(target=lambda: fetched.append(next(batches)))
        thread.start()
        thread.join()
        trainer.model(fetched[0][0])
    for batch in (*fetched, *batches):
        trainer.step(batch)
    loader.pruning.finish()
    check_scores(loader.pruning.table, trainer.journal, N)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_is_refused_in_a_thread_is_refused_in_the_loop() -> None:
    loader, trainer = started()
    batches, inner = iter(loader), iter(loader)
    x, y = next(batches)
    newer = next(inner)
    trainer.step(newer)
    thread = threading.Thread(target=lambda: next(batches))
    thread.start()
    thread.join()
    with pytest.raises(ps.BindingError, match="interleaved"):
        trainer.step((x, y))


# -- interrupts: Ctrl-C in a notebook, and the loop is run again --------------------------------------------------

INTERRUPTS = [
    ("prunesampler.tracking.tracker.ScoreTracker.update", False),
    ("prunesampler.tracking.tracker.ScoreTracker.update", True),
    ("prunesampler.tracking.tracker.ScoreTracker.end_epoch", False),
    ("prunesampler.tracking.tracker.ScoreTracker.end_epoch", True),
    ("prunesampler.tracking.epoch_buffers.BatchQueue._copy", True),
    ("prunesampler.tracking.epoch_buffers.EpochBuffers.add", False),
    ("prunesampler.tracking.epoch_buffers.EpochBuffers._count_bad", False),
    ("prunesampler.tracking.epoch_buffers.EpochBuffers._follow", True),
    ("prunesampler.tracking.epoch_buffers.EpochBuffers.clear", False),
    ("prunesampler.tracking.totals.Totals._merge_columns", True),
    ("prunesampler.tracking.totals.Totals._add", False),
    ("prunesampler.capture.binder.Binder.match", False),
    ("prunesampler.capture.binder.Binder.match", True),
    ("prunesampler.capture.binder.Binder.fetched", True),
    ("prunesampler.training.progress.Progress.train", False),
    ("prunesampler.training.progress.Progress.end_epoch", False),
]


@pytest.mark.parametrize(("place", "after"), INTERRUPTS)
@pytest.mark.parametrize("nth", [1, 2])
def test_an_interrupted_run_is_exact_or_refused_with_a_cure(
    place: str, after: bool, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model stays as it is, so whatever is scored of a row is the same number."""
    model = Net()
    loader = attach(make_loader(), model, keep=None)
    real, calls = pkgutil.resolve_name(place), []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == nth and not after:
            raise KeyboardInterrupt
        found = real(*args, **kwargs)
        if len(calls) == nth:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(place, interrupted)
    refusals = []

    def epoch() -> None:
        try:
            for x, _ in loader:
                model(x)
        except ps.StateError as refusal:
            refusals.append(str(refusal))

    for _ in range(EPOCHS + 1):
        with suppress(KeyboardInterrupt):
            epoch()
        if len(refusals) == 1 and "reset_epoch" in refusals[0]:
            loader.pruning.tracker.reset_epoch()
            refusals.append("cured")
        elif len(refusals) == 1:
            loader.pruning.detach()
            loader = attach(loader, model, keep=None)
            refusals.append("cured")
    with suppress(KeyboardInterrupt):
        epoch()
    loader.pruning.finish()
    assert refusals[1:] in ([], ["cured"])
    data = Leaky(N)
    with torch.no_grad():
        true = el2n(model(data.x), data.targets)
    found = torch.from_numpy(loader.pruning.table.scores["el2n"].copy())
    torch.testing.assert_close(found, true, rtol=0, atol=1e-5)
