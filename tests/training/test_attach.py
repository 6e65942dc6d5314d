"""The whole path, attach to scores to coreset to pruned epochs, against records kept by hand."""

from __future__ import annotations

import copy
import io
import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import prunesampler as ps
from prunesampler import ArgumentError, Coreset, PrunedSampler, RandomSubset, ScoreTable, UnsupportedError, select
from prunesampler.analysis.audit import audit
from tests.helpers.attached import (
    AUTO,
    BATCH,
    EPOCHS,
    N,
    attach,
    check_pruned_epochs,
    collate_pairs,
    make_loader,
    run,
    scored,
    started,
)
from tests.helpers.training import (
    Journal,
    Leaky,
    ManyAtOnce,
    Net,
    Trainer,
    check_scores,
    hardest,
    lookahead,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # torchdata on current PyTorch
]
LOADERS = {
    "plain": {},
    "two workers": {"num_workers": 2},
    "fork": {"num_workers": 1, "multiprocessing_context": "fork"},
    "forkserver": {"num_workers": 1, "multiprocessing_context": "forkserver", "persistent_workers": True},
    "spawn": {"num_workers": 1, "multiprocessing_context": "spawn", "persistent_workers": True},
    "persistent": {"num_workers": 2, "persistent_workers": True},
    "prefetch 4": {"num_workers": 2, "prefetch_factor": 4},
    "out of order": {"num_workers": 2, "in_order": False},
    "custom collate": {"collate_fn": collate_pairs},
    "sequential": {"shuffle": False},
    "batches of one": {"batch_size": 1},
}


@pytest.mark.parametrize("name", LOADERS)
def test_scores_coreset_and_pruned_epochs_are_the_oracles(name: str) -> None:
    model = Net()
    loader = make_loader(**LOADERS[name])
    attached = attach(loader, model)
    assert attached is loader
    trainer = Trainer(model, Journal(), lr=0.1 if name == "batches of one" else 0.4)
    for _ in range(EPOCHS):
        trainer.epoch(loader)
    kept = hardest(trainer.journal, N, 28)
    trainer.journal.recording = False
    for _ in range(2):
        trainer.epoch(loader)
        assert sorted(trainer.journal.epochs[-2]) == sorted(kept)
    check_scores(loader.pruning.table, trainer.journal, N)
    assert set(loader.pruning.coreset.rows.tolist()) == kept
    assert any(trainer.journal.forgetting(row) for row in range(N))  # or the oracle tells nothing


@pytest.mark.parametrize("dataset", [ManyAtOnce(N), Leaky(N, kind="three")])
def test_datasets_that_fetch_many_or_give_three(dataset: Leaky) -> None:
    model = Net()
    run(attach(make_loader(dataset), model), Trainer(model, Journal()))


@pytest.mark.parametrize("output", ["tensor", "hf", "inception"])
def test_outputs_of_many_kinds(output: str) -> None:
    model = Net(output=output)
    dataset = Leaky(N, kind="dict" if output == "hf" else "tuple")
    run(attach(make_loader(dataset), model), Trainer(model, Journal()))


def test_drop_last_leaves_rows_without_a_score_which_are_kept() -> None:
    dataset = Leaky(N)
    loader, trainer = started(DataLoader(dataset, batch_size=BATCH, shuffle=False, drop_last=True))
    for _ in range(EPOCHS + 1):
        trainer.journal.recording = len(trainer.journal.epochs) <= EPOCHS
        trainer.epoch(loader)
    table = loader.pruning.table
    check_scores(table, trainer.journal, N)
    never = {36, 37, 38, 39}
    assert {row for row in range(N) if table.presentations[row] == 0} == never
    assert never <= set(loader.pruning.coreset.rows.tolist())
    assert len(loader.pruning.coreset) == 28
    assert len(trainer.journal.epochs[-2]) == 24


def test_gradient_accumulation() -> None:
    loader, trainer = started()
    for _ in range(EPOCHS):
        loss = 0.0
        for number, batch in enumerate(loader):
            loss = loss + trainer.forward(batch)
            if number % 3 == 2:
                trainer.optimizer.zero_grad()
                loss.backward()
                trainer.optimizer.step()
                loss = 0.0
        trainer.journal.end_epoch()
    kept = hardest(trainer.journal, N, 28)
    check_pruned_epochs(loader, trainer, kept)
    check_scores(loader.pruning.table, trainer.journal, N)


def test_autocast_bfloat16() -> None:
    loader, trainer = started()
    for _ in range(EPOCHS):
        for batch in loader:
            with torch.autocast("cpu", torch.bfloat16):
                loss = trainer.forward(batch)
            trainer.optimizer.zero_grad()
            loss.backward()
            trainer.optimizer.step()
        trainer.journal.end_epoch()
    loader.pruning.finish()
    check_scores(loader.pruning.table, trainer.journal, N)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch hides it by other means than a filter
@pytest.mark.parametrize("before", [True, False])
def test_a_compiled_model(before: bool) -> None:
    model = Net()
    if before:
        called = torch.compile(model, backend="aot_eager")
        loader = attach(make_loader(), called)
    else:
        loader = attach(make_loader(), model)
        called = torch.compile(model, backend="aot_eager")
    trainer = Trainer(model, Journal())
    trainer.model = called
    run(loader, trainer)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_activation_checkpointing(reentrant: bool, whole: bool) -> None:
    model = Net()
    if whole:
        called: Any = model
    else:
        body = model.body
        model.body = Checkpointed(body, reentrant)
        called = model
    loader = attach(make_loader(), called)
    trainer = Trainer(model, Journal())
    if whole:
        trainer.model = Whole(model, reentrant)
    run(loader, trainer)


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x: torch.Tensor) -> Any:
        return checkpoint(self.inner, x.requires_grad_() if self.reentrant else x, use_reentrant=self.reentrant)


class Whole:
    """The loop checkpoints the call of the whole model."""

    def __init__(self, inner: nn.Module, reentrant: bool) -> None:
        self.inner, self.reentrant = inner, reentrant

    def train(self) -> None:
        self.inner.train()

    def __call__(self, x: torch.Tensor) -> Any:
        # The reentrant kind runs forward a second time only where an input has a gradient.
        return checkpoint(self.inner, x.requires_grad_(), use_reentrant=self.reentrant)


class SamTrainer(Trainer):
    """Two forwards a batch: sharpness-aware minimisation."""

    def step(self, batch: Any) -> None:
        x, y = batch
        loss = self.forward(batch)
        loss.backward()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter += 0.01 * parameter.grad.sign()
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(x), y).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


@pytest.mark.parametrize("ahead", [False, True])
def test_two_forwards_a_batch(ahead: bool) -> None:
    model = Net()
    loader = attach(make_loader(), model)
    trainer = SamTrainer(model, Journal())
    for _ in range(EPOCHS):
        trainer.epoch(lookahead(loader) if ahead else loader)
    trainer.journal.recording = False
    trainer.epoch(loader)
    check_scores(loader.pruning.table, trainer.journal, N)


def test_copies_and_pickles_of_the_model_carry_no_hook() -> None:
    loader, trainer = started()
    model = trainer.model
    averaged = copy.deepcopy(model)
    for _ in range(EPOCHS):
        for batch in loader:
            trainer.step(batch)
            averaged.train()
            averaged(batch[0])  # a training forward of the copy is not the model's
        trainer.journal.end_epoch()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    restored = torch.load(buffer, weights_only=False)
    restored.train()
    restored(torch.zeros(2, 4))
    check_pruned_epochs(loader, trainer, hardest(trainer.journal, N, 28))
    check_scores(loader.pruning.table, trainer.journal, N)


def test_a_subset_dataset_and_a_subset_sampler() -> None:
    dataset = Leaky(N)
    chosen = list(range(3, N, 2))
    loader, trainer = scored(make_loader(Subset(dataset, chosen)))
    loader.pruning.finish()
    for row, original in enumerate(chosen):
        assert loader.pruning.table.scores["el2n"][row] == pytest.approx(trainer.journal.el2n(original), abs=1e-6)

    sampler = SubsetRandomSampler(chosen, generator=torch.Generator().manual_seed(1))
    loader, trainer = scored(DataLoader(dataset, batch_size=BATCH, sampler=sampler), keep=0.5)
    trainer.journal.recording = False
    trainer.epoch(loader)
    check_scores(loader.pruning.table, trainer.journal, chosen)
    eligible = sorted(chosen, key=trainer.journal.el2n, reverse=True)
    assert sorted(trainer.journal.epochs[-2]) == sorted(eligible[: round(len(chosen) / 2)])


def test_a_weighted_sampler_goes_on_with_its_weights_on_the_kept_rows() -> None:
    weights = torch.ones(N)
    weights[:10] = 0
    weights[10] = 30.0
    sampler = WeightedRandomSampler(weights.tolist(), 120, generator=torch.Generator().manual_seed(3))
    loader, trainer = scored(DataLoader(Leaky(N), batch_size=BATCH, sampler=sampler), lr=0.1, keep=15, method="bottom")
    trainer.journal.recording = False
    for _ in range(4):
        trainer.epoch(loader)
    check_scores(loader.pruning.table, trainer.journal, range(10, N))
    drawn = [row for epoch in trainer.journal.epochs[EPOCHS:-1] for row in epoch]
    assert len(drawn) == 4 * 60
    kept = set(loader.pruning.coreset.rows.tolist())
    assert set(drawn) <= kept
    assert min(kept) >= 10
    if 10 in kept:
        assert drawn.count(10) > len(drawn) / 2


HELD_OUT = range(32, N)
SOME_ROWS: dict[str, Callable[[], Any]] = {
    "random": lambda: RandomSampler(range(32)),
    "random with replacement": lambda: RandomSampler(range(32), replacement=True, num_samples=300),
    "sequential": lambda: SequentialSampler(range(32)),
    "distributed": lambda: DistributedSampler(range(32), 1, 0),
    "weights of the first rows": lambda: WeightedRandomSampler([1.0] * 32, 300),
    "weights of zero": lambda: WeightedRandomSampler([1.0] * 32 + [0.0] * 8, 300),
    "a subset": lambda: SubsetRandomSampler(range(32)),
    "ours": lambda: PrunedSampler(32),
    "ours of some rows": lambda: PrunedSampler(N, rows=range(32)),
    "ours, pruned": lambda: PrunedSampler(N, coreset=Coreset(range(32), num_rows=N)),
    "ours, weighted": lambda: PrunedSampler(32, sampling_weights=[1.0] * 32, replacement=True, epoch_length=300),
}


@pytest.mark.filterwarnings("ignore:len.loader. is")
@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, "scored") for name in SOME_ROWS),
        *itertools.product(("random", "weights of zero", "ours, pruned"), ("rescored", "drawn every epoch")),
    ],
)
def test_rows_that_the_sampler_never_draws_are_not_eligible(name: str, how: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"keep": 0.5, "score_epochs": 2, "save_dir": tmp_path}
    if how == "rescored":
        options["rescore"] = make_loader(Leaky(N))
    elif how == "drawn every epoch":
        options = {"policy": RandomSubset(0.5)}
    model, journal = Net(), Journal()
    loader = ps.attach(DataLoader(Leaky(N), batch_size=BATCH, sampler=SOME_ROWS[name]()), model, **options)
    trainer = Trainer(model, journal)
    for _ in range(4):
        trainer.epoch(loader)
    assert not {row for epoch in journal.epochs for row in epoch} & {*HELD_OUT}
    assert len(loader.pruning.coreset) == 16
    assert max(loader.pruning.coreset.rows) < 32
    if "save_dir" in options:  # the table says it too, where nothing is attached any more
        table = ScoreTable.load(tmp_path / "scores.parquet")
        assert table.num_rows == N
        assert table.rows.tolist() == list(range(32))
        assert select(table, keep=0.5).rows.max() < 32
        assert len(select(table, keep=0.5)) == 16


def test_samplers_of_other_datasets_are_refused() -> None:
    for sampler in (RandomSampler(range(41)), SubsetRandomSampler([3, -1]), WeightedRandomSampler([1.0] * 41, 8)):
        with pytest.raises(UnsupportedError, match="rows of the dataset are 0 to 39"):
            attach(DataLoader(Leaky(N), batch_size=BATCH, sampler=sampler), Net())
    plain = DataLoader(Leaky(N), batch_size=BATCH, sampler=SequentialSampler(range(32)))
    few = DataLoader(Leaky(N), batch_size=BATCH, sampler=SubsetRandomSampler(range(31)))
    with pytest.raises(ArgumentError, match="rescore must hand out every row that loader can, got 'none of row 31'"):
        attach(plain, Net(), rescore=few)


def test_a_distributed_sampler_keeps_its_split_and_its_epochs() -> None:
    ranks = []
    for rank in range(2):
        model = Net()
        sampler = DistributedSampler(range(N), num_replicas=2, rank=rank, seed=1)
        loader = attach(DataLoader(Leaky(N), batch_size=BATCH, sampler=sampler), model, method="random", keep=0.5)
        trainer = Trainer(model, Journal())
        for epoch in range(EPOCHS + 2):
            sampler.set_epoch(epoch)
            trainer.epoch(loader)
        ranks.append(trainer.journal.epochs)
    for epoch in range(EPOCHS, EPOCHS + 2):
        mine, other = ranks[0][epoch], ranks[1][epoch]
        assert len(mine) == len(other) == 10
        assert sorted(mine + other) == loader.pruning.coreset.rows.tolist()
    assert ranks[0][EPOCHS] != ranks[0][EPOCHS + 1]


def test_scoring_changes_nothing_in_the_run() -> None:
    def run(attached: bool) -> tuple[Any, Any, Any]:
        torch.manual_seed(11)
        model = Net()
        loader = DataLoader(Leaky(N), batch_size=BATCH, shuffle=True)  # shuffled by the global generator
        if attached:
            attach(loader, model)
        trainer = Trainer(model, Journal())
        for _ in range(EPOCHS):
            trainer.epoch(loader)
        return trainer.journal.epochs, [p.tolist() for p in model.parameters()], torch.rand(3).tolist()

    assert run(attached=True) == run(attached=False)


def test_full_epoch_length_keeps_the_number_of_steps() -> None:
    loader, trainer = scored(epoch_length="full", keep=0.5)
    trainer.journal.epochs = [[]]
    for _ in range(2):
        trainer.epoch(loader)
        assert len(loader) == 7
    stream = trainer.journal.epochs[0] + trainer.journal.epochs[1]
    kept = loader.pruning.coreset.rows.tolist()
    assert [sorted(stream[i : i + 20]) for i in range(0, 80, 20)] == [kept] * 4
    assert loader.pruning.total_steps(10) == 70


def check_spread(table: Any, journal: Journal) -> None:
    odd, even = np.array([journal.halves(row) for row in range(N)]).T
    np.testing.assert_allclose(table.scores["el2n_spread"], np.abs(odd - even), rtol=0, atol=1e-6)
    protocol = table.protocols["el2n"]
    assert protocol["split_half"] == pytest.approx(scipy.stats.spearmanr(odd, even).statistic, abs=1e-9)
    assert table.protocols["el2n_spread"] == {**protocol, "spread_of": "el2n"}


@pytest.mark.parametrize("epoch_length", ["kept", "full"])
def test_auto_trains_on_all_but_the_superfluous_rows(epoch_length: Any, tmp_path: Any, caplog: Any) -> None:
    options = {**AUTO, "save_dir": tmp_path, "epoch_length": epoch_length}
    with caplog.at_level("INFO", "prunesampler"):
        loader, trainer = scored(**options)
    check_scores(table := loader.pruning.tracker.table(), trainer.journal, N)
    check_spread(table, trainer.journal)
    gone = trainer.journal.superfluous(N, 0.4)
    trainer.journal.recording = False
    trainer.epoch(loader)
    trainer.epoch(loader)
    (line,) = [record.getMessage() for record in caplog.records if "training on" in record.getMessage()]
    told = f"training on {N - len(gone)} of {N} rows ({len(gone)} are superfluous by el2n)"
    assert line == f"{told}, written to {tmp_path}"
    coreset = loader.pruning.coreset
    assert coreset.rows.tolist() == sorted(set(range(N)) - gone)
    assert coreset.selection["superfluous"] == len(gone)
    stream = trainer.journal.epochs[-3] + trainer.journal.epochs[-2]
    first = stream[: len(coreset)]
    assert sorted(first) == coreset.rows.tolist()
    assert len(stream) == 2 * (N if epoch_length == "full" else len(coreset))
    assert not gone & set(stream)

    again = attach(make_loader(), Net(), resume=True, **options)
    assert again.pruning.phase == "pruned"
    assert again.pruning.coreset == coreset
    other = attach(make_loader(), Net(), resume=True, **{**options, "threshold": 0.01})
    assert other.pruning.coreset.selection["options"]["threshold"] == 0.01
    assert len(other.pruning.coreset) == N - other.pruning.coreset.selection["superfluous"] > len(coreset)


def test_auto_does_not_say_how_many_steps_before_it_knows() -> None:
    model, loader = Net(), make_loader()
    with pytest.warns(
        ps.PruneSamplerWarning, match=r'len\(loader\) is 7 and .* keep="auto" .*epoch_length="full"'
    ) as seen:
        ps.attach(loader, model, keep="auto", score_epochs=EPOCHS, threshold=0.4)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert loader.pruning.total_steps(EPOCHS) == 7 * EPOCHS
    with pytest.raises(ps.StateError, match=r'ask again.*epoch_length="full"'):
        loader.pruning.total_steps(EPOCHS + 1)
    trainer = Trainer(model, Journal())
    for _ in range(EPOCHS + 1):
        trainer.epoch(loader)
    assert loader.pruning.total_steps(EPOCHS + 2) == 7 * EPOCHS + 2 * len(loader)
    assert len(loader) < 7

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        full = ps.attach(make_loader(), Net(), keep="auto", score_epochs=EPOCHS, epoch_length="full")
    assert full.pruning.total_steps(10) == 70


def test_clean_trains_on_all_but_the_likely_wrong_rows(tmp_path: Any, caplog: Any) -> None:
    options = {**AUTO, "keep": "clean", "threshold": None, "epoch_length": "full", "save_dir": tmp_path}
    with caplog.at_level("INFO", "prunesampler"):
        loader, _ = scored(epochs=EPOCHS + 1, **options)
    issues, coreset = audit(loader.pruning.tracker.table()), loader.pruning.coreset
    assert coreset.rows.tolist() == sorted(set(range(N)) - set(issues.rows.tolist()))
    (line,) = [record.getMessage() for record in caplog.records if "training on" in record.getMessage()]
    rate = issues.noise_rate
    told = f"({len(issues)} labels are likely wrong; about {rate.rate:.1%} are, {rate.low:.1%} to {rate.high:.1%})"
    assert line == f"training on {len(coreset)} of {N} rows {told}, written to {tmp_path}"
    with pytest.raises(ps.ArgumentError, match="score_fn"):
        ps.attach(make_loader(), Net(), keep="clean", score_fn=lambda logits, targets: {"el2n": logits[:, 0]})
    with pytest.raises(ps.ArgumentError, match=r"^audit must be True"):
        ps.attach(make_loader(), Net(), keep="clean", audit=False)


def test_two_runs_on_threshold_samples_find_what_lies_below_them() -> None:
    rows, classes, limits, margins = 60, 2, [], []
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))
    dataset, tables = TensorDataset(x, (x[:, 0] > 0).long()), []
    for part in range(2):
        samples = ps.ThresholdSamples(dataset, classes, part=part)
        model, seen = nn.Linear(4, classes + 1), [[] for _ in range(rows)]
        numbers = {tuple(each.tolist()): row for row, each in enumerate(x)}
        loader = ps.attach(DataLoader(samples, 10, shuffle=True), model, keep=None, score_epochs=4, audit="aum")
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        for _ in range(4):
            for inputs, targets in loader:
                logits = model(inputs)
                optimizer.zero_grad()
                nn.functional.cross_entropy(logits, targets).backward()
                optimizer.step()
                for one, told, target in zip(inputs.tolist(), logits.tolist(), targets.tolist(), strict=True):
                    best = max(told[:target] + told[target + 1 :])
                    seen[numbers[tuple(one)]].append(told[target] - best)
        margins.append([sum(each) / len(each) for each in seen])
        limits.append(np.quantile([margins[part][row] for row in samples.rows], 0.99))
        tables.append(loader.pruning.table)
    first = set(ps.ThresholdSamples(dataset, classes).rows.tolist())  # they have their own label in the second run
    below = {row for row in range(rows) if margins[row in first][row] < limits[row in first]}
    assert set(audit(tables, method="aum").rows.tolist()) == below
    for loader, options, message in (
        (
            DataLoader(dataset, 10),
            {"keep": None},
            r"ThresholdSamples\(.*\), and a model of one output",
        ),
        (DataLoader(samples, 10), {}, "^keep must be None"),
    ):
        with pytest.raises(ArgumentError, match=message):
            ps.attach(loader, model, audit="aum", **options)
    loader = ps.attach(DataLoader(samples, rows), narrow := nn.Linear(4, classes), keep=None, audit="aum")
    with pytest.raises(ArgumentError, match="give the model one output more"):
        narrow(next(iter(loader))[0])


def test_auto_that_finds_nothing_superfluous_keeps_all() -> None:
    loader, trainer = scored(epochs=EPOCHS + 1, **{**AUTO, "threshold": 1e-6})
    assert loader.pruning.phase == "pruned"
    assert sorted(trainer.journal.epochs[-2]) == list(range(N))
    assert len(loader) == 7


def test_auto_needs_the_second_epoch_that_finish_cut_off(tmp_path: Any) -> None:
    model = Net()
    loader = attach(make_loader(), model, save_dir=tmp_path, **AUTO)
    Trainer(model, Journal()).epoch(loader)
    with pytest.raises(ps.ArgumentError, match="el2n_spread, which means over two scoring epochs"):
        loader.pruning.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["scores.parquet"]


def test_files_are_written_and_hold_what_was_found(tmp_path: Any, caplog: Any) -> None:
    with caplog.at_level("INFO", "prunesampler"):
        loader, trainer = scored(save_dir=tmp_path / "run", keys=[f"img/{i}" for i in range(N)])
    (line,) = [r.getMessage() for r in caplog.records if "training on" in r.getMessage()]
    assert line == f"training on 28 of 40 rows (top by el2n), written to {tmp_path / 'run'}"
    table = ps.ScoreTable.load(tmp_path / "run" / "scores.parquet")
    check_scores(table, trainer.journal, N)
    coreset = ps.Coreset.load(tmp_path / "run" / "coreset.parquet")
    assert coreset == loader.pruning.coreset
    assert coreset.scores_digest == table.digest
    assert coreset.keys == [f"img/{row}" for row in coreset.rows]


def test_scores_only() -> None:
    loader, trainer = scored(keep=None)
    trainer.journal.recording = False
    trainer.epoch(loader)
    assert loader.pruning.phase == "scored"
    assert loader.pruning.coreset is None
    assert sorted(trainer.journal.epochs[-2]) == list(range(N))
    check_scores(loader.pruning.table, trainer.journal, N)


def test_finish_ends_a_short_run(tmp_path: Any) -> None:
    model = Net()
    loader = attach(make_loader(), model, save_dir=tmp_path)
    with pytest.raises(ps.StateError, match="nothing to write"):
        loader.pruning.finish()
    trainer = Trainer(model, Journal())
    for number, batch in enumerate(loader):
        trainer.step(batch)
        if number == 3:
            break
    coreset = loader.pruning.finish()
    assert coreset == ps.Coreset.load(tmp_path / "coreset.parquet")
    check_scores(ps.ScoreTable.load(tmp_path / "scores.parquet"), trainer.journal, N)
    assert loader.pruning.finish() is coreset


def test_paused_follows_nothing() -> None:
    loader, trainer = started()
    model = trainer.model
    other = Trainer(model, Journal())
    for _ in range(EPOCHS):
        with loader.pruning.paused():
            other.epoch(loader)
        trainer.epoch(loader)
    assert sorted(other.journal.epochs[-2]) == list(range(N))
    check_pruned_epochs(loader, trainer, hardest(trainer.journal, N, 28))
    check_scores(loader.pruning.table, trainer.journal, N)


def test_detach_gives_the_plain_loader_back() -> None:
    model = Net()
    loader = make_loader()
    kind, sampler = type(loader), loader.batch_sampler.sampler
    attach(loader, model)
    trainer = Trainer(model, Journal())
    for _ in range(EPOCHS + 1):
        trainer.epoch(loader)
    loader.pruning.detach()
    assert type(loader) is kind
    assert loader.batch_sampler.sampler is sampler
    assert not model._forward_hooks
    trainer.epoch(loader)
    assert sorted(trainer.journal.epochs[-2]) == list(range(N))


def test_logits_given_by_hand() -> None:
    model = Net()
    loader = attach(make_loader(), None)
    trainer = Trainer(model, Journal())
    for _ in range(EPOCHS):
        for x, y in loader:
            logits = model.forward(x)
            trainer.journal.write(x, logits, y)
            loader.pruning.observe(logits)
            trainer.optimizer.zero_grad()
            nn.functional.cross_entropy(logits, y).backward()
            trainer.optimizer.step()
        trainer.journal.end_epoch()
    trainer.journal.recording = False
    for x, _ in loader:
        loader.pruning.observe(model.forward(x))
    check_scores(loader.pruning.table, trainer.journal, N)


def test_logits_given_by_hand_one_batch_ahead_need_their_inputs() -> None:
    model = Net()
    loader = attach(make_loader(), None)
    batches = lookahead(loader)
    x, _ = next(batches)
    with pytest.raises(ps.BindingError, match="inputs"):
        loader.pruning.observe(model(x))
    loader.pruning.observe(model(x), inputs=x)
    with pytest.raises(ps.BindingError, match="not a batch that waits"):
        loader.pruning.observe(model(x), inputs=x)


def test_scores_of_a_pass_of_its_own() -> None:
    dataset = Leaky(N)
    plain = DataLoader(dataset, batch_size=16)
    loader, trainer = started(make_loader(dataset), rescore=plain)
    model = trainer.model
    for _ in range(EPOCHS):
        for x, y in loader:  # mixup: the online logits belong to no label
            mixed = 0.7 * x + 0.3 * x.flip(0)
            logits = model(mixed)
            trainer.optimizer.zero_grad()
            nn.functional.cross_entropy(logits, y).backward()
            trainer.optimizer.step()
    p = torch.softmax(model(dataset.x).detach().double(), dim=1)
    expected = (p - nn.functional.one_hot(dataset.targets, 3)).norm(dim=1)
    for _ in loader:
        pass
    table = loader.pruning.table
    torch.testing.assert_close(torch.from_numpy(table.scores["el2n"].copy()), expected.float(), atol=1e-6, rtol=0)
    assert table.protocols["el2n"]["kind"] == "rescored"
    assert table.forgetting_events is None
    assert list(table.scores) == ["el2n"]


def test_no_spread_of_the_batches_stands_beside_the_score_of_a_pass_of_its_own() -> None:
    model = Net()
    loader = attach(
        make_loader(), model, rescore=DataLoader(Leaky(N), batch_size=16), scores=("el2n", "loss", "forgetting")
    )
    trainer = Trainer(model, Journal())
    for _ in range(EPOCHS + 1):
        trainer.epoch(loader)
    table = loader.pruning.table
    assert table.forgetting_events is not None
    assert set(table.scores) == {"el2n", "loss"}
    assert all("split_half" not in protocol for protocol in table.protocols.values())


def test_weights_of_a_coreset_weight_the_loss() -> None:
    dataset = Leaky(N)
    weights = torch.linspace(0.5, 3, 10)
    coreset = ps.Coreset(list(range(0, N, 4)), num_rows=N, weights=weights.numpy())
    ours, theirs = Net(), Net()
    loader = attach(make_loader(dataset, batch_size=5), ours, coreset=coreset)
    assert loader.pruning.phase == "pruned"
    assert len(loader) == 2
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.2) for model in (ours, theirs)]
    for _ in range(3):
        for x, y in loader:
            losses = [nn.functional.cross_entropy(ours(x), y)]
            w = weights[x[:, 0].long() // 4]
            losses.append((w * nn.functional.cross_entropy(theirs(x), y, reduction="none")).mean())
            for optimizer, loss in zip(optimizers, losses, strict=True):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5)


def test_weights_that_the_loss_passes_by_are_an_error() -> None:
    class Inside(Net):
        def forward(self, input_ids: Any, **_: Any) -> Any:
            hidden = self.head(self.body(input_ids[:, 1:]))
            return {"loss": hidden.square().mean(), "logits": hidden * 1.0}

    model = Inside()
    coreset = ps.Coreset([0, 1, 2, 3], num_rows=N, weights=[1, 2, 3, 4])
    loader = attach(make_loader(), model, coreset=coreset)
    with pytest.raises(ps.BindingError, match="weights were not applied"):
        for x, _ in loader:
            model(x)["loss"].backward()


def test_own_columns_can_be_recorded_and_selected_by() -> None:
    loader, trainer = started(method="random")
    for _ in range(EPOCHS):
        for batch in loader:
            rows = batch[0][:, 0].long()
            loader.pruning.tracker.record(rows, twice=2.0 * rows.float())
            trainer.step(batch)
        trainer.journal.end_epoch()
    loader.pruning.finish()
    assert loader.pruning.table.scores["twice"].tolist() == [2.0 * row for row in range(N)]


def test_the_warning_about_the_length_comes_at_attach() -> None:
    loader = make_loader()
    with pytest.warns(ps.PruneSamplerWarning, match=r"len\(loader\) is 7 and will be 4"):
        ps.attach(loader, Net(), keep=0.5, score_epochs=2)
    assert loader.pruning.total_steps(5) == 2 * 7 + 3 * 4


@pytest.mark.parametrize(
    ("workers", "stops"),  # batches trained before the crash
    [(1, (3, 7, 3 * 7, 3 * 7 + 2, 3 * 7 + 5)), (2, (10,))],
)
def test_stateful_dataloader_resumes_mid_epoch(workers: int, stops: tuple[int, ...]) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    def make() -> tuple[Any, Any]:
        torch.manual_seed(9)
        model = Net()
        loader = StatefulDataLoader(
            Leaky(N), batch_size=BATCH, shuffle=True, generator=torch.Generator().manual_seed(5), num_workers=workers
        )
        return attach(loader, model), Trainer(model, Journal())

    loader, trainer = make()
    for _ in range(EPOCHS + 2):
        trainer.epoch(loader)
    whole, table = trainer.rows, loader.pruning.table
    for stop in stops:
        loader, trainer = make()
        steps = 0
        state: dict[str, Any] = {}
        while not state:
            for batch in loader:
                trainer.step(batch)
                steps += 1
                if steps == stop:
                    state = {
                        "pruning": copy.deepcopy(loader.pruning.state_dict()),
                        "loader": copy.deepcopy(loader.state_dict()),
                        "model": copy.deepcopy(trainer.model.state_dict()),
                    }
                    break
        seen = trainer.rows
        del loader
        loader, trainer = make()
        trainer.model.load_state_dict(state["model"])
        loader.pruning.load_state_dict(state["pruning"])
        loader.load_state_dict(state["loader"])
        while len(seen) + len(trainer.rows) < len(whole):
            trainer.epoch(loader)
        assert seen + trainer.rows == whole, stop
        assert loader.pruning.table == table or loader.pruning.table is None
        assert loader.pruning.coreset is not None


def test_a_sequential_base_stays_sequential() -> None:
    loader, trainer = scored(
        DataLoader(Leaky(N), batch_size=BATCH, sampler=SequentialSampler(range(N))), epochs=EPOCHS + 1
    )
    assert trainer.journal.epochs[-2] == loader.pruning.coreset.rows.tolist()


@pytest.mark.parametrize("coreset", [None, ps.Coreset([3, 5], num_rows=N)])
def test_a_loader_that_is_never_read_is_noticed(coreset: Any) -> None:
    model = Net()
    attach(loader := make_loader(), model, coreset=coreset)
    inputs = torch.stack([x for x, _ in make_loader()][0:1])[0]
    for _ in range(64):
        model(inputs)
    with pytest.raises(ps.BindingError, match="hands out no batches: call attach after the framework"):
        model(inputs)
    loader.pruning.detach()
