from __future__ import annotations

import numpy as np
import pytest

from prunesampler.selection.features import Features
from prunesampler.selection.moderate import median
from prunesampler.selection.radix_select import tie_keys
from prunesampler.selection.select import select
from prunesampler.tables.score_table import ScoreTable
from tests.helpers import plain_geometry as plain


@pytest.mark.parametrize("budget", [1, 30, 31, 91])
def test_the_middle_by_distance_to_the_median_of_the_own_class(budget: int) -> None:
    features, label = plain.blobs(91)
    label[:3] = [-1, -1, 7]  # two rows without a label, and a class of one row
    ties = tie_keys(0, np.arange(91))
    table = ScoreTable({"el2n": np.full(91, np.nan)}, labels=label)  # scores are not read
    found = select(table, budget / 91, method="moderate", features=features).rows.tolist()
    assert found == sorted(plain.moderate(features, label, budget, ties))
    alone = select(features=features, keep=budget / 91, method="moderate").rows.tolist()
    assert alone == sorted(plain.moderate(features, np.zeros(91), budget, ties))


def test_the_median_of_many_columns() -> None:
    features = np.random.default_rng(0).standard_normal((1500, 130)).astype(np.float32)
    np.testing.assert_array_equal(median(Features(features)), np.median(features, axis=0))
