from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from prunesampler.selection.out_of_core import reading
from prunesampler.selection.out_of_core.ranks import between
from prunesampler.tables.agreement import spearman
from tests.helpers.blockfiles import THREADS, saved, table


@pytest.mark.parametrize("name", ["el2n", "margin", "forgetting", "nothing"])
def test_the_same_as_of_whole_columns(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK", 37)
    tables = [table(seed) for seed in range(3)]
    found = between(THREADS, reading.headers(THREADS, saved(tmp_path, *tables)), reading.ranges(300), name)
    columns = [np.full(300, np.nan) for _ in tables]
    for column, each in zip(columns, tables, strict=True):
        column[each.rows] = each.column(name)
    pairs = [(columns[i], columns[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert repr(found) == repr([spearman(*pair) for pair in pairs])
    if name == "nothing":
        assert repr(found) == "[nan, nan, nan]"
    else:
        both = [np.array(pair)[:, ~np.isnan(pair).any(axis=0)] for pair in pairs]
        assert found == pytest.approx([scipy.stats.spearmanr(*pair).statistic for pair in both])
