from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prunesampler.errors import ArgumentError
from prunesampler.selection.radix_select import tie_keys
from prunesampler.selection.select import Selection, select
from prunesampler.tables.score_table import ScoreTable
from tests.helpers import plain_geometry as plain


@pytest.mark.parametrize("grid", [False, True], ids=["", "ties"])
def test_each_centre_is_the_farthest_row(grid: bool) -> None:
    features = plain.blobs(90)[0]
    features = np.round(features).astype(np.float32)[:, :2] if grid else features
    ties = tie_keys(3, np.arange(90))
    for budget in (1, 2, 40, 90):
        found = select(features=features, keep=budget / 90, method="k_center", seed=3).rows.tolist()
        assert found == sorted(plain.k_center(features, budget, ties))


def test_it_starts_from_rows_that_are_given() -> None:
    features = plain.blobs(90)[0]
    ties = tie_keys(0, np.arange(90))
    found = select(features=features, keep=12, method="k_center", method_options={"start": [5, 80, 5]}).rows
    assert found.tolist() == sorted(plain.k_center(features, 12, ties, [5, 80]))
    # Rows that are no candidates cover what is near them, and are not kept.
    rest = np.setdiff1d(np.arange(90), [5, 80])
    found = select(features=features, keep=12, method="k_center", eligible=rest, method_options={"start": [5, 80]}).rows
    assert found.tolist() == sorted(plain.k_center(features, 12, ties, [5, 80], keep_start=False))


def test_each_class_by_itself() -> None:
    features, label = plain.blobs(90)
    label[0] = 9  # a class of one row
    table = ScoreTable({"el2n": np.zeros(90)}, labels=label)
    found = select(table, 0.5, method="k_center", features=features, class_balanced=True, min_per_class=1).rows
    for each in np.unique(label):
        rows = np.flatnonzero(label == each)
        kept = np.intersect1d(rows, found)
        expected = plain.k_center(features[rows], len(kept), tie_keys(0, rows))
        assert kept.tolist() == sorted(rows[expected].tolist())


@pytest.mark.parametrize(
    ("start", "argument"), [([], "start"), ([-1], "start"), ([90], "start"), (range(3), "start"), (["a"], "start")]
)
def test_starts_that_are_refused(start: Any, argument: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Selection(2, method="k_center", features=np.ones((90, 2)), method_options={"start": list(start)})()
    assert caught.value.argument == argument
