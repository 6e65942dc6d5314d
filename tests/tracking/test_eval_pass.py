"""score() against the formula on all logits at once, and what it must leave alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from prunesampler.capture.rows import RowBatch
from prunesampler.errors import ArgumentError, PruneSamplerWarning, StateError, UnsupportedError
from prunesampler.scores import logits as scoring
from prunesampler.tables.fingerprint import fingerprint
from prunesampler.tracking.eval_pass import score

N, C = 37, 4


def images(n: int = N) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(n, 6, generator=generator), torch.randint(C, (n,), generator=generator))


class Net(nn.Module):
    """All that behaves differently in training: batch norm, dropout, and a part that was frozen by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.frozen = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, C)
        generator = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)
        self.body[1].running_mean.normal_(generator=generator)
        self.train()
        self.frozen.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.frozen(self.body(x)))


def direct(model: nn.Module, dataset: TensorDataset, name: str = "el2n") -> Tensor:
    flags = [module.training for module in model.modules()]
    with torch.no_grad():
        logits = model.eval()(dataset.tensors[0])
    for module, flag in zip(model.modules(), flags, strict=True):
        module.training = flag
    return getattr(scoring, name)(logits, dataset.tensors[1])


def run(model: nn.Module, loader: Any, **options: Any) -> Any:
    return score(model, loader, **{"progress": False, **options})


@pytest.mark.parametrize(
    "loading",
    [
        {"batch_size": 1},
        {"batch_size": 16},
        {"batch_size": N},
        {"batch_size": 5, "shuffle": True},
        {"batch_size": 5, "shuffle": True, "num_workers": 2},
    ],
    ids=str,
)
def test_equals_a_direct_evaluation(loading: dict[str, Any]) -> None:
    dataset, model = images(), Net()
    names = ["el2n", "loss", "margin", "entropy"]
    table = run(model, DataLoader(dataset, **loading), scores=names)
    for name in names:
        torch.testing.assert_close(torch.tensor(table.scores[name]), direct(model, dataset, name), rtol=1e-4, atol=1e-5)
    assert table.labels.tolist() == dataset.tensors[1].tolist()
    assert table.presentations.tolist() == [1] * N
    protocol = {"kind": "rescored", "epochs": 1, "reduction": "mean", "runs": 1}
    assert table.protocols == dict.fromkeys(names, protocol)
    assert table.forgetting_events is None
    assert table.fingerprint == fingerprint(dataset)


def everything(model: nn.Module) -> list[Any]:
    tensors = [value.clone() for value in model.state_dict().values()]
    generators = [torch.get_rng_state(), random.getstate(), str(np.random.get_state())]  # noqa: NPY002
    return [tensors, [module.training for module in model.modules()], generators, torch.is_grad_enabled()]


class Noisy(Dataset):
    """Draws from every global generator, as augmentations do."""

    def __init__(self, fail_at: int = -1) -> None:
        self.fail_at = fail_at

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Any:
        if i == self.fail_at:
            raise OSError("disk")
        return torch.rand(6) + random.random() + np.random.rand(), i % C  # noqa: NPY002


@pytest.mark.parametrize("fail_at", [-1, 5])
@pytest.mark.parametrize("workers", [0, 1])
def test_leaves_the_model_and_the_generators_alone(fail_at: int, workers: int) -> None:
    model = Net()
    loader = DataLoader(Noisy(fail_at), batch_size=3, shuffle=True, num_workers=workers)
    before = everything(model)
    if fail_at < 0:
        run(model, loader)
    else:
        with pytest.raises(OSError, match="disk"):
            run(model, loader)
    assert str(everything(model)) == str(before)
    assert all(torch.equal(a, b) for a, b in zip(everything(model)[0], before[0], strict=True))
    assert torch.equal(everything(model)[2][0], before[2][0])


def test_leaves_the_loaders_generators_alone() -> None:
    dataset = images()
    own = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    loader = DataLoader(dataset, 4, sampler=RandomSampler(dataset, generator=own[1]), generator=own[0])
    before = [generator.get_state() for generator in own]
    run(Net(), loader)
    assert all(torch.equal(generator.get_state(), state) for generator, state in zip(own, before, strict=True))


def test_modules_that_act_in_train_are_told() -> None:
    class Merging(nn.Linear):
        merged = False

        def train(self, mode: bool = True) -> Merging:
            self.merged = not mode
            return super().train(mode)

    model = nn.Sequential(Merging(6, C))
    run(model, DataLoader(images(), 8))
    assert not model[0].merged


class Dicts(Dataset):
    """``names`` are those of the batch's entries; the label is always there."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> dict[str, Any]:
        x, y = images()[i]
        return {**dict.fromkeys(self.names, x), "labels": y}


class Keyword(Net):
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Any:  # type: ignore[override]
        assert labels is None
        return {"logits": super().forward(pixel_values)}


class Both(Net):
    def forward(self, a: Tensor, b: Tensor) -> Any:  # type: ignore[override]
        return super().forward((a + b) / 2), "more"


class Anything(Net):
    def forward(self, **entries: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(entries["a"])


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (Net(), ["x"]),
        (Net(), ["image"]),
        (Keyword(), ["pixel_values"]),
        (Keyword(), ["pixel_values", "path"]),
        (Both(), ["a", "b"]),
        (Anything(), ["a", "b"]),
    ],
)
def test_dict_batches(model: nn.Module, names: list[str]) -> None:
    table = run(model, DataLoader(Dicts(*names), 8))
    expected = direct(Net(), images())
    torch.testing.assert_close(torch.tensor(table.scores["el2n"]), expected, rtol=1e-4, atol=1e-5)


def test_tuples_of_three_and_functions_of_the_user() -> None:
    dataset, model = images(), Net()
    expected = direct(model, dataset)

    def check(loader: Any, model: nn.Module = model, **options: Any) -> None:
        found = torch.tensor(run(model, loader, **options).scores["el2n"])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    x, y = dataset.tensors
    check(DataLoader(TensorDataset(x, y, torch.arange(N)), 8))
    swapped = DataLoader(TensorDataset(y, x), 8)
    check(swapped, input_fn=lambda batch: (batch[1],), target_fn=lambda batch: batch[0])
    check(swapped, input_fn=lambda batch: {"x": batch[1]}, target_fn=lambda batch: batch[0])
    check(swapped, input_fn=lambda batch: batch[1], target_fn=lambda batch: batch[0])

    class Deep(Net):
        def forward(self, x: Tensor) -> Any:
            return [[super().forward(x)]]

    check(DataLoader(dataset, 8), Deep(), logits_fn=lambda output: output[0][0])


def test_no_gradients_are_kept() -> None:
    class Watched(Net):
        def forward(self, x: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            return super().forward(x)

    run(Watched(), DataLoader(images(), 8))


def test_soft_targets_by_a_function() -> None:
    x, y = images().tensors
    soft = nn.functional.one_hot(y, C).float()
    loader = DataLoader(TensorDataset(x, soft), 8)
    with pytest.raises(UnsupportedError, match="score_fn"):
        run(Net(), loader)
    table = run(Net(), loader, score_fn=lambda z, t: {"mine": (z.softmax(1) - t).norm(dim=1)})
    torch.testing.assert_close(torch.tensor(table.scores["mine"]), direct(Net(), images()), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:grand:prunesampler.PruneSamplerWarning")  # labels at random
def test_several_models_are_averaged_one_after_another() -> None:
    dataset, models = images(), [Net(), Net()]
    models[1].head.weight.data.neg_()
    loader = DataLoader(dataset, 8)
    table = run((model for model in models), loader, scores=["el2n", "grand"])
    for name in ("el2n", "grand"):
        single = [run(model, loader, scores=[name]).scores[name] for model in models]
        np.testing.assert_allclose(table.scores[name], np.mean(single, axis=0), rtol=1e-5)
        assert table.protocols[name]["runs"] == 2
        assert table.protocols[name]["between_runs"] == pytest.approx(spearmanr(*single).statistic)
    for wrong in ([], [Net(), 3]):
        with pytest.raises(ArgumentError, match=r"model must be a torch\.nn\.Module"):
            run(wrong, loader)


@pytest.mark.filterwarnings("ignore:grand:prunesampler.PruneSamplerWarning")  # labels at random
def test_scores_of_the_model_leave_it_alone_and_take_the_users_functions() -> None:
    x, y = images().tensors

    class Wrapped(Net):
        def forward(self, x: Tensor) -> Any:  # type: ignore[override]
            return {"deep": [super().forward(x)]}

    model = Wrapped()
    options: dict[str, Any] = {"logits_fn": lambda output: output["deep"][0], "target_fn": lambda batch: batch[0]}
    before = everything(model)
    loader = DataLoader(TensorDataset(y, x), 8)
    table = run(model, loader, scores=["grand_last", "grand"], input_fn=lambda batch: batch[1], **options)
    assert str(everything(model)) == str(before)
    plain = run(torch.compile(Net(), backend="eager"), DataLoader(images(), 5), scores=["grand_last", "grand"])
    for name in ("grand_last", "grand"):
        np.testing.assert_allclose(table.scores[name], plain.scores[name], rtol=1e-4)
    assert (table.scores["grand_last"] < table.scores["grand"]).all()


def test_rows_that_cannot_come_are_in_the_table_if_asked_for() -> None:
    loader = DataLoader(images(), 4, sampler=SubsetRandomSampler([5, 1]))
    assert run(Net(), loader).rows.tolist() == [1, 5]
    table = run(Net(), loader, all_rows=True)
    assert np.flatnonzero(~np.isnan(table.scores["el2n"])).tolist() == [1, 5]
    assert len(table) == N


def test_rows_that_do_not_come_have_no_score() -> None:
    dataset = images()
    table = run(Net(), DataLoader(dataset, 8, drop_last=True), keys=list(range(N)))
    assert np.isnan(table.scores["el2n"]).tolist() == [row >= 32 for row in range(N)]
    assert table.keys == list(range(N))
    subset = run(Net(), DataLoader(Subset(dataset, [5, 1]), 8), fingerprint="mine")
    torch.testing.assert_close(torch.tensor(subset.scores["el2n"]), direct(Net(), dataset)[[5, 1]])
    assert subset.fingerprint == "mine"


def test_a_pipeline_with_rows() -> None:
    class Pipeline:
        def iter_rows(self) -> Iterator[RowBatch]:
            x, y = images().tensors
            for rows in ([3, 1], [0]):
                yield RowBatch(np.array(rows), (x[rows], y[rows]))

    with pytest.raises(ArgumentError, match="num_rows must be given"):
        run(Net(), Pipeline())
    table = run(Net(), Pipeline(), num_rows=5)
    assert np.isnan(table.scores["el2n"]).tolist() == [False, False, True, False, True]
    torch.testing.assert_close(
        torch.tensor(table.scores["el2n"])[[0, 1, 3]], direct(Net(), images())[[0, 1, 3]], rtol=1e-4, atol=1e-5
    )


def test_a_diverged_model_has_no_scores() -> None:
    model = Net()
    model.head.bias.data[1] = float("nan")
    with (
        pytest.warns(PruneSamplerWarning, match="el2n has no value for 37 of 37 rows"),
        pytest.warns(PruneSamplerWarning, match="every score of this epoch is infinite or NaN"),
    ):
        table = run(model, DataLoader(images(), 8))
    assert np.isnan(table.scores["el2n"]).all()


def test_the_progress_bar_is_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    score(Net(), DataLoader(images(), 8))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "scoring" in shown.err
    assert "5/5" in shown.err
    run(Net(), DataLoader(images(), 8))
    assert capsys.readouterr().err == ""


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return iter([])


def bad_label() -> DataLoader[Any]:
    x, y = images().tensors
    return DataLoader(TensorDataset(x, torch.where(torch.arange(N) == 7, C, y)), 8)


@pytest.mark.parametrize(
    ("loader", "options", "error", "match"),
    [
        (DataLoader(images(), 8), {"model": 3}, ArgumentError, "model must be"),
        (DataLoader(images(), 8), {"scores": ["forgetting"]}, ArgumentError, "forgetting"),
        (DataLoader(images(), 8), {"scores": ["el2m"]}, ArgumentError, "scores must"),
        (DataLoader(images(), 8), {"memory": 0}, ArgumentError, "memory must be an int >= 1"),
        (DataLoader(images(), 8), {"device": "nowhere"}, ArgumentError, "device must"),
        (DataLoader(images(), 8), {"target_fn": 3}, ArgumentError, "target_fn must"),
        (DataLoader(images(), 8), {"num_rows": 10}, ArgumentError, "rows must"),
        (DataLoader(images(), 8), {"logits_fn": lambda z: z.mean(1)}, UnsupportedError, "logits must"),
        (DataLoader(Dicts("a", "b"), 8), {}, UnsupportedError, "input_fn="),
        (DataLoader(Stream(), 8), {}, UnsupportedError, "IterableDataset"),
        (DataLoader(images(), batch_size=None), {}, UnsupportedError, "batch_size=None"),
        (bad_label(), {}, ArgumentError, "targets must"),
        (DataLoader(images(3), 8, drop_last=True), {}, StateError, "nothing was scored"),
    ],
)
def test_refusals(loader: Any, options: dict[str, Any], error: type, match: str) -> None:
    model = options.pop("model", None) or Net()
    with pytest.raises(error, match=match):
        run(model, loader, **options)
