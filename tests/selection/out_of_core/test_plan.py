from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prunesampler.selection.out_of_core import plan
from prunesampler.selection.out_of_core.cuts import Cuts
from prunesampler.selection.out_of_core.reading import headers
from prunesampler.selection.select import Selection
from tests.helpers.blockfiles import THREADS, saved, table


@pytest.fixture
def everything(tmp_path: Path) -> plan.Plan:
    (file,) = headers(THREADS, saved(tmp_path, table(0)))
    return plan.Plan(file, Selection(0.5, by="margin", method="top"), np.array([-1, 0, 1, 2, 5], "i4"), np.arange(5))


def test_candidates_are_of_their_classes(everything: plan.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    run = table(0)
    for size in (1000, 33):
        monkeypatch.setattr(plan, "_SLICE", size)
        found = list(plan.scored(everything, 0))
        assert len(found) == -(-280 // size)
        group = np.concatenate([part.group for part in found])  # type: ignore[misc]
        np.testing.assert_array_equal(everything.labels[group], run.labels)  # type: ignore[index]
        # the lowest margins are the hardest, and come first
        first = np.concatenate([part.first for part in found])
        order = np.argsort(first, kind="stable")
        np.testing.assert_array_equal(order, np.argsort(run.scores["margin"], kind="stable"))
        np.testing.assert_array_equal(np.concatenate([part.row for part in found]), run.rows)
        assert sum(len(part.row) for part in plan.without_score(everything, 0)) == 0
        census = (
            plan.census(everything, 0).group_by("label").aggregate([("rows", "sum"), ("scored", "sum")]).to_pydict()
        )
        assert sorted(census["label"]) == [-1, 0, 1, 2, 5]
        assert (
            census["rows_sum"]
            == census["scored_sum"]
            == [int((run.labels == label).sum()) for label in census["label"]]
        )


def test_kept_are_those_within_the_cuts(everything: plan.Plan) -> None:
    none, some = Cuts.all_or_none([False] * 5), Cuts.all_or_none([False, True, False, False, True])
    run, planned = table(0), replace(everything, hardest=none, chosen=some)
    expected = run.rows[(run.labels == 0) | (run.labels == 5)]
    line = plan.kept(planned, 0)
    rows = plan.kept_rows(everything.file, line)
    assert rows["row"].to_pylist() == expected.tolist()
    assert rows["key"].to_pylist() == [f"key {row}" for row in expected]
    found = line.to_pylist()[0]
    assert (found["labels"], sum(found["counts"]), found["rows"]) == ([-1, 0, 1, 2, 5], len(expected), len(expected))
    assert plan.kept(replace(planned, hardest=some), 0)["rows"].to_pylist() == [0]
