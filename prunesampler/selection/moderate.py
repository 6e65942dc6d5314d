"""Moderate coreset (Xia et al. 2023, "Moderate Coreset: A Universal Method of Data Selection for Real-world Data")."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunesampler.selection.candidates import Arrays
from prunesampler.selection.features import Features
from prunesampler.tables.columns import Int64s

_COLUMNS = 64  # that are held at once, for medians


def moderate(candidates: Arrays, budget: int, rng: Any) -> Int64s:
    """The middle of all rows in the order of their distance to the median of their own class.

    The median is that of each feature by itself. Rows without a label are a class of their own.
    """
    features, labels = candidates.features, candidates.labels
    assert features is not None
    labels = np.zeros(len(features), np.int32) if labels is None else labels
    distances = np.empty(len(features), np.float32)
    for label in np.unique(labels):
        mask = labels == label
        members = features.only(candidates.rows[mask])
        distances[mask] = members.distances(median(members)).cpu().numpy()
    order = np.lexsort((candidates.ties, distances))
    first = (len(order) - budget) // 2
    return order[first : first + budget]


def median(features: Features) -> Tensor:
    """(d,) the median of each feature; of an even number of rows the mean of the two in the middle."""
    found = []
    for start in range(0, features.width, _COLUMNS):
        columns = torch.cat([block[:, start : start + _COLUMNS] for block in features.blocks()])
        found.append(np.median(columns.cpu().numpy(), axis=0))
    return torch.from_numpy(np.concatenate(found))
