"""Prototypes (Sorscher et al. 2022, "Beyond neural scaling laws: beating power law scaling via data pruning")."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from prunesampler.selection.candidates import Arrays
from prunesampler.selection.clusters import spherical_k_means
from prunesampler.tables.columns import Int64s


def prototypes(
    candidates: Arrays,
    budget: int,
    rng: np.random.Generator,
    *,
    clusters: int | None = None,
    prefer: Literal["far", "near"] = "far",
) -> Int64s:
    """The rows farthest from the centre of their k-means cluster (hard), or the nearest ones, by cosine distance.

    Where data is plentiful the far ones are worth more, where it is not the near ones (figure 1 of the paper).
    """
    assert candidates.features is not None
    found = spherical_k_means(candidates.features, clusters or default_clusters(candidates), rng)
    return np.lexsort((candidates.ties, found.similarity if prefer == "far" else -found.similarity))[:budget]


def default_clusters(candidates: Arrays) -> int:
    """As many as there are classes, as in the paper; 100 where there are no labels."""
    labels: Any = candidates.labels
    return 100 if labels is None or (labels < 0).all() else len(np.unique(labels[labels >= 0]))
