"""Scores against their published definitions in float64, number by number."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from prunesampler.errors import ArgumentError, UnsupportedError
from prunesampler.scores import logits as scores
from prunesampler.scores.registry import compute

SCORES = ("el2n", "loss", "margin", "entropy")


@pytest.fixture(autouse=True, scope="module", params=[32, 0], ids=["few classes", "many classes"])
def few_classes(request: pytest.FixtureRequest) -> Iterator[None]:
    """What is computed for few and for many classes, both at sizes that plain Python can follow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunesampler.scores.logits._FEW_CLASSES", request.param)
        yield


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(z - top) for z in logits]
    return [w / math.fsum(weights) for w in weights]


def expected(name: str, logits: list[float], y: int) -> float:
    p = softmax(logits)
    others = p[:y] + p[y + 1 :]
    if name == "el2n":
        return math.sqrt(math.fsum([q * q for q in others] + [math.fsum(others) ** 2]))
    if name == "loss":
        return math.log1p(math.fsum(math.exp(z - logits[y]) for j, z in enumerate(logits) if j != y))
    if name == "margin":
        return logits[y] - max(z for j, z in enumerate(logits) if j != y)
    best = max(range(len(p)), key=p.__getitem__)
    rest = p[:best] + p[best + 1 :]
    return math.fsum([-q * math.log(q) for q in rest if q] + [-p[best] * math.log1p(-math.fsum(rest))])


def plain(name: str, logits: Tensor, targets: Tensor) -> Tensor:
    """The textbook formulas, in float64."""
    p, hot = logits.softmax(1), one_hot(targets, logits.shape[1])
    if name == "el2n":
        return (p - hot).norm(dim=1)
    if name == "loss":
        return cross_entropy(logits, targets, reduction="none")
    if name == "margin":
        return (logits * hot).sum(1) - logits.masked_fill(hot.bool(), -math.inf).amax(1)
    return torch.special.entr(p).sum(1)


LOGITS = st.integers(2, 6).flatmap(
    lambda classes: st.lists(
        st.tuples(
            st.lists(st.floats(-30, 30, width=32), min_size=classes, max_size=classes), st.integers(0, classes - 1)
        ),
        min_size=1,
        max_size=5,
    )
)


@given(LOGITS)
@settings(max_examples=60)
@pytest.mark.parametrize("name", SCORES)
def test_scores_follow_their_definitions(name: str, batch: list[tuple[list[float], int]]) -> None:
    logits, targets = torch.tensor([z for z, _ in batch]), torch.tensor([y for _, y in batch])
    found = getattr(scores, name)(logits, targets)
    assert found.dtype == torch.float32
    assert found.shape == targets.shape
    for value, (z, y) in zip(found.tolist(), batch, strict=True):
        # a difference of two float32 logits of size 30 carries 2e-6
        assert value == pytest.approx(expected(name, z, y), rel=2e-5, abs=2e-6 if name == "margin" else 1e-30)


@given(LOGITS)
@settings(max_examples=60)
def test_correct_is_what_argmax_says(batch: list[tuple[list[float], int]]) -> None:
    found = scores.correct(torch.tensor([z for z, _ in batch]), torch.tensor([y for _, y in batch]))
    assert found.tolist() == [z.index(max(z)) == y for z, y in batch]


def test_of_equal_logits_the_first_one_is_the_prediction() -> None:
    for logits in itertools.product([0.0, 1.0, -math.inf], repeat=4):
        if max(logits) == -math.inf:
            continue  # no prediction
        row = torch.tensor([logits] * 4)
        assert scores.correct(row, torch.arange(4)).tolist() == (row.argmax(1) == torch.arange(4)).tolist()


@pytest.mark.parametrize("classes", [2, 3, 40])
@pytest.mark.parametrize("high", [-math.inf, 0.0, 1.0])
def test_correct_is_what_argmax_says_of_classes_that_are_masked(classes: int, high: float) -> None:
    logits = torch.full((classes, classes), -math.inf)
    logits[:, classes // 2 :] = high
    targets = torch.arange(classes)
    assert scores.correct(logits, targets).tolist() == (logits.argmax(1) == targets).tolist()


@pytest.mark.parametrize("gap", [10.0, 17.0, 40.0, 60.0, 80.0])
@pytest.mark.parametrize("name", ["el2n", "loss", "entropy"])
def test_confident_samples_keep_their_relative_precision(name: str, gap: float) -> None:
    z = [gap, 0.0, -0.5, -1.0]
    found = float(getattr(scores, name)(torch.tensor([z]), torch.tensor([0])))
    assert found == pytest.approx(expected(name, z, 0), rel=1e-5, abs=0)
    assert found > 0


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("shift", [0.0, 300.0, -1000.0])
def test_scores_are_those_of_float64_to_a_millionth(name: str, shift: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for classes, spread in ((10, 0.1), (10, 3.0), (10, 12.0), (1000, 3.0), (1000, 12.0)):
        logits = torch.randn(64, classes, generator=generator) * spread + shift
        targets = torch.where(torch.arange(64) % 2 == 0, logits.argmax(1), torch.arange(64) % classes)
        found = getattr(scores, name)(logits, targets)
        torch.testing.assert_close(found.double(), plain(name, logits.double(), targets), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("gap", [50.0, 500.0, 5e4])
def test_very_wrong_samples_are_finite(gap: float) -> None:
    logits, y = torch.tensor([[0.0, gap, 0.0]]), torch.tensor([0])
    assert float(scores.el2n(logits, y)) == pytest.approx(math.sqrt(2), rel=1e-6)
    assert float(scores.loss(logits, y)) == pytest.approx(gap, rel=1e-6)
    assert float(scores.entropy(logits, y)) == pytest.approx(0, abs=1e-15)
    assert float(scores.el2n(logits, torch.tensor([1]))) < 1e-20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_scored_in_float32_or_better(dtype: torch.dtype) -> None:
    logits = torch.randn(16, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    targets = torch.arange(16) % 5
    for name in SCORES:
        found = compute((name,), logits, targets)[name]
        assert found.dtype == torch.float32
        wanted = [expected(name, z, y) for z, y in zip(logits.double().tolist(), targets.tolist(), strict=True)]
        assert found.tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    near = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)
    assert scores.correct(near, torch.tensor([1])).tolist() == [True]


def test_targets_out_of_range_have_no_score() -> None:
    logits, targets = torch.randn(5, 3), torch.tensor([-1, 0, 3, 2, -100])
    good = [False, True, False, True, False]
    for name in SCORES:
        found = compute((name,), logits, targets)[name]
        assert found.isfinite().tolist() == good
        assert torch.equal(found[good], compute((name,), logits[good], targets[good])[name])
    certain = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
    assert scores.correct(certain, torch.tensor([-1, 2])).tolist() == [False, False]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 1])
def test_logits_that_are_not_finite_have_no_score(bad: float, at: int) -> None:
    logits = torch.zeros(2, 3)
    logits[0, at] = bad
    for name in ("el2n", "loss", "entropy"):
        assert compute((name,), logits, torch.tensor([0, 0]))[name].isfinite().tolist() == [False, True]
    if math.isnan(bad):
        assert not scores.correct(logits, torch.tensor([0, 1])).any()


def test_masked_classes_have_no_part() -> None:
    logits, y = torch.tensor([[0.5, -1.0, 2.0]]), torch.tensor([0])
    masked = torch.cat([logits, torch.tensor([[-math.inf]])], 1)
    for name in SCORES:
        assert torch.equal(compute((name,), masked, y)[name], compute((name,), logits, y)[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_scores_at_once_equal_each_alone(dtype: torch.dtype) -> None:
    logits, targets = torch.randn(32, 7).to(dtype), torch.arange(32) % 7
    names = (*SCORES, "correct")
    together = compute(names, logits, targets)
    assert list(together) == list(names)
    for name in names:
        assert torch.equal(together[name], getattr(scores, name)(logits, targets))


def test_inputs_stay_as_they_are() -> None:
    logits, targets = torch.randn(8, 4), torch.arange(8) % 4
    before = logits.clone(), targets.clone()
    compute((*SCORES, "correct"), logits, targets)
    assert torch.equal(logits, before[0])
    assert torch.equal(targets, before[1])


@pytest.mark.parametrize("targets", [torch.zeros(4, dtype=torch.int32), torch.zeros(4, dtype=torch.uint8)])
def test_any_integers_are_class_indices(targets: Tensor) -> None:
    logits = torch.randn(4, 3)
    assert torch.equal(scores.el2n(logits, targets), scores.el2n(logits, targets.long()))


@pytest.mark.parametrize(
    ("logits", "targets", "error", "match"),
    [
        (torch.zeros(4), torch.zeros(4).long(), UnsupportedError, r"logits.*score_fn"),
        (torch.zeros(4, 3, 2), torch.zeros(4).long(), UnsupportedError, r"logits.*score_fn"),
        (torch.zeros(4, 1), torch.zeros(4).long(), UnsupportedError, r"logits.*score_fn"),
        (torch.zeros(4, 3).long(), torch.zeros(4).long(), UnsupportedError, r"logits.*score_fn"),
        (torch.zeros(4, 3), torch.zeros(4, 3), UnsupportedError, r"targets.*score_fn"),
        (torch.zeros(4, 3), torch.zeros(4), UnsupportedError, r"targets.*give targets\.long\(\)"),
        (torch.zeros(4, 3), torch.full((4,), 0.5), UnsupportedError, r"targets.*score_fn"),
        (torch.zeros(4, 3), torch.zeros(4, 3).long(), UnsupportedError, r"targets.*score_fn"),
        (torch.zeros(4, 3), torch.eye(3)[[0, 1, 2, 2]], UnsupportedError, r"targets.*give targets\.argmax\(1\)"),
        (torch.zeros(4, 3), torch.zeros(4, 5, 5).long(), UnsupportedError, r"targets.*score_fn"),
        (torch.zeros(4, 3), torch.zeros(4).bool(), UnsupportedError, r"targets.*give targets\.long\(\)"),
        (torch.zeros(4, 3), torch.zeros(4, 1).long(), UnsupportedError, r"targets.*give targets\.squeeze\(1\)"),
        (torch.zeros(4, 3), torch.zeros(3).long(), ArgumentError, "targets must be 4, one per row of logits, got 3"),
    ],
)
def test_what_has_no_score_is_refused(logits: Tensor, targets: Tensor, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        scores.el2n(logits, targets)
