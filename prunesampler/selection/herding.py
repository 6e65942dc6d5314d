"""Herding (Welling 2009, "Herding Dynamical Weights to Learn")."""

from __future__ import annotations

from typing import Any

import torch

from prunesampler.selection.candidates import Arrays
from prunesampler.selection.features import lowest


def herding(candidates: Arrays, budget: int, rng: Any) -> list[int]:
    """Again and again the row that brings the mean of the chosen ones nearest to the mean μ of all.

    Of n chosen rows with sum S that is the row x with the lowest ‖μ − (S + x)/(n + 1)‖, which is the one nearest to
    (n + 1)μ − S. (DeepCore takes the farthest one, the argmax.)
    """
    features = candidates.features
    assert features is not None
    mean = features.mean()
    missing = mean.clone()  # (n + 1)μ − S
    chosen: list[int] = []
    for _ in range(budget):
        distances = features.distances(missing)
        distances[chosen] = torch.inf
        chosen.append(lowest(distances, candidates.ties))
        missing += mean - features.at(chosen[-1:])[0]
    return chosen
