"""Scores of token sequences from the logits and labels of their tokens, without a softmax of the whole batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prunesampler.errors import UnsupportedError, check_int

_CHUNK = 4096


@torch.no_grad()
def token_scores(logits: Tensor, labels: Tensor, *, chunk: int = _CHUNK) -> dict[str, Tensor]:
    """``"el2n"`` in [0, √2] and ``"loss"`` in nats of every token, of (..., V) floats and (...,) indices of V.

    (...,) float32 each (float64 for logits of it); NaN where the label is outside [0, V) or a logit is NaN or +inf.
    Over ``chunk`` entries of the vocabulary at a time two running sums are kept, of the other tokens' odds relative to
    the best of them and of their squares. EL2N² = Σ_{j≠y} p_j² + (1 − p_y)² (Paul et al. 2021) follows from these
    without cancellation.
    """
    check_int("chunk", chunk, 1)
    if not logits.is_floating_point() or logits.dim() < 1 or logits.shape[-1] < 2:
        raise UnsupportedError(f"logits must be floats (..., vocabulary), got {logits.dtype} {tuple(logits.shape)}")
    if labels.shape != logits.shape[:-1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise UnsupportedError(
            f"labels must be indices of shape {tuple(logits.shape[:-1])}, one for each token of the logits, got "
            f"{labels.dtype} {tuple(labels.shape)}"
        )
    size = logits.shape[-1]
    dtype = torch.promote_types(logits.dtype, torch.float32)
    labels = labels.to(logits.device, torch.int64, non_blocking=True)
    index = labels.clamp(0, size - 1)
    label = logits.gather(-1, index.unsqueeze(-1)).squeeze(-1).to(dtype)
    best = torch.full_like(label, torch.finfo(dtype).min)
    odds, squares = torch.zeros_like(label), torch.zeros_like(label)
    for start in range(0, size, chunk):
        others = logits[..., start : start + chunk].to(dtype, copy=True)
        width = others.shape[-1]
        here = (index - start).clamp(0, width - 1).unsqueeze(-1)
        inside = ((index >= start) & (index < start + width)).unsqueeze(-1)
        others.scatter_(-1, here, torch.where(inside, -torch.inf, others.gather(-1, here)))
        higher = torch.maximum(best, others.amax(-1))
        shrink = (best - higher).exp()
        best = higher
        others = others.sub_(best.unsqueeze(-1)).exp_()
        odds = odds * shrink + others.sum(-1)
        squares = squares * shrink.square() + others.square_().sum(-1)
    lead = best - label
    el2n = torch.hypot(squares.sqrt(), odds) / (odds + (-lead).exp())
    loss = F.softplus(lead + odds.log())
    # An infinite label would pass for perfect confidence.
    good = (index == labels) & label.isfinite()
    return {name: torch.where(good, value, torch.nan) for name, value in (("el2n", el2n), ("loss", loss))}


def sequence_scores(
    logits: Tensor, labels: Tensor, *, shift: int = 1, ignore_index: int = -100, chunk: int = _CHUNK
) -> dict[str, Tensor]:
    """Mean EL2N and mean loss over the tokens of each sequence that have a label: a ``score_fn`` for ``attach``.

    Args:
        logits: (B, L, V) floats of any precision: what a language model returns.
        labels: (B, L) indices of the vocabulary, ``ignore_index`` where a token does not count.
        shift: distance from a position to the token that it predicts: 1 in causal models, 0 in masked ones.
        ignore_index: the label of tokens that do not count.
        chunk: as in :func:`token_scores`.

    Returns:
        ``"el2n"`` and ``"loss"``, (B,) float32 (float64 for logits of it); NaN for a sequence without labels.

    Raises:
        UnsupportedError: logits or labels of another form.
        ArgumentError: an argument breaks its rule.

    >>> logits = torch.zeros(2, 3, 4)
    >>> sequence_scores(logits, torch.tensor([[0, 1, 2], [3, 3, -100]]))["loss"]
    tensor([1.3863, 1.3863])
    """
    check_int("shift", shift, 0, 1)
    if logits.dim() != 3 or labels.dim() != 2:
        raise UnsupportedError(
            "a language model's logits must be (batch, tokens, vocabulary) and its labels (batch, tokens), got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    logits, labels = logits[:, : logits.shape[1] - shift], labels[:, shift:].to(logits.device, non_blocking=True)
    counted = labels != ignore_index
    scores = token_scores(logits, labels, chunk=chunk)
    number = counted.sum(1)
    return {name: torch.where(counted, value, 0).sum(1) / number for name, value in scores.items()}
