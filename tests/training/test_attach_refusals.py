"""What attach cannot follow it refuses, with the cure, before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, RandomSampler

import prunesampler as ps
from tests.helpers.attached import BATCH, EPOCHS, N, attach, make_loader
from tests.helpers.training import Journal, Leaky, Net, Trainer, lookahead


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    yield tmp_path
    assert not [path for path in tmp_path.iterdir() if path.name != ".lock"]


def train(loader: Any, model: nn.Module, change: Any) -> None:
    for batch in loader:
        x, y = change(*batch)
        logits = model(x)
        nn.functional.cross_entropy(logits, y).backward()


CHANGES = {
    "mixup": lambda x, y: (0.8 * x + 0.2 * x.flip(0), y),
    "CutMix": lambda x, y: (torch.cat([x[:, :2], x.flip(0)[:, 2:]], dim=1), y),
    "repeated augmentation": lambda x, y: (torch.cat([x, x + 1]), torch.cat([y, y])),
    "micro-batches": lambda x, y: (x.chunk(2)[0], y.chunk(2)[0]),
    "noise on the way": lambda x, y: (x + 0.1, y),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("ahead", [False, True])
def test_inputs_that_are_not_the_loaders(folder: Path, change: str, ahead: bool) -> None:
    model = Net()
    loader = attach(make_loader(), model, save_dir=folder)
    with pytest.raises(ps.BindingError, match="rescore="):
        train(lookahead(loader) if ahead else loader, model, CHANGES[change])


@pytest.mark.parametrize("change", ["repeated augmentation", "micro-batches"])
def test_changed_numbers_of_samples_are_refused_even_where_inputs_may_change(folder: Path, change: str) -> None:
    model = Net()
    loader = attach(make_loader(), model, save_dir=folder, inputs_changed="augmented")
    with pytest.raises(ps.BindingError, match=r"6 rows, .*rescore="):
        train(loader, model, CHANGES[change])


def test_mixup_that_begins_late_is_noticed(folder: Path) -> None:
    model = Net()
    loader = attach(make_loader(), model, save_dir=folder)
    for _ in range(2):
        train(loader, model, lambda x, y: (x, y))
    with pytest.raises(ps.BindingError, match="rescore="):
        train(loader, model, CHANGES["mixup"])


def test_mixup_under_a_policy_that_counts_what_was_right(folder: Path) -> None:
    model = Net()
    loader = ps.attach(make_loader(), model, policy=ps.SwapForgotten(keep=0.5), save_dir=folder)
    with pytest.raises(ps.BindingError, match="inputs"):
        train(loader, model, CHANGES["mixup"])


def test_several_crops_of_a_sample() -> None:
    class Crops(Leaky):
        def __getitem__(self, i: int) -> Any:
            return [self.x[i], self.x[i] + 0.5], self.targets[i]

    model = Net()
    loader = attach(make_loader(Crops(N)), model)
    for (first, second), y in loader:  # one after another: the first crop is the presentation
        nn.functional.cross_entropy(model(first), y).backward()
        nn.functional.cross_entropy(model(second), y).backward()
    assert loader.pruning.tracker.table().presentations.tolist() == [1] * N
    model = Net()
    loader = attach(make_loader(Crops(N)), model)
    with pytest.raises(ps.BindingError, match="rescore="):
        for crops, y in loader:
            nn.functional.cross_entropy(model(torch.cat(crops)), torch.cat([y, y])).backward()


@pytest.mark.parametrize("first", [True, False])
def test_an_unlabelled_forward_beside_the_batch(folder: Path, first: bool) -> None:
    def loop(loader: Any, model: nn.Module) -> None:
        for x, y in loader:
            unlabelled = torch.randn(8, 4)
            if first:
                model(unlabelled)
            nn.functional.cross_entropy(model(x), y).backward()
            if not first:
                model(unlabelled)

    model = Net()
    loader = attach(make_loader(), model, save_dir=folder)
    with pytest.raises(ps.BindingError, match="forwards="):
        loop(loader, model)
    loader.pruning.detach()
    attach(loader, model, forwards="matching")
    loop(loader, model)
    assert loader.pruning.tracker.table().presentations.tolist() == [1] * N


def test_augmentation_in_the_loop_is_followed_when_said_so() -> None:
    model = Net()
    loader = attach(make_loader(), model, inputs_changed="augmented")
    journal = Journal()
    for _ in range(EPOCHS):
        for x, y in loader:
            moved = x.clone()
            moved[:, 1:] += 0.01
            logits = model(moved)
            journal.write(x, logits, y)
            nn.functional.cross_entropy(logits, y).backward()
    loader.pruning.finish()
    found = loader.pruning.table.scores["el2n"].tolist()
    assert found == pytest.approx([journal.el2n(row) for row in range(N)], abs=1e-6)


def test_a_model_that_is_called_past_its_hooks(folder: Path) -> None:
    model = Net()
    loader = attach(make_loader(batch_size=1), model, save_dir=folder)
    with pytest.raises(ps.BindingError, match=r"model\.forward\(x\).*observe"):
        for _ in range(2):
            for x, _ in loader:
                model.forward(x)


def test_a_loader_that_was_built_anew(folder: Path) -> None:
    model = Net()
    loader = attach(make_loader(batch_size=1), model, save_dir=folder)
    rebuilt = DataLoader(loader.dataset, batch_size=1)
    with pytest.raises(ps.BindingError, match="prepared the loader"):
        for _ in range(2):
            train(rebuilt, model, lambda x, y: (x, y))


def test_interleaved_training_passes(folder: Path) -> None:
    model = Net()
    loader = attach(make_loader(), model, save_dir=folder)
    with pytest.raises(ps.BindingError, match="interleaved"):
        for (x, _), (other, _) in zip(loader, loader, strict=True):
            model(x)
            model(other)


class Numbers(IterableDataset):
    def __iter__(self) -> Any:
        return iter(range(9))


class MyBatches(BatchSampler):
    pass


@pytest.mark.parametrize(
    ("loader", "cure"),
    [
        (lambda: DataLoader(Numbers(), batch_size=2), "map-style"),
        (lambda: DataLoader(Leaky(9), batch_size=None), "batch_size"),
        (lambda: DataLoader(Leaky(9), batch_sampler=MyBatches(RandomSampler(range(9)), 3, False)), "keep=None"),
        (lambda: DataLoader(Leaky(9), batch_size=2, sampler=list(range(9))), "keep=None"),
        (lambda: [1, 2, 3], "DataLoader"),
    ],
)
def test_loaders_that_cannot_be_followed(folder: Path, loader: Any, cure: str) -> None:
    with pytest.raises(ps.UnsupportedError, match=cure):
        attach(loader(), Net(), save_dir=folder)


def test_a_live_iterator_with_workers_of_its_own(folder: Path) -> None:
    loader = make_loader(num_workers=1, persistent_workers=True)
    iter(loader)
    with pytest.raises(ps.StateError, match="before the first"):
        attach(loader, Net(), save_dir=folder)


def test_an_exchanged_sampler(folder: Path) -> None:
    loader = attach(make_loader(), Net(), save_dir=folder)
    loader.batch_sampler.sampler = RandomSampler(range(N))
    with pytest.raises(ps.StateError, match="exchanged"):
        iter(loader)


OPTIONS: list[tuple[str, Any]] = [
    ("keep", 1),
    ("keep", 0.0),
    ("keep", 1.5),
    ("keep", N + 1),
    ("keep", True),
    ("keep", float("nan")),
    ("score_epochs", 0),
    ("by", "grand"),
    ("by", "loss"),
    ("method", "hardest"),
    ("offset", 1.0),
    ("min_per_class", 0),
    ("seed", -1),
    ("scores", ("el2n", "magic")),
    ("reduction", "median"),
    ("epoch_length", "half"),
    ("inputs_changed", True),
    ("forwards", "first"),
    ("on_error", "ignore"),
    ("unscored", "maybe"),
    ("model", "net"),
    ("keys", ["a"]),
    ("keys", [0.5] * N),
    ("rescore", DataLoader(Leaky(N + 1), batch_size=2)),
    # What would else be refused when the scoring epochs are over, or break at the first batch.
    ("seed", 2**64),
    ("seed", 0.5),
    ("fingerprint", 20240501),
    ("fingerprint", b"v1"),
    ("fingerprint", ""),
    ("scores", 5),
    ("scores", [["el2n"]]),
    ("scores", ()),
    ("resume", 1),
    ("coreset", 5),
    ("device", "nowhere"),
    ("input_fn", "x"),
    ("logits_fn", 0),
    ("target_fn", "y"),
    ("score_fn", {"el2n": 1}),
]


@pytest.mark.parametrize(("name", "value"), OPTIONS)
def test_wrong_arguments(folder: Path, name: str, value: Any) -> None:
    loader = make_loader()
    model = value if name == "model" else Net()
    options = {} if name == "model" else {name: value}
    kind = type(loader)
    with pytest.raises(ps.ArgumentError, match=rf"^{name}\b"):
        attach(loader, model, save_dir=folder / "run", **options)
    assert type(loader) is kind
    assert not isinstance(model, nn.Module) or not model._forward_hooks


@pytest.mark.parametrize("value", [5, b"runs/a", "", ["runs"], True])
def test_a_folder_that_is_no_path(value: Any) -> None:
    with pytest.raises(ps.ArgumentError, match=r"^save_dir must be a path that is not empty, or None"):
        attach(make_loader(), Net(), save_dir=value)


def test_scores_of_a_pass_of_its_own_are_known_at_once(folder: Path) -> None:
    with pytest.raises(ps.ArgumentError, match=r"^scores must name distinct scores"):
        attach(make_loader(), Net(), rescore=make_loader(), scores=("el2n", "magic"), save_dir=folder / "run")


FEW: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a share": ({}, {"keep": 0.1}),
    "a number": ({}, {"keep": BATCH - 1}),
    "a policy": ({}, {"policy": ps.RandomSubset(keep=0.1)}),
    "ranks": ({"sampler": DistributedSampler(range(N), 4, 0)}, {"keep": 4 * BATCH - 4}),
    "ranks that drop": ({"sampler": DistributedSampler(range(N), 4, 0, drop_last=True)}, {"keep": 4 * BATCH - 1}),
    "some rows": ({"sampler": RandomSampler(range(10))}, {"keep": 0.5}),
    "a coreset": ({}, {"coreset": ps.Coreset(range(BATCH - 1), num_rows=N)}),
}


@pytest.mark.filterwarnings("ignore:len.loader. is")
@pytest.mark.parametrize("name", FEW)
def test_passes_of_no_batch_are_refused_and_the_cures_work(folder: Path, name: str) -> None:
    how, options = FEW[name]
    loader_options: dict[str, Any] = {"batch_size": BATCH, "drop_last": True, **how}
    if name != "a coreset":
        options = {**options, "save_dir": None if "policy" in options else folder / "run"}
    with pytest.raises(ps.ArgumentError, match=r"^keep must leave rows for one batch.*or the loader drop_last=False"):
        ps.attach(DataLoader(Leaky(N), **loader_options), Net(), **options)
    options.pop("save_dir", None)
    cured = [ps.attach(DataLoader(Leaky(N), **loader_options | {"drop_last": False}), Net(), **options)]
    if "keep" in options:
        loader = ps.attach(DataLoader(Leaky(N), **loader_options), Net(), **options, epoch_length="full")
        cured.append(loader)
    assert all(loader.pruning.total_steps(20) > loader.pruning.total_steps(19) for loader in cured)


def test_what_auto_leaves_may_be_less_than_a_batch(tmp_path: Path) -> None:
    class Easy(Leaky):
        def __getitem__(self, i: int) -> Any:
            return super().__getitem__(i)[0], int(i < 3)

    class Constant(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 0 + torch.tensor([5.0, 0.0, 0.0])

    loader = DataLoader(Easy(N), batch_size=N // 2, shuffle=True, drop_last=True)
    model = Constant()
    loader = attach(loader, model, keep="auto", method="stratified", threshold=2.0, score_epochs=2, save_dir=tmp_path)
    with pytest.raises(ps.ArgumentError, match=r"^keep must leave rows for one batch.*got 'auto'"):
        for _ in range(3):
            for x, y in loader:
                nn.functional.cross_entropy(model(x), y).backward()
    assert (tmp_path / "scores.parquet").exists()  # they are not lost


AUTO_OPTIONS: list[tuple[str, Any]] = [
    ("score_epochs", 1),
    ("reduction", "last"),
    ("scores", ("el2n",)),
    ("by", "margin"),
    ("by", "forgetting"),
    ("rescore", DataLoader(Leaky(N), batch_size=2)),
    ("score_fn", lambda logits, targets: {"el2n": logits[:, 0]}),
    ("method", "random"),
    ("offset", 0.1),
    ("class_balanced", True),
    ("unscored", "drop"),
    ("threshold", 0.0),
    ("threshold", True),
    ("keep", "automatic"),
]


@pytest.mark.parametrize(("name", "value"), AUTO_OPTIONS)
def test_what_auto_cannot_work_with_is_known_at_once(folder: Path, name: str, value: Any) -> None:
    scores = ("el2n", "margin", "forgetting")
    if name in ("rescore", "score_fn"):
        scores = None  # type: ignore[assignment]
    with pytest.raises(ps.ArgumentError, match=rf"^{name}\b"):
        ps.attach(make_loader(), Net(), save_dir=folder / "run", **{"keep": "auto", "scores": scores, name: value})


@pytest.mark.parametrize("keep", [0.5, 20, None])
def test_a_threshold_belongs_to_auto(folder: Path, keep: Any) -> None:
    with pytest.raises(ps.ArgumentError, match=r'^threshold belongs to keep="auto"'):
        attach(make_loader(), Net(), keep=keep, threshold=0.1, save_dir=folder / "run")


@pytest.mark.parametrize(("name", "value"), [("class_balanced", True), ("min_per_class", 2)])
def test_classes_cannot_be_balanced_without_labels(folder: Path, name: str, value: Any) -> None:
    with pytest.raises(ps.ArgumentError, match=f"^{name} must be left out where score_fn= scores"):
        attach(make_loader(), Net(), by="size", score_fn=sizes, save_dir=folder / "run", **{name: value})


def sizes(logits: torch.Tensor, targets: Any) -> dict[str, torch.Tensor]:
    return {"size": logits.norm(dim=1)}


def test_a_score_that_score_fn_does_not_return_is_missed_after_one_epoch(folder: Path) -> None:
    model = Net()
    loader = attach(make_loader(), model, score_fn=sizes, score_epochs=5)
    with pytest.raises(ps.ArgumentError, match=r"^by must be a column that score_fn returned, one of \('size',\)"):
        train(loader, model, lambda x, y: (x, y))
    model = Net()
    loader = attach(make_loader(), model, score_fn=sizes, by="mine", score_epochs=5)
    for rows, (x, _) in zip([[0]] * 99, loader, strict=False):
        model(x)
        loader.pruning.tracker.record(rows, mine=[1.0])
    assert loader.pruning.tracker.epochs == 1


class Odd(Leaky):
    def __init__(self, label: Any) -> None:
        super().__init__(N)
        self.label = label

    def __getitem__(self, i: int) -> Any:
        return self.x[i], self.label


@pytest.mark.parametrize(
    ("label", "error", "cure"),
    [
        (torch.tensor([0.2, 0.3, 0.5]), ps.UnsupportedError, "score_fn"),
        (torch.zeros(4, dtype=torch.long), ps.UnsupportedError, "score_fn"),
        (0.5, ps.UnsupportedError, "score_fn"),
        (3, ps.ArgumentError, r"targets must be in \[0, 3\)"),
        (-100, ps.ArgumentError, r"targets must be in \[0, 3\)"),
    ],
)
def test_targets_that_are_no_class_indices(folder: Path, label: Any, error: Any, cure: str) -> None:
    model = Net()
    loader = attach(make_loader(Odd(label)), model, save_dir=folder)
    with pytest.raises(error, match=cure):
        for x, _ in loader:
            model(x)


def test_logits_that_are_not_two_dimensional(folder: Path) -> None:
    class Dense(Net):
        def forward(self, x: Any) -> Any:
            return super().forward(x)[:, :, None]

    model = Dense()
    loader = attach(make_loader(), model, save_dir=folder)
    with pytest.raises(ps.UnsupportedError, match="logits"):
        for x, _ in loader:
            model(x)


def test_a_loop_that_drops_samples(folder: Path) -> None:
    model = Net()
    loader = attach(make_loader(), model, save_dir=folder, logits_fn=lambda logits: logits[:-1])
    with pytest.raises(ps.BindingError, match="6 rows, 5 logits, 6 targets"):
        for x, _ in loader:
            model(x)


def test_a_world_without_a_process_group(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ps.UnsupportedError, match="init_process_group"):
        attach(make_loader(), Net(), save_dir=folder)


def test_an_occupied_folder_and_other_scoring_options(tmp_path: Path) -> None:
    model = Net()
    loader = attach(make_loader(), model, save_dir=tmp_path)
    trainer = Trainer(model, Journal())
    trainer.epoch(loader)
    loader.pruning.finish()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ps.StateError, match="resume=True"):
        attach(make_loader(), Net(), save_dir=tmp_path)
    with pytest.raises(ps.StateError, match="score_epochs"):
        attach(make_loader(), Net(), save_dir=tmp_path, resume=True, score_epochs=EPOCHS + 1)
    with pytest.raises(ps.MismatchError):
        attach(make_loader(Leaky(N, seed=4)), Net(), save_dir=tmp_path, resume=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_failure_can_fall_back_to_all_rows(folder: Path) -> None:
    model = Net()
    loader = attach(make_loader(), model, save_dir=folder, on_error="train_on_all")
    batches = 0
    with pytest.warns(ps.PruneSamplerWarning, match="training goes on with all rows"):
        for _ in range(EPOCHS + 1):
            for x, y in loader:
                nn.functional.cross_entropy(model(0.5 * x + 0.5 * x.flip(0)), y).backward()
                batches += 1
    assert batches == (EPOCHS + 1) * -(-N // BATCH)
    assert loader.pruning.phase == "detached"


def test_a_folder_that_vanished_can_fall_back_to_all_rows(tmp_path: Path) -> None:
    model = Net()
    loader = attach(make_loader(), model, save_dir=tmp_path / "run", score_epochs=1, on_error="train_on_all")
    shutil.rmtree(tmp_path / "run")
    with pytest.warns(ps.PruneSamplerWarning, match="training goes on with all rows"):
        train(loader, model, lambda x, y: (x, y))
    assert len(loader) == -(-N // BATCH)


def test_non_finite_scores_are_null_and_kept() -> None:
    class Blows(Net):
        def forward(self, x: Any) -> Any:
            logits = super().forward(x)
            return torch.where(x[:, :1] == 7, torch.nan, logits)

    model = Blows()
    loader = attach(make_loader(), model)
    with pytest.warns(ps.PruneSamplerWarning, match="finite"):
        for _ in range(EPOCHS):
            for x, _ in loader:
                model(x)
    assert [
        row for row in range(N) if loader.pruning.table.scores["el2n"][row] != loader.pruning.table.scores["el2n"][row]
    ] == [7]
    assert 7 in loader.pruning.coreset.rows
