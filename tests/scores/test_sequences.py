"""Scores of token sequences against the definition, in double precision and whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot
from torch.utils._python_dispatch import TorchDispatchMode

from prunesampler.errors import ArgumentError, UnsupportedError
from prunesampler.scores.registry import compute
from prunesampler.scores.sequences import sequence_scores, token_scores

VOCABULARY = 50


def batch(*shape: int, scale: float = 3.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, VOCABULARY, generator=generator) * scale
    return logits, torch.randint(VOCABULARY, shape, generator=generator)


@pytest.mark.parametrize("chunk", [1, 7, 49, 50, 4096])
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_a_token_has_the_plain_formula(chunk: int, scale: float) -> None:
    logits, labels = batch(4, 6, scale=scale)
    found = token_scores(logits, labels, chunk=chunk)
    p = logits.double().softmax(-1)
    right = p.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    expected = (p.square().sum(-1) - right.square() + (1 - right).square()).clamp(min=0).sqrt()
    np.testing.assert_allclose(found["el2n"], expected, rtol=0, atol=1e-6)
    assert (expected - (p - one_hot(labels, VOCABULARY)).norm(dim=-1)).abs().max() < 1e-7
    loss = cross_entropy(logits.double().flatten(0, 1), labels.flatten(), reduction="none").view(4, 6)
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-6, atol=1e-6)


def test_a_confident_token_keeps_its_digits() -> None:
    logits = torch.zeros(3, VOCABULARY)
    logits[:, 7] = torch.tensor([20.0, 60.0, 200.0])
    labels = torch.full((3,), 7)
    expected = compute(("el2n", "loss"), logits, labels)
    for name, values in token_scores(logits, labels, chunk=8).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-5)
    assert token_scores(logits, labels)["el2n"][0] > 0


def test_half_precision_is_raised_before_anything_is_computed() -> None:
    logits, labels = batch(2, 5)
    found = token_scores(logits.bfloat16(), labels, chunk=9)
    expected = token_scores(logits.bfloat16().float(), labels)
    assert found["el2n"].dtype == torch.float32
    torch.testing.assert_close(found, expected)
    assert token_scores(logits.double(), labels)["el2n"].dtype == torch.float64


@pytest.mark.parametrize("chunk", [1, 3, 50])
def test_logits_of_minus_infinity_are_impossible_tokens(chunk: int) -> None:
    logits, labels = batch(6)
    logits[:, :3] = -torch.inf
    labels.clamp_(min=3)
    torch.testing.assert_close(token_scores(logits, labels, chunk=chunk), token_scores(logits[:, 3:], labels - 3))
    logits[:, 4:] = -torch.inf
    certain = token_scores(logits, torch.full((6,), 3), chunk=chunk)
    assert certain["el2n"].eq(0).all()
    assert certain["loss"].eq(0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_has_no_score(value: float) -> None:
    logits, labels = batch(4)
    labels[:] = torch.tensor([3, 4, VOCABULARY, -1])
    logits[0, 9] = logits[1, 4] = value
    for values in token_scores(logits, labels, chunk=6).values():
        assert values.isnan().all()


@pytest.mark.parametrize("shift", [0, 1])
def test_a_sequence_has_the_mean_over_its_labelled_tokens(shift: int) -> None:
    logits, labels = batch(5, 8)
    labels[0, 5:] = -100
    labels[1, :4] = -100
    labels[2, 3] = -100
    labels[3, 1:] = -100  # its one label is the first, which nothing predicts
    found = sequence_scores(logits, labels, shift=shift, chunk=7)
    for i in range(5):
        errors, losses = [], []
        for position in range(8 - shift):
            label = int(labels[i, position + shift])
            if label == -100:
                continue
            p = logits[i, position].double().softmax(0).tolist()
            errors.append(sum((value - (k == label)) ** 2 for k, value in enumerate(p)) ** 0.5)
            losses.append(-np.log(p[label]))
        expected = (np.mean(errors), np.mean(losses)) if errors else (np.nan, np.nan)
        np.testing.assert_allclose((found["el2n"][i], found["loss"][i]), expected, rtol=1e-5, atol=1e-6)
    assert found["el2n"].isnan().tolist() == [False, False, False, shift == 1, False]


def test_the_loss_is_that_of_the_model() -> None:
    logits, labels = batch(1, 9)
    labels[0, 4:6] = -100
    found = sequence_scores(logits, labels)["loss"][0]
    torch.testing.assert_close(found, cross_entropy(logits[0, :-1], labels[0, 1:]))


class Largest(TorchDispatchMode):
    """Remembers how many entries the largest result that is not a view had."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not result._is_view() and result.untyped_storage().nbytes():
            storages = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
            if result.untyped_storage().data_ptr() not in storages:
                self.entries = max(self.entries, result.untyped_storage().nbytes() // result.element_size())
        return result


def test_no_softmax_of_the_batch_is_held() -> None:
    logits, labels = batch(4, 8)
    with Largest() as largest:
        sequence_scores(logits, labels, chunk=5)
    assert largest.entries == 4 * 7 * 5
    with Largest() as largest:
        sequence_scores(logits, labels, chunk=VOCABULARY)
    assert largest.entries == 4 * 7 * VOCABULARY, "the measure sees nothing"


def test_the_logits_are_left_alone_and_no_graph_is_kept() -> None:
    logits, labels = batch(3, 4)
    before = logits.clone()
    values = sequence_scores(logits.requires_grad_(), labels)["el2n"]
    assert not values.requires_grad
    assert torch.equal(logits, before)


def test_refusals() -> None:
    logits, labels = batch(3, 4)
    for wrong in (0, True, 2.0):
        with pytest.raises(ArgumentError, match="chunk"):
            token_scores(logits, labels, chunk=wrong)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="shift"):
        sequence_scores(logits, labels, shift=2)
    with pytest.raises(UnsupportedError, match="one for each token"):
        token_scores(logits, labels[:, 1:])
    with pytest.raises(UnsupportedError, match="indices"):
        token_scores(logits, labels.float())
    with pytest.raises(UnsupportedError, match="floats"):
        token_scores(logits.long(), labels)
    with pytest.raises(UnsupportedError, match="tokens, vocabulary"):
        sequence_scores(logits[0], labels[0])
