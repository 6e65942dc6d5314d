"""The Lightning callback against a LightningModule that writes down what it is given."""

from __future__ import annotations

import itertools
import re
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset, SubsetRandomSampler

import prunesampler as ps
from tests.helpers.training import Journal, Leaky, Net, check_scores, hardest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint

    from prunesampler.integrations.callback import quantiles
    from prunesampler.integrations.lightning import PruningCallback
    from prunesampler.integrations.training_step import called_submodules

pytestmark = [
    pytest.mark.filterwarnings("ignore::prunesampler.PruneSamplerWarning"),
    # what Lightning finds worth a hint in a small run, and torch's deprecations that are Lightning's or torchdata's
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*(set_vital|exists and is not empty|No device id|barrier|treespec|LeafSpec)"),
]
N, BATCH, EPOCHS = 40, 4, 2
FULL, HALF = N // BATCH, N // BATCH // 2


class Lit(pl.LightningModule):
    """Its journal is the oracle: rows of each epoch by Lightning's own count, and scores in plain Python."""

    def __init__(self, scored: int = EPOCHS) -> None:
        super().__init__()
        self.net = Net()
        self.journal, self.scored = Journal(), scored
        self.epochs: dict[int, list[int]] = defaultdict(list)
        self.validated: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        if self.current_epoch < self.scored:
            self.journal.write(x, logits, y)
        self.epochs[self.current_epoch] += x[:, 0].long().tolist()
        return cross_entropy(logits, y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0 and not self.trainer.sanity_checking:
            self.validated.append(self.current_epoch)
        self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.4)


class Manual(Lit):
    """Steps by itself, two batches at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx))
        if batch_idx % 2:
            optimizer.step()
            optimizer.zero_grad()


class Submodule(Lit):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        self.epochs[self.current_epoch] += x[:, 0].long().tolist()
        return cross_entropy(self.net(x), y)


class NoForward(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    training_step, configure_optimizers = Submodule.training_step, Lit.configure_optimizers


def loader(dataset: Any = None, **options: Any) -> DataLoader[Any]:
    return DataLoader(Leaky(N) if dataset is None else dataset, batch_size=BATCH, **{"shuffle": True, **options})


def callback(**options: Any) -> PruningCallback:
    return PruningCallback(**{"keep": 0.5, "score_epochs": EPOCHS, "method": "top", **options})


def trainer(*callbacks: Any, **options: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": EPOCHS + 3,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(callbacks=list(callbacks), **{**defaults, **options})


def coreset_of(found: PruningCallback) -> ps.Coreset:
    assert found.pruning is not None
    assert found.pruning.coreset is not None
    return found.pruning.coreset


WORKERS = {"num_workers": 2, "persistent_workers": True}


@pytest.mark.parametrize(
    ("options", "given"),
    [({}, {}), ({}, WORKERS), ({"accumulate_grad_batches": 3}, {}), ({"val_check_interval": 0.4}, WORKERS)],
    ids=str,
)
def test_scores_and_rows_are_right(options: dict[str, Any], given: dict[str, Any]) -> None:
    model, prune = Lit(), callback()
    data = loader(**given)
    trainer(prune, **options).fit(model, data, DataLoader(Leaky(8), batch_size=4))
    assert prune.pruning is data.pruning  # type: ignore[attr-defined]
    assert prune.pruning is not None
    check_scores(prune.pruning.table, model.journal, N)
    kept = coreset_of(prune).rows.tolist()
    assert set(kept) == hardest(model.journal, N, N // 2)
    for epoch in range(EPOCHS + 3):
        assert sorted(model.epochs[epoch]) == (list(range(N)) if epoch < EPOCHS else kept)
    times = 2 if options.get("val_check_interval") else 1
    assert model.validated == [epoch for epoch in range(EPOCHS + 3) for _ in range(times)]


def test_reduced_precision_is_followed() -> None:
    prune = callback()
    trainer(prune, num_sanity_val_steps=0, precision="bf16-true").fit(Lit(), loader())
    assert len(coreset_of(prune)) == N // 2


def test_manual_optimisation_is_followed() -> None:
    model, prune = Manual(), callback()
    trainer(prune).fit(model, loader())
    assert prune.pruning is not None
    check_scores(prune.pruning.table, model.journal, N)
    assert set(coreset_of(prune).rows.tolist()) == hardest(model.journal, N, N // 2)
    assert sorted(model.epochs[EPOCHS]) == coreset_of(prune).rows.tolist()


def test_kept_length_makes_fewer_steps_than_lightning_estimates() -> None:
    class Scheduled(Lit):
        def configure_optimizers(self) -> Any:
            self.estimated = self.trainer.estimated_stepping_batches
            return super().configure_optimizers()

    model, run = Scheduled(), trainer(callback(epoch_length="kept"))
    run.fit(model, loader())
    assert model.estimated == (EPOCHS + 3) * FULL
    assert run.global_step == EPOCHS * FULL + 3 * HALF


def test_full_length_makes_the_steps_that_lightning_estimates() -> None:
    model, prune = Lit(), callback(epoch_length="full")
    run = trainer(prune, accumulate_grad_batches=2)
    run.fit(model, loader())
    assert run.global_step == run.estimated_stepping_batches == (EPOCHS + 3) * FULL // 2
    counts = [sum(epoch.count(row) for epoch in list(model.epochs.values())[EPOCHS:]) for row in coreset_of(prune).rows]
    assert set(counts) == {6}


def test_limits_count_rows_not_epochs() -> None:
    model, prune = Lit(scored=99), callback(score_epochs=1)
    trainer(prune, limit_train_batches=0.5, max_epochs=4).fit(model, loader())
    assert [len(model.epochs[epoch]) for epoch in range(4)] == [FULL // 2 * BATCH] + [HALF // 2 * BATCH] * 3
    assert set(model.epochs[2]) <= set(coreset_of(prune).rows.tolist())


def test_max_steps_end_inside_an_epoch() -> None:
    model, prune = Lit(), callback()
    trainer(prune, max_epochs=-1, max_steps=2 * FULL + 2).fit(model, loader())
    assert set(model.epochs[2]) <= set(coreset_of(prune).rows.tolist())
    assert len(model.epochs[2]) == 2 * BATCH


def test_scores_alone_are_there_at_the_end(tmp_path: Path) -> None:
    model, prune = Lit(), callback(keep=None, save_dir=tmp_path)
    trainer(prune, max_epochs=EPOCHS).fit(model, loader())
    check_scores(ps.ScoreTable.load(tmp_path / "scores.parquet"), model.journal, N)


def test_figures_are_logged() -> None:
    class Figures(pl.Callback):
        def __init__(self) -> None:
            self.seen: list[dict[str, float]] = []

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self.seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    model, prune, figures = Lit(), callback(), Figures()
    trainer(prune, figures).fit(model, loader())
    assert [seen["prune/kept"] for seen in figures.seen] == [N, N, N // 2, N // 2, N // 2]
    values = torch.tensor([model.journal.el2n(row) for row in range(N)])
    for percent in (10, 50, 90):
        expected = pytest.approx(float(values.quantile(percent / 100)), abs=1e-5)
        assert figures.seen[1][f"prune/el2n_p{percent}"] == expected
    assert prune.pruning is not None
    assert quantiles(prune.pruning, "el2n")["prune/el2n_p90"] == expected  # from the table
    assert quantiles(prune.pruning, "loss") == {}


def test_figures_leave_out_rows_without_a_score() -> None:
    model, data = Net(), DataLoader(Leaky(20), batch_size=4)
    attached = ps.attach(data, model, keep=0.5, score_epochs=1, epoch_length="full")
    for x, _ in itertools.islice(attached, 3):
        assert model(x).shape == (4, 3)
    assert quantiles(attached.pruning, "el2n") == {}
    attached.pruning.finish()
    assert attached.pruning.table is not None
    scores = torch.tensor(attached.pruning.table.scores["el2n"].tolist())
    assert scores.isnan().sum() == 8
    expected = pytest.approx(float(scores.nanquantile(0.5)), abs=1e-6)
    assert quantiles(attached.pruning, "el2n")["prune/el2n_p50"] == expected


# -- resume ----------------------------------------------------------------------------------------------------------


class Stop(pl.Callback):
    """Saves after a batch and stops there, or lets go on."""

    def __init__(self, epoch: int, batch: int, path: Path) -> None:
        self.at, self.path = (epoch, batch), path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == self.at:
            trainer.save_checkpoint(self.path)


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[Lit, PruningCallback]:
    model, prune = Lit(), callback()
    trainer(prune).fit(model, loader())
    return model, prune


MARKS = [(0, 0), (1, 3), (1, FULL - 1), (2, 0), (2, HALF - 1), (3, 2)]


@pytest.mark.parametrize(("mark", "workers"), [*((mark, 0) for mark in MARKS), (MARKS[1], 2), (MARKS[3], 2)], ids=str)
def test_resume_inside_an_epoch_is_exact(
    mark: tuple[int, int], workers: int, tmp_path: Path, uninterrupted: tuple[Lit, PruningCallback]
) -> None:
    whole, pruned = uninterrupted
    epoch, batch = mark
    path = tmp_path / "a.ckpt"
    trainer(callback(), Stop(epoch, batch, path)).fit(Lit(), loader(num_workers=workers))
    model, prune = Lit(), callback()
    again = tmp_path / "b.ckpt"
    later = Stop(epoch, batch + 1, again)
    trainer(prune, later).fit(model, loader(num_workers=workers), ckpt_path=path, weights_only=True)
    assert coreset_of(prune) == coreset_of(pruned)
    assert prune.pruning.table == pruned.pruning.table or epoch >= EPOCHS  # type: ignore[union-attr]
    done = (batch + 1) * BATCH
    assert model.epochs[epoch] == whole.epochs[epoch][done:]
    for after in range(epoch + 1, EPOCHS + 3):
        assert model.epochs[after] == whole.epochs[after]
    for mine, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    if again.exists():  # resumed once more inside the same epoch
        model, prune = Lit(), callback()
        trainer(prune).fit(model, loader(num_workers=workers), ckpt_path=again, weights_only=True)
        assert model.epochs[epoch] == whole.epochs[epoch][done + BATCH :]
        assert coreset_of(prune) == coreset_of(pruned)


@pytest.mark.parametrize("at_validation", [True, False])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_resume_between_epochs_is_exact(
    epoch: int, at_validation: bool, tmp_path: Path, uninterrupted: tuple[Lit, PruningCallback]
) -> None:
    whole, pruned = uninterrupted
    save = ModelCheckpoint(
        tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=not at_validation, enable_version_counter=False
    )
    val = DataLoader(Leaky(8), batch_size=4)
    trainer(callback(), save).fit(Lit(), loader(), val)
    model, prune = Lit(), callback()
    trainer(prune, save).fit(model, loader(), val, ckpt_path=tmp_path / f"epoch={epoch}.ckpt", weights_only=True)
    assert coreset_of(prune) == coreset_of(pruned)
    for after in range(epoch + 1, EPOCHS + 3):
        assert model.epochs[after] == whole.epochs[after]


class Hooked(Lit):
    def train_dataloader(self) -> Any:
        return loader()


@pytest.mark.parametrize("first", [1, EPOCHS, EPOCHS + 1])
@pytest.mark.parametrize("hook", [False, True])
def test_a_second_fit_goes_on(hook: bool, first: int) -> None:
    model, prune = (Hooked if hook else Lit)(), callback()
    data = [] if hook else [loader()]
    run = trainer(prune, max_epochs=first)
    run.fit(model, *data)
    run.fit_loop.max_epochs = EPOCHS + 2
    run.fit(model, *data)
    kept = coreset_of(prune).rows.tolist()
    assert set(kept) == hardest(model.journal, N, N // 2)
    for epoch in range(EPOCHS + 2):
        assert sorted(model.epochs[epoch]) == (list(range(N)) if epoch < EPOCHS else kept)


@pytest.mark.parametrize("same_module", [False, True])
def test_one_callback_over_folds(same_module: bool) -> None:
    prune, model = callback(), Lit()
    for fold in range(2):
        rows = [row for row in range(N) if row % 2 == fold]
        model = model if same_module else Lit()
        model.journal, model.epochs = Journal(), defaultdict(list)
        trainer(prune, max_epochs=EPOCHS + 1).fit(model, loader(dataset=Subset(Leaky(N), rows)))
        assert sorted(model.epochs[0]) == rows
        kept = [rows[row] for row in coreset_of(prune).rows]
        assert sorted(model.epochs[EPOCHS]) == kept


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_named_submodule_or_a_function_gives_the_logits() -> None:
    found = []
    for model in ("net", lambda module: module.net):
        prune = callback(model=model)
        trainer(prune).fit(Submodule(), loader())
        found.append(coreset_of(prune))
    assert found[0] == found[1]


class Shared(Lit):
    """Its training_step calls a method, and that the submodule."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._step(batch)

    def _step(self, batch: Any) -> Tensor:
        self.epochs[self.current_epoch] += batch[0][:, 0].long().tolist()
        return cross_entropy(self.net(batch[0]), batch[1])


class Inherited(Submodule):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx)


class Past(Lit):
    """Goes past the hooks of the LightningModule."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.epochs[self.current_epoch] += batch[0][:, 0].long().tolist()
        return cross_entropy(self.forward(batch[0]), batch[1])


@pytest.mark.parametrize("kind", [Submodule, Shared, Inherited, Past])
def test_a_forward_elsewhere_is_named_before_anything_is_trained(kind: type[Lit]) -> None:
    model = kind()
    with pytest.raises(ps.ArgumentError, match=r'PruningCallback\(model="net"\).*does not call self') as caught:
        trainer(callback()).fit(model, loader())
    assert not model.epochs
    cure = re.search(r'model="(\w+)"', str(caught.value))
    assert cure
    prune = callback(model=cure[1])
    trainer(prune).fit(kind(), loader())
    assert len(coreset_of(prune)) == N // 2


class Given(Lit):
    """Gives itself away, and is called there."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return loss_of(self, batch)


def loss_of(model: Any, batch: Any) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("kind", "used"),
    [(Lit, None), (Manual, None), (Given, None), (Submodule, ["net"]), (Shared, ["net"]), (NoForward, ["net"])],
)
def test_what_a_training_step_uses(kind: type[Any], used: list[str] | None) -> None:
    assert called_submodules(kind()) == used


@pytest.mark.parametrize("model", [None, "nets"])
def test_a_model_without_a_forward_has_to_be_named(model: Any) -> None:
    with pytest.raises(ps.ArgumentError, match=r"submodule, such as \['net'\]"):
        trainer(callback(model=model)).fit(NoForward(), loader())


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfitting_stands_aside() -> None:
    prune = callback()
    with pytest.warns(ps.PruneSamplerWarning, match="overfit_batches"):
        trainer(prune, overfit_batches=2).fit(Lit(), loader())
    assert prune.pruning is None
    assert prune.state_dict() == {}


def test_options_are_checked_when_given() -> None:
    with pytest.raises(ps.ArgumentError, match=r"kep must be one of the options of prunesampler.attach, .*'keep'"):
        PruningCallback(kep=0.5)
    with pytest.raises(ps.ArgumentError, match="model must be"):
        PruningCallback(model=Net())  # type: ignore[arg-type]


def test_another_sampler_stays() -> None:
    model, prune = Lit(), callback()
    trainer(prune).fit(model, loader(shuffle=False, sampler=SubsetRandomSampler(range(0, N, 2))))
    assert set(itertools.chain(*model.epochs.values())) == set(range(0, N, 2))
    assert len(coreset_of(prune)) == N // 4


def test_the_older_name_takes_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pytorch_lightning as older
    assert older.Trainer is not pl.Trainer

    class Older(older.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.epochs = Net(), defaultdict(list)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.epochs[self.current_epoch] += batch[0][:, 0].long().tolist()
            return cross_entropy(self(batch[0]), batch[1])

        configure_optimizers = Lit.configure_optimizers

    model, prune = Older(), callback()
    flags = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    older.Trainer(callbacks=[prune], max_epochs=3, accelerator="cpu", enable_model_summary=False, **flags).fit(
        model, loader()
    )
    assert sorted(model.epochs[2]) == coreset_of(prune).rows.tolist()
