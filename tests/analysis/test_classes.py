from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunesampler.analysis.classes import class_scores, kept_in, survival, survival_of
from prunesampler.errors import MismatchError
from prunesampler.selection.select import select
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.score_table import ScoreTable


@given(st.lists(st.tuples(st.sampled_from([-1, 0, 3, 2**31 - 1]), st.booleans()), min_size=1))
def test_survival_counts_each_class(rows: list[tuple[int, bool]]) -> None:
    rows.append((0, True))
    found = survival([label for label, _ in rows], [kept for _, kept in rows])
    mean = sum(kept for _, kept in rows) / len(rows)
    labels = sorted({label for label, _ in rows if label >= 0})
    assert [each.label for each in found] == labels + [None] * any(label == -1 for label, _ in rows)
    for each in found:
        of = [kept for label, kept in rows if label == (-1 if each.label is None else each.label)]
        assert (each.rows, each.kept, each.share) == (len(of), sum(of), sum(of) / len(of))
        assert each.ratio == pytest.approx(sum(of) / len(of) / mean)


def test_class_means_leave_out_what_has_no_value() -> None:
    table = ScoreTable(
        {"el2n": [0.5, np.nan, 1.0, np.nan]},
        labels=[7, 7, -1, 2],
        forgetting_events=[2, 4, 0, 1],
        learned=[True, True, False, True],
    )
    found = class_scores(table, ["el2n", "forgetting"])
    assert found is not None
    assert [(each.label, each.rows, each.share, each.means) for each in found] == [
        (2, 1, 0.25, {"el2n": None, "forgetting": 1.0}),
        (7, 2, 0.5, {"el2n": 0.5, "forgetting": 3.0}),
        (None, 1, 0.25, {"el2n": 1.0, "forgetting": None}),
    ]
    assert class_scores(ScoreTable({"el2n": [0.5]}), ["el2n"]) is None


def test_a_coreset_is_looked_up_in_the_scores_that_it_was_selected_from() -> None:
    table = ScoreTable({"el2n": [0.1, 0.9, 0.5]}, num_rows=6, rows=[1, 3, 5], labels=[0, 1, 1])
    coreset = select(table, keep=2, method="bottom")
    assert kept_in(coreset, table).tolist() == [True, False, True]
    shares = survival_of(coreset, table)
    assert shares is not None
    assert [each.share for each in shares] == [1.0, 0.5]
    assert survival_of(Coreset([1], num_rows=6), table.replace(labels=None)) is None


@pytest.mark.parametrize(
    "coreset",
    [
        Coreset([1], num_rows=6, scores_digest="sha256:other"),
        Coreset([1], num_rows=7),
        Coreset([1, 2], num_rows=6),
    ],
)
def test_other_scores_are_refused(coreset: Coreset) -> None:
    with pytest.raises(MismatchError, match="was not selected from these scores"):
        kept_in(coreset, ScoreTable({"el2n": [0.1, 0.9, 0.5]}, num_rows=6, rows=[1, 3, 5]))
