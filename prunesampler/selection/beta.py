"""Beta sampling (Cho et al. 2025, "Lightweight Dataset Pruning without Full Training")."""

from __future__ import annotations

from typing import Any

import numpy as np

from prunesampler.errors import ArgumentError
from prunesampler.selection.candidates import Arrays
from prunesampler.tables.columns import Int64s

CONFIDENCE = "confidence"
_TOTAL, _ANCHORS, _LEAST = 16.0, 10, 1e-6


def beta(candidates: Arrays, budget: int, rng: Any, *, confidence: str = CONFIDENCE, c: float = 4.0) -> Int64s:
    """Rows drawn in proportion to score · Beta(p; α, β), towards easier rows the fewer are kept.

    ``p`` is the mean probability of the label, the score named ``confidence``; with the share r of rows that go and
    the mean μ of ``p`` over the ten rows of the highest score, β = 15 (1 − μ)(1 − r^c) and α = 16 − β, as the authors'
    code has it. The larger ``c`` (4 for CIFAR, 11 for ImageNet), the later the turn to easy rows. The draw is without
    replacement, each time in proportion to the weights that are left.
    """
    score, p = candidates.hardness.astype(np.float64), candidates.columns[confidence].astype(np.float64)
    if score.min() < 0:
        raise ArgumentError("by", "must be a score of at least 0, such as dual, to draw in proportion to", score.min())
    if not ((p >= 0) & (p <= 1)).all():
        rule = f"must be a probability in [0, 1] of each row that has a score, in the column {confidence!r}"
        raise ArgumentError("confidence", rule, p[~((p >= 0) & (p <= 1))][0])
    hardest = np.lexsort((candidates.ties, -score))[:_ANCHORS]
    gone = 1 - budget / len(score)
    b = (_TOTAL - 1) * (1 - p[hardest].mean()) * (1 - gone**c)
    a, inner = _TOTAL - b, p.clip(_LEAST, 1 - _LEAST)
    with np.errstate(divide="ignore"):
        weight = (a - 1) * np.log(inner) + (b - 1) * np.log1p(-inner) + np.log(score)
    # The rows of the lowest exponential times at rates of the weights are such a draw (Efraimidis and Spirakis 2006).
    uniform = (candidates.ties.astype(np.float64) + 0.5) / 2**64
    return np.lexsort((candidates.ties, np.log(-np.log(uniform.clip(max=1 - 2**-53))) - weight))[:budget]
