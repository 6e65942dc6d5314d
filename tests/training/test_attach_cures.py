"""Each refusal of what a loop hands out names a cure; taken by its word, the cure gives the right scores."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset, default_collate

import prunesampler as ps
from tests.helpers.training import lookahead

N, BATCH, CLASSES = 48, 8, 3
_GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, 5, generator=_GENERATOR)
Y = torch.randint(CLASSES, (N,), generator=_GENERATOR)
PLACE = torch.randint(2, (N,), generator=_GENERATOR)
Forward = Callable[[nn.Module, Any], Tensor]


def new_model() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(5, CLASSES)


def el2n(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.detach().double().softmax(1) - nn.functional.one_hot(y, logits.shape[1])).norm(dim=1)


def loader_of(sample: Callable[[int], Any], collate: Any = None, **options: Any) -> Any:
    return DataLoader([sample(i) for i in range(N)], batch_size=BATCH, shuffle=True, collate_fn=collate, **options)


def scored(
    sample: Callable[[int], Any],
    forward: Forward = lambda model, batch: model(batch[0]),
    labels: Callable[[Any], Tensor] = lambda batch: batch[1],
    collate: Any = None,
    model: nn.Module | None = None,
    observe: Any = None,
    **options: Any,
) -> Any:
    """The table of one scoring epoch of an ordinary loop, in which ``forward`` gives the logits of its loss."""
    model = new_model() if model is None else model
    options = {"keep": 0.5, "score_epochs": 1, "epoch_length": "full", **options}
    loader = ps.attach(loader_of(sample, collate), None if observe else model, **options)  # type: ignore[arg-type]
    for batch in loader:
        logits = forward(model, batch)
        if observe:
            observe(loader.pruning, logits, batch)
        cross_entropy(logits, labels(batch)).backward()
    loader.pruning.finish()
    return loader.pruning.table


def check(table: Any, logits: Tensor | None = None, y: Tensor = Y) -> None:
    logits = new_model()(X) if logits is None else logits
    np.testing.assert_allclose(table.scores["el2n"], el2n(logits, y).numpy(), rtol=0, atol=1e-6)


def cure_in(error: BaseException | str, name: str) -> Any:
    """The function that a message gives for an argument, as it stands there."""
    (text,) = set(
        re.findall(rf"{name}=(lambda \w+: .+?)(?=, and for |, if each |; | \(or | \(their |$|, got |: )", str(error))
    )
    names = ["cat", "dog", "owl"]
    return eval(text, {"torch": torch, "names": names})


def second(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[1])


TARGETS: dict[str, Any] = {
    "(index, x, y)": (lambda i: (i, X[i], Y[i]), second, lambda batch: batch[2]),
    "(index of another set, x, y)": (lambda i: (i + 7, X[i], Y[i]), second, lambda batch: batch[2]),
    "(x, attribute, y)": (lambda i: (X[i], PLACE[i], Y[i]), None, lambda batch: batch[2]),
    "(x, index, y)": (lambda i: (X[i], i, Y[i]), None, lambda batch: batch[2]),
    "(y, x)": (lambda i: (Y[i], X[i]), second, lambda batch: batch[0]),
    "(B, 1) integers": (lambda i: (X[i], Y[i : i + 1]), None, lambda batch: batch[1].squeeze(1)),
    "(B, 1) floats": (lambda i: (X[i], Y[i : i + 1].float()), None, lambda batch: batch[1].squeeze(1).long()),
    "floats": (lambda i: (X[i], float(Y[i])), None, lambda batch: batch[1].long()),
    "one-hot": (lambda i: (X[i], torch.eye(3)[Y[i]]), None, lambda batch: batch[1].argmax(1)),
    "one-hot integers": (lambda i: (X[i], torch.eye(3).long()[Y[i]]), None, lambda batch: batch[1].argmax(1)),
    "text": (
        lambda i: (X[i], ["cat", "dog", "owl"][Y[i]]),
        None,
        lambda batch: torch.tensor([["cat", "dog", "owl"].index(name) for name in batch[1]]),
    ),
    "labels from 1": (lambda i: (X[i], Y[i] + 1), None, lambda batch: batch[1] - 1),
}


@pytest.mark.parametrize("case", TARGETS)
def test_targets_in_unusual_places_and_dtypes(case: str) -> None:
    sample, forward, labels = TARGETS[case]
    forward = forward or (lambda model, batch: model(batch[0]))
    with pytest.raises(ps.PruneSamplerError) as caught:
        scored(sample, forward, labels)
    assert "augmented" not in str(caught.value)
    assert "score_fn" not in str(caught.value) or "one-hot" in case
    table = scored(sample, forward, labels, target_fn=cure_in(caught.value, "target_fn"))
    check(table)
    assert table.labels.tolist() == Y.tolist()


def test_bools() -> None:
    def sample(i: int) -> Any:
        return X[i], Y[i] > 0

    with pytest.raises(ps.UnsupportedError) as caught:
        scored(sample, labels=lambda batch: batch[1].long())
    table = scored(sample, labels=lambda batch: batch[1].long(), target_fn=cure_in(caught.value, "target_fn"))
    check(table, y=(Y > 0).long())


def test_minus_one_and_one() -> None:
    def sample(i: int) -> Any:
        return X[i], 2 * PLACE[i] - 1

    def labels(batch: Any) -> Any:
        return (batch[1] + 1) // 2

    with pytest.raises(ps.ArgumentError, match=r"^targets must be in \[0, 3\)") as caught:
        scored(sample, labels=labels)
    check(scored(sample, labels=labels, target_fn=cure_in(caught.value, "target_fn")), y=PLACE)


def test_rows_without_a_label() -> None:
    y = torch.where(torch.arange(N) % 5 == 0, -1, Y)

    def sample(i: int) -> Any:
        return X[i], y[i]

    def labels(batch: Any) -> Any:
        return batch[1].clamp(min=0)

    with pytest.raises(ps.ArgumentError, match=r"target_fn=.*torch\.utils\.data\.Subset"):
        scored(sample, labels=labels)
    check(scored(sample, labels=labels, target_fn=labels), y=y.clamp(min=0))
    model, kept = new_model(), [i for i in range(N) if y[i] >= 0]
    data = Subset([sample(i) for i in range(N)], kept)  # type: ignore[arg-type, var-annotated]
    loader = ps.attach(DataLoader(data, batch_size=BATCH), model, score_epochs=1, epoch_length="full")
    for a, b in loader:
        cross_entropy(model(a), b).backward()
    loader.pruning.finish()
    check(loader.pruning.table, new_model()(X[kept]), y[kept])


def bag(samples: list[Any]) -> Any:
    text, label = default_collate(samples)
    return label, text.flatten(), torch.arange(0, text.numel(), text.shape[1])


def test_a_bag_of_words() -> None:
    words = torch.randint(50, (N, 6))

    def model() -> nn.Module:
        torch.manual_seed(2)
        return nn.EmbeddingBag(50, CLASSES)

    def run(**options: Any) -> Any:
        return scored(
            lambda i: (words[i], Y[i]),
            lambda net, batch: net(batch[1], batch[2]),
            lambda batch: batch[0],
            bag,
            model(),
            **options,
        )

    with pytest.raises(ps.UnsupportedError) as caught:
        run()
    check(run(target_fn=cure_in(caught.value, "target_fn")), model()(words))


def test_two_inputs() -> None:
    def model() -> nn.Module:
        torch.manual_seed(2)
        return nn.Bilinear(5, 5, CLASSES)

    def run(**options: Any) -> Any:
        return scored(
            lambda i: (X[i], X[i].flip(0), Y[i]),
            lambda net, batch: net(batch[0], batch[1]),
            lambda batch: batch[2],
            model=model(),
            **options,
        )

    with pytest.raises(ps.UnsupportedError) as caught:
        run()
    check(run(target_fn=cure_in(caught.value, "target_fn")), model()(X, X.flip(1)))


class TwoOutputs(nn.Module):
    def __init__(self, width: int, *, normalised: bool = False, first: bool = True) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body, self.head = nn.Linear(5, width), nn.Linear(width, CLASSES)
        self.normalised, self.first = normalised, first

    def forward(self, x: Tensor) -> Any:
        features = self.body(x).relu()
        logits = self.head(features)
        if self.normalised:
            features = nn.functional.normalize(features)
        return (features, logits) if self.first else (logits, features)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("width", [2, CLASSES, 16])
def test_features_before_the_logits(width: int, normalised: bool) -> None:
    def run(**options: Any) -> Any:
        model = TwoOutputs(width, normalised=normalised)
        return scored(lambda i: (X[i], Y[i]), lambda net, batch: net(batch[0])[1], model=model, **options)

    with pytest.raises(ps.UnsupportedError) as caught:
        run()
    check(run(logits_fn=cure_in(caught.value, "logits_fn")), TwoOutputs(width)(X)[1])


class Heads(nn.Module):
    """Two heads as wide as there are classes: one for another task, then the one for the labels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.other, self.head = nn.Linear(5, CLASSES), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.other(x), self.head(x)


@pytest.mark.parametrize("used", [False, True])
def test_a_head_of_another_task_is_known_by_its_gradient(used: bool) -> None:
    def forward(net: nn.Module, batch: Any) -> Tensor:
        other, logits = net(batch[0])
        if used:
            cross_entropy(other, PLACE[:BATCH]).backward(retain_graph=True)
        return logits

    def run(**options: Any) -> Any:
        return scored(lambda i: (X[i], Y[i]), forward, model=Heads(), **options)

    told = "not the logits or the labels of your loss" if used else "no gradient of your loss"
    with pytest.warns(ps.PruneSamplerWarning, match=told):
        run()
    check(run(logits_fn=lambda output: output[1]), Heads()(X)[1])


@pytest.mark.parametrize("width", [2, CLASSES, 16])
def test_features_after_the_logits_need_nothing(width: int) -> None:
    model = TwoOutputs(width, first=False)
    table = scored(lambda i: (X[i], Y[i]), lambda net, batch: net(batch[0])[0], model=model)
    check(table, TwoOutputs(width)(X)[1])


def test_an_attribute_in_the_place_of_the_label_is_known_by_its_gradient() -> None:
    def run(**options: Any) -> Any:
        data = lambda i: {"x": X[i], "label": PLACE[i], "class": Y[i]}  # noqa: E731
        return scored(data, lambda net, batch: net(batch["x"]), lambda batch: batch["class"], **options)

    with pytest.warns(ps.PruneSamplerWarning, match="target_fn="):
        run()
    check(run(target_fn=lambda batch: batch["class"]))


def test_probabilities() -> None:
    def run(**options: Any) -> Any:
        model = nn.Sequential(new_model(), nn.Softmax(1))
        return scored(lambda i: (X[i], Y[i]), lambda net, batch: net(batch[0]).log(), model=model, **options)

    with pytest.raises(ps.UnsupportedError) as caught:
        run()
    check(run(logits_fn=cure_in(caught.value, "logits_fn")))


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_one_logit_of_two_classes(shape: tuple[int, ...]) -> None:
    class Binary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(4)
            self.head = nn.Linear(5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x).reshape(shape)

    def two(net: nn.Module, batch: Any) -> Tensor:
        one = net(batch[0]).reshape(-1, 1)
        return torch.cat([torch.zeros_like(one), one], 1)

    def run(**options: Any) -> Any:
        return scored(lambda i: (X[i], PLACE[i]), two, model=Binary(), **options)

    with pytest.raises(ps.UnsupportedError) as caught:
        run()
    table = run(logits_fn=cure_in(caught.value, "logits_fn"))
    p = Binary()(X).reshape(-1).sigmoid()
    np.testing.assert_allclose(table.scores["el2n"], ((p - PLACE).abs() * 2**0.5).detach(), rtol=0, atol=1e-6)


class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.body = nn.Linear(5, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).tanh()


def test_a_backbone_whose_head_is_elsewhere() -> None:
    head = nn.Linear(24, CLASSES)

    def run(**options: Any) -> Any:
        return scored(lambda i: (X[i], Y[i]), lambda net, batch: head(net(batch[0])), model=Embedding(), **options)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    told = [str(warning.message) for warning in caught if issubclass(warning.category, ps.PruneSamplerWarning)]
    assert "24 columns" in told[0]
    assert "not the logits" in told[1]
    expected = head(Embedding()(X))
    check(run(logits_fn=head), expected)
    check(run(observe=lambda pruning, logits, batch: pruning.observe(logits, batch[0])), expected)


def test_a_wide_head_on_few_classes_says_so() -> None:
    wide = nn.Linear(5, 40)
    with pytest.warns(ps.PruneSamplerWarning, match="40 columns"):
        scored(lambda i: (X[i], Y[i]), model=wide)
    check(scored(lambda i: (X[i], Y[i]), model=wide, logits_fn=lambda output: output), wide(X))


def test_score_says_the_same() -> None:
    plain = loader_of(lambda i: (X[i], PLACE[i], Y[i]))
    with pytest.raises(ps.UnsupportedError) as caught:
        ps.score(new_model(), plain, progress=False)
    check(ps.score(new_model(), plain, progress=False, target_fn=cure_in(caught.value, "target_fn")))
    plain = loader_of(lambda i: (X[i], Y[i]))
    with pytest.raises(ps.UnsupportedError, match=r"logits_fn=lambda output: output\[1\]"):
        ps.score(TwoOutputs(16), plain, progress=False)
    with pytest.raises(ps.UnsupportedError, match="probabilities"):
        ps.score(nn.Sequential(new_model(), nn.Softmax(1)), plain, progress=False)
    with pytest.warns(ps.PruneSamplerWarning, match="24 columns"):
        ps.score(Embedding(), plain, progress=False)


def test_a_tuple_that_training_has_cleared_is_rescored() -> None:
    plain = DataLoader([(X[i], Y[i]) for i in range(N)], batch_size=BATCH)
    table = scored(
        lambda i: (X[i], Y[i]),
        lambda net, batch: net(batch[0])[0],
        model=TwoOutputs(16, first=False),
        rescore=plain,
    )
    check(table, TwoOutputs(16)(X)[1])
    with pytest.raises(ps.UnsupportedError, match=r"logits_fn=lambda output: output\[1\]"):
        scored(lambda i: (X[i], Y[i]), lambda net, batch: net(batch[0])[1], model=TwoOutputs(16), rescore=plain)


def normalised(net: nn.Module, x: Tensor) -> Tensor:
    return net((x - 0.5) / 0.25)


def trained(loader: Any, batches: Any, step: Callable[[Tensor, Tensor], Tensor]) -> Any:
    for x, y in batches:
        cross_entropy(step(x, y), y).backward()
    loader.pruning.finish()
    return loader.pruning.table


@pytest.mark.parametrize("framework", ["a plain loop", "one batch ahead", "Accelerate"])
def test_inputs_that_are_normalised_in_the_loop(framework: str) -> None:
    expected = normalised(new_model(), X)

    def run(observe: Any = None, **options: Any) -> Any:
        net = new_model()
        loader = DataLoader([(X[i], Y[i]) for i in range(N)], batch_size=BATCH, shuffle=True)  # type: ignore[arg-type]
        if framework == "Accelerate":
            loader = pytest.importorskip("accelerate").Accelerator(cpu=True).prepare(loader)
        loader = ps.attach(loader, None if observe else net, score_epochs=1, epoch_length="full", **options)

        def step(x: Tensor, y: Tensor) -> Tensor:
            logits = normalised(net, x)
            if observe:
                observe(loader.pruning, logits, x)
            return logits

        return trained(loader, lookahead(loader) if framework == "one batch ahead" else loader, step)

    with pytest.raises(ps.BindingError) as caught:
        run()
    if framework == "a plain loop":
        assert 'labels still hold (normalisation, augmentation on the GPU), give attach(..., inputs_changed="augm' in (
            str(caught.value)
        )
        check(run(inputs_changed="augmented"), expected)
        check(run(lambda pruning, logits, x: pruning.observe(logits)), expected)
    else:
        assert "augmented" not in str(caught.value)
        with pytest.raises(
            ps.BindingError, match=r"leave it out, attach\(loader, None, \.\.\.\), .*observe\(logits, inputs\)"
        ):
            run(inputs_changed="augmented")
        with pytest.raises(
            ps.BindingError, match=r"call observe\(logits, inputs\) with the inputs as the loader gave them"
        ):
            run(lambda pruning, logits, x: pruning.observe(logits))
    assert "observe(logits, inputs)" in str(caught.value)
    check(run(lambda pruning, logits, x: pruning.observe(logits, x)), expected)
    plain = DataLoader([((X[i] - 0.5) / 0.25, Y[i]) for i in range(N)], batch_size=BATCH)  # type: ignore[arg-type]
    check(run(rescore=plain, input_fn=lambda batch: batch[0]), expected)


def test_a_batch_beside_unlabelled_inputs() -> None:
    def run(observe: bool, **options: Any) -> Any:
        net = new_model()
        loader = ps.attach(
            loader_of(lambda i: (X[i], Y[i])), None if observe else net, score_epochs=1, epoch_length="full", **options
        )

        def step(x: Tensor, y: Tensor) -> Tensor:
            logits = net(torch.cat([x, torch.randn(2 * BATCH, 5)]))[: len(x)]
            if observe:
                loader.pruning.observe(logits, x)
            return logits

        return trained(loader, loader, step)

    for options in ({}, {"inputs_changed": "augmented"}):
        with pytest.raises(
            ps.BindingError, match=r"FixMatch\), attach\(loader, None, \.\.\.\), .*observe\(logits, inputs\)"
        ):
            run(False, **options)
    check(run(True))


def test_a_forward_on_what_is_taken_for_the_targets() -> None:
    def run(**options: Any) -> Any:
        return scored(
            lambda i: (f"path/{i}", X[i], {"label": Y[i]}), second, lambda batch: batch[2]["label"], **options
        )

    with pytest.raises(ps.UnsupportedError, match=r"give target_fn=, a function from the batch to them"):
        run()
    check(run(target_fn=lambda batch: batch[2]["label"]))


def test_a_batch_without_any_tensor_to_compare() -> None:
    def run(**options: Any) -> Any:
        return scored(
            lambda i: (X[i].numpy(), Y[i]),
            lambda net, batch: net(torch.as_tensor(batch[0])),
            collate=lambda samples: (np.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])),
            **options,
        )

    with pytest.raises(ps.BindingError, match=r'No tensors were found .*inputs_changed="augmented"'):
        run()
    check(run(inputs_changed="augmented"))


def test_targets_that_are_not_one_for_each_row() -> None:
    def run(**options: Any) -> Any:
        return scored(
            lambda i: {"x": X[i], "target": X[i, :1].long(), "class": Y[i]},
            lambda net, batch: net(batch["x"]),
            lambda batch: batch["class"],
            lambda samples: {
                name: (torch.cat if name == "target" else torch.stack)(
                    [
                        part
                        for sample in samples
                        for part in ([sample[name], sample[name]] if name == "target" else [sample[name]])
                    ]
                )
                for name in samples[0]
            },
            **options,
        )

    with pytest.raises(ps.BindingError, match=r"8 rows, 8 logits, 16 targets.*target_fn=, a function from the batch"):
        run()
    check(run(target_fn=lambda batch: batch["class"]))


def cutmix(samples: list[Any]) -> Any:
    x, y = default_collate(samples)
    return 0.7 * x + 0.3 * x.flip(0), (y, y.flip(0), 0.7)


def mixed(samples: list[Any]) -> Any:
    x, y = default_collate(samples)
    return 0.7 * x + 0.3 * x.flip(0), y, y.flip(0), 0.7


def softened(samples: list[Any]) -> Any:
    x, y = default_collate(samples)
    soft = torch.eye(CLASSES)[y]
    return 0.7 * x + 0.3 * x.flip(0), 0.7 * soft + 0.3 * soft.flip(0)


@pytest.mark.parametrize("collate", [cutmix, mixed, softened])
def test_batches_that_the_collate_function_mixes(collate: Any) -> None:
    def run(**options: Any) -> Any:
        return scored(
            lambda i: (X[i], Y[i]),
            labels=lambda batch: batch[1][0] if collate is cutmix else batch[1],
            collate=collate,
            **options,
        )

    with pytest.raises(ps.PruneSamplerError, match=r"rescore=plain_loader") as caught:
        run()
    assert len(str(caught.value)) < 700
    plain_loader = DataLoader([(X[i], Y[i]) for i in range(N)], batch_size=BATCH)  # type: ignore[arg-type]
    check(run(rescore=plain_loader))


def test_a_batch_that_is_an_object() -> None:
    def collate(samples: list[Any]) -> Any:
        x, y = default_collate(samples)
        return SimpleNamespace(x=x, y=y)

    def run(**options: Any) -> Any:
        return scored(
            lambda i: (X[i], Y[i]),
            lambda net, batch: net(batch.x),
            lambda batch: batch.y,
            collate,
            target_fn=lambda batch: batch.y,
            **options,
        )

    check(run())
    check(
        ps.score(
            new_model(),
            loader_of(lambda i: (X[i], Y[i]), collate),
            progress=False,
            target_fn=lambda batch: batch.y,
            input_fn=lambda batch: batch.x,
        )
    )


@pytest.mark.parametrize("attached", [False, True])
def test_a_model_that_is_called_past_its_hooks(attached: bool) -> None:
    net = new_model()
    loader = ps.attach(
        loader_of(lambda i: (X[i], Y[i])), net if attached else None, score_epochs=1, epoch_length="full"
    )

    def step(x: Tensor, y: Tensor) -> Tensor:
        logits = net.forward(x)
        loader.pruning.observe(logits, x)
        return logits

    check(trained(loader, loader, step))


def test_logits_that_are_given_once_too_often() -> None:
    net = new_model()
    for twice in (True, False):
        loader = ps.attach(
            loader_of(lambda i: (X[i], Y[i])), net if twice else None, score_epochs=1, epoch_length="full"
        )

        def step(x: Tensor, y: Tensor, loader: Any = loader) -> Tensor:
            logits = net(x)
            loader.pruning.observe(logits)
            return logits

        if twice:
            with pytest.raises(ps.BindingError, match=r"it is not needed, or attach\(loader, None, \.\.\.\)"):
                trained(loader, loader, step)
            loader.pruning.detach()
        else:
            check(trained(loader, loader, step))


def test_two_forwards_of_an_augmented_batch() -> None:
    def run(observe: bool, **options: Any) -> Any:
        net = new_model()
        loader = ps.attach(
            loader_of(lambda i: (X[i], Y[i])), None if observe else net, score_epochs=1, epoch_length="full", **options
        )

        def step(x: Tensor, y: Tensor) -> Tensor:
            logits = normalised(net, x)
            net(x + 1)
            if observe:
                loader.pruning.observe(logits, x)
            return logits

        return trained(loader, loader, step)

    with pytest.raises(ps.BindingError, match=r"leave inputs_changed= out, attach\(loader, None, \.\.\.\)"):
        run(False, inputs_changed="augmented")
    check(run(True), normalised(new_model(), X))


def test_a_pass_inside_a_pass() -> None:
    for cured in (False, True):
        net = new_model()
        loader = ps.attach(loader_of(lambda i: (X[i], Y[i])), net, score_epochs=1, epoch_length="full")

        def step(x: Tensor, y: Tensor, loader: Any = loader, net: Any = net, cured: bool = cured) -> Tensor:
            with loader.pruning.paused() if cured else nullcontext():
                for inner, _ in loader:
                    net(inner)
                    break
            return net(x)

        if cured:
            check(trained(loader, loader, step))
        else:
            with pytest.raises(ps.BindingError, match=r"loader\.pruning\.paused\(\) around that pass"):
                trained(loader, loader, step)
