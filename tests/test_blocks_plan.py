from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blockfiles import saved, table
from prunesampler.blocks import plan
from prunesampler.blocks.cuts import Cuts
from prunesampler.blocks.engine import Serial
from prunesampler.blocks.reading import headers
from prunesampler.selection import Selection

WHOLE = (0, 300)


@pytest.fixture
def everything(tmp_path: Path) -> plan.Plan:
    (file,) = headers(Serial(), saved(tmp_path, table(0)))
    return plan.Plan(file, Selection(0.5, by="margin", method="top"), np.array([-1, 0, 1, 2, 5], "i4"), np.arange(5))


def test_candidates_are_of_their_classes(everything: plan.Plan) -> None:
    run = table(0)
    found = plan.scored(everything, WHOLE)
    np.testing.assert_array_equal(everything.labels[found.group], run.labels)  # type: ignore[index]
    np.testing.assert_array_equal(found.value, run.scores["margin"])  # the lowest are the hardest, and come first
    assert len(plan.without_score(everything, WHOLE).key) == 0
    census = plan.census(everything, WHOLE).to_pydict()
    assert census["label"] == [-1, 0, 1, 2, 5]
    assert census["rows"] == census["scored"] == [int((run.labels == label).sum()) for label in census["label"]]


def test_kept_are_those_within_the_cuts(everything: plan.Plan) -> None:
    none, some = Cuts.all_or_none([False] * 5), Cuts.all_or_none([False, True, False, False, True])
    run, kept = table(0), replace(everything, unscored=none, hardest=none, chosen=some)
    expected = run.rows[(run.labels == 0) | (run.labels == 5)]
    rows = plan.kept_rows(kept, WHOLE)
    assert rows["row"].to_pylist() == expected.tolist()
    assert rows["key"].to_pylist() == [f"key {row}" for row in expected]
    assert plan.kept_labels(kept, WHOLE)["label"].to_pylist() == [0, 5]
    assert plan.kept_summary(replace(kept, hardest=some), WHOLE)["rows"].to_pylist() == [0]
    assert len(plan.kept_rows(kept, (300, 400))) == 0
