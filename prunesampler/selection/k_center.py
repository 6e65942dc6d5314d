"""K-center greedy (Sener and Savarese 2018, "Active Learning for Convolutional Neural Networks")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from prunesampler.errors import ArgumentError
from prunesampler.selection.candidates import Arrays
from prunesampler.selection.features import lowest
from prunesampler.tables.columns import row_numbers


def k_center(candidates: Arrays, budget: int, rng: Any, *, start: Sequence[int] = ()) -> list[int]:
    """Algorithm 1: again and again the row that is farthest from all chosen ones; one running minimum, O(E) memory.

    ``start`` are rows that are centres from the beginning. Those among the candidates are kept first, the others only
    cover what is near them. Without any, the first centre is drawn by the seed.
    """
    features = candidates.features
    assert features is not None
    given = np.unique(row_numbers("start", start, features.num_rows)) if len(start) else np.empty(0, np.int64)
    chosen = np.flatnonzero(np.isin(candidates.rows, given)).tolist()
    if len(chosen) > budget:
        raise ArgumentError("start", f"must be at most the {budget} rows that are kept", f"{len(chosen)} of them")
    nearest = torch.full((len(features),), torch.inf, device=features.device)
    for centre in features.only(given).at(slice(None)):
        torch.minimum(nearest, features.distances(centre), out=nearest)
    if not len(given):
        chosen.append(int(candidates.ties.argmin()))
        nearest = features.distances(features.at(chosen)[0])
    nearest[chosen] = -1
    while len(chosen) < budget:
        chosen.append(lowest(-nearest, candidates.ties))
        torch.minimum(nearest, features.distances(features.at(chosen[-1:])[0]), out=nearest)
        nearest[chosen[-1]] = -1
    return chosen
