from __future__ import annotations

import numpy as np
import pytest

from prunesampler.selection.radix_select import tie_keys
from prunesampler.selection.select import select
from tests.helpers import plain_geometry as plain


@pytest.mark.parametrize("grid", [False, True], ids=["", "ties"])
def test_each_row_brings_the_mean_nearest_to_that_of_all(grid: bool) -> None:
    features = plain.blobs(64)[0]
    features = np.round(features).astype(np.float32)[:, :2] if grid else features  # a mean of 64 is exact
    for budget in (1, 2, 30, 64):
        found = select(features=features, keep=budget / 64, method="herding", seed=2).rows.tolist()
        assert found == sorted(plain.herding(features, budget, tie_keys(2, np.arange(64))))


def test_the_mean_of_few_rows_is_nearer_than_that_of_random_ones() -> None:
    features = plain.blobs(400)[0]

    def error(method: str) -> float:
        kept = features[select(features=features, keep=20, method=method).rows]
        return float(np.linalg.norm(kept.mean(0) - features.mean(0)))

    assert error("herding") < error("random") / 10
