from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prunesampler.selection.prototypes import default_clusters
from prunesampler.selection.select import select
from prunesampler.tables.score_table import ScoreTable
from tests.helpers import plain_geometry as plain


def test_far_or_near_by_the_cosine_to_the_centre_of_the_cluster() -> None:
    features, label = plain.blobs(300, 16, of=5, spread=0.2)
    table = ScoreTable({"el2n": np.zeros(300)}, labels=label)
    # The five clusters are the five classes, whose centres are their mean directions.
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    centres = np.stack([unit[label == each].sum(0) for each in range(5)])
    cosine = (unit * (centres / np.linalg.norm(centres, axis=1, keepdims=True))[label]).sum(1)
    order = np.argsort(cosine)
    far = select(table, 40, method="prototypes", features=features).rows
    assert far.tolist() == sorted(order[:40].tolist())
    near = select(table, 40, method="prototypes", features=features, method_options={"prefer": "near"}).rows
    assert near.tolist() == sorted(order[-40:].tolist())
    one = select(features=features, keep=40, method="prototypes", method_options={"clusters": 1}).rows
    mean = unit.sum(0)
    assert one.tolist() == sorted(np.argsort(unit @ mean)[:40].tolist())


@pytest.mark.parametrize(
    ("labels", "clusters"), [(None, 100), (np.array([-1, -1]), 100), (np.array([3, -1, 0, 3]), 2)], ids=[0, 1, 2]
)
def test_as_many_clusters_as_classes(labels: Any, clusters: int) -> None:
    class Candidates:
        pass

    candidates: Any = Candidates()
    candidates.labels = labels
    assert default_clusters(candidates) == clusters
