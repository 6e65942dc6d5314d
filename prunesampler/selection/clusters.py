"""Spherical k-means (Dhillon and Modha 2001): clusters of directions, by cosine similarity."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prunesampler.selection.features import Features
from prunesampler.tables.columns import Int64s

_BLOCK, _SAMPLE, _ROUNDS = 8192, 20_000, 50


class Clusters(NamedTuple):
    """Which cluster each row is in, and how near it is to the cluster's centre."""

    of: Int64s  # (E,) in [0, K)
    similarity: npt.NDArray[np.float32]  # (E,) cosine of the angle to the centre
    centres: Tensor  # (K, d) of length 1


def spherical_k_means(features: Features, clusters: int, rng: np.random.Generator) -> Clusters:
    """Rows in at most ``clusters`` clusters, until no row changes its own, or after 50 rounds.

    The first centres are drawn apart from one another as k-means++ does (Arthur and Vassilvitskii 2007), from at most
    20,000 rows or twice as many as there are clusters. A cluster that has become empty takes the row that is farthest
    from its centre. O(E) memory beside the features, rounds of E · K · d operations.
    """
    directions = features.directions()
    centres = _first_centres(directions, min(clusters, len(features)), rng)
    before: Tensor | None = None
    for _ in range(_ROUNDS):
        similarity, of = nearest(directions, centres)
        if before is not None and torch.equal(of, before):
            break
        before = of
        sums = torch.zeros(centres.shape, dtype=torch.float64, device=centres.device)
        for start, block in zip(range(0, len(directions), _BLOCK), directions.blocks(_BLOCK), strict=True):
            sums.index_add_(0, of[start : start + _BLOCK], block.double())
        empty = (torch.bincount(of, minlength=len(centres)) == 0).nonzero()[:, 0]
        if len(empty):
            far = similarity.argsort()[: len(empty)]
            far = far[similarity[far] < 1 - 1e-6]  # else there are fewer directions than clusters
            sums[empty[: len(far)]] = directions.at(far).double()
        lengths = sums.norm(dim=1, keepdim=True)
        centres = torch.where(lengths > 1e-9, sums / lengths, centres.double()).float()  # opposite rows cancel out
    else:
        similarity, of = nearest(directions, centres)
    return Clusters(of.cpu().numpy(), similarity.cpu().numpy(), centres)


def nearest(directions: Features, centres: Tensor) -> tuple[Tensor, Tensor]:
    """(E,) the highest cosine of each row with a centre, and which centre that is."""
    found = [torch.max(block @ centres.T, dim=1) for block in directions.blocks(_BLOCK)]
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def _first_centres(directions: Features, clusters: int, rng: np.random.Generator) -> Tensor:
    size = min(len(directions), max(_SAMPLE, 2 * clusters))
    sample = directions.at(np.sort(rng.choice(len(directions), size, replace=False)))
    chosen = [int(rng.integers(size))]
    apart = 2 - 2 * (sample @ sample[chosen[0]])  # squared distances
    for _ in range(clusters - 1):
        weights = apart.clamp(min=0).double().cpu().numpy()
        weights[chosen] = 0
        total = weights.sum()
        if not total > 1e-9 * size:  # all others lie on a centre
            weights = np.ones(size)
            weights[chosen] = 0
            total = weights.sum()
        chosen.append(int(rng.choice(size, p=weights / total)))
        torch.minimum(apart, 2 - 2 * (sample @ sample[chosen[-1]]), out=apart)
    return sample[chosen]
