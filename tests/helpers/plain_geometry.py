"""Geometric selection as it is defined, row by row in NumPy and float64: what the methods must agree with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Rows = np.ndarray[Any, Any]


def blobs(rows: int = 120, width: int = 6, seed: int = 0, *, of: int = 4, spread: float = 0.3) -> tuple[Rows, Rows]:
    """Features around ``of`` centres, float32, and which one each is near to."""
    generator = np.random.default_rng(seed)
    label = generator.integers(0, of, rows)
    centres = generator.standard_normal((of, width)) * 2
    return (centres[label] + spread * generator.standard_normal((rows, width))).astype(np.float32), label


def herding(features: Rows, budget: int, ties: Rows) -> list[int]:
    """Of every row left the mean with it, in full."""
    features, chosen = features.astype(np.float64), list[int]()
    for _ in range(budget):
        left = [row for row in range(len(features)) if row not in chosen]
        apart = {row: np.linalg.norm(features.mean(0) - features[[*chosen, row]].mean(0)) for row in left}
        chosen.append(min(left, key=lambda row: (round(apart[row], 9), ties[row])))
    return chosen


def k_center(features: Rows, budget: int, ties: Rows, start: Sequence[int] = (), keep_start: bool = True) -> list[int]:
    """All distances of all rows to all centres, anew for each centre."""
    features = features.astype(np.float64)
    centres = list(start) or [int(np.argmin(ties))]
    chosen = [row for row in centres if keep_start]
    while len(chosen) < budget:
        apart = np.linalg.norm(features[:, None] - features[centres][None], axis=2).min(1)
        left = [row for row in range(len(features)) if row not in centres]
        chosen.append(min(left, key=lambda row: (-round(apart[row], 9), ties[row])))
        centres.append(chosen[-1])
    return chosen


def moderate(features: Rows, labels: Rows, budget: int, ties: Rows) -> list[int]:
    distance = [
        np.linalg.norm(row - np.median(features[labels == label], axis=0))
        for row, label in zip(features, labels, strict=True)
    ]
    order = sorted(range(len(features)), key=lambda row: (distance[row], ties[row]))
    skip = (len(order) - budget) // 2
    return order[skip : skip + budget]


def cosines(features: Rows) -> Rows:
    """(N, N) between all pairs."""
    unit = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return unit @ unit.T
