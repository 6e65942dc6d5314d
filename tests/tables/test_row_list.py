from __future__ import annotations

import re

import numpy as np
import pandas
import pytest

from prunesampler.errors import ArgumentError
from prunesampler.tables.score_table import Coreset, ScoreTable
from tests.helpers.command_line import score_table


def test_the_hardest_and_the_easiest_rows() -> None:
    table = score_table()
    margin, el2n = table["margin"], table["el2n"]
    assert table.hardest(3, by="margin").rows.tolist() == np.argsort(margin)[:3].tolist()  # lower is harder
    assert table.easiest(3).rows.tolist() == np.argsort(el2n)[:3].tolist()
    never = {row for row in range(200) if not table.learned[row]}  # type: ignore[index]
    assert set(table.hardest(len(never), by="forgetting").rows.tolist()) == never
    assert len(table.hardest(1000)) == 199  # the first row has no score
    first = table.head(2)
    assert (first[0]["el2n"], first[-1]["row"], first[1]["label"]) == (None, 1, 1)
    with pytest.raises(IndexError):
        first[2]
    with pytest.raises(ArgumentError, match="count must be an int >= 1"):
        table.hardest(0)


def test_a_table_is_what_pandas_and_polars_read_from_its_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    import polars

    table = score_table(labels=[-1, *range(199)], keys=[f"<{row}>" for row in range(200)])
    table.save(tmp_path / "scores.parquet")
    pandas.testing.assert_frame_equal(table.to_pandas(), pandas.read_parquet(tmp_path / "scores.parquet"))
    assert table.to_polars().equals(polars.read_parquet(tmp_path / "scores.parquet"))
    assert table.hardest(7).to_pandas()["key"].tolist() == [f"<{row}>" for row in table.hardest(7).rows]


def test_columns_by_name() -> None:
    table = score_table()
    for name in table.to_arrow().column_names:
        assert name in table
        assert len(table[name]) == 200
    assert table["forgetting"].tolist() == table.column("forgetting").tolist()
    assert "eln2" not in table
    with pytest.raises(ArgumentError, match=r"got 'eln2'; did you mean 'el2n'\?"):
        table["eln2"]
    with pytest.raises(TypeError):
        iter(table)


def test_what_is_shown_in_a_notebook_is_escaped_and_complete() -> None:
    table = ScoreTable({"el2n": [0.5, 1.25]}, keys=["<b>", "a"])
    shown = table.head()._repr_html_()
    assert re.findall("<t[hd]>(.*?)</t[hd]>", shown) == [
        "row",
        "el2n",
        "key",
        "0",
        "0.500",
        "&lt;b&gt;",
        "1",
        "1.250",
        "a",
    ]
    assert "<td>method</td><td>None</td>" in Coreset([1], num_rows=2)._repr_html_()


def test_classes_are_shown_by_their_names_and_stay_numbers() -> None:
    table = ScoreTable(
        {"el2n": [0.5, 1.25, 1]}, labels=[0, 1, -1], suggested_label=[1, 2, -1], provenance={"classes": ["cat", "dog"]}
    )
    shown = table.hardest()
    assert [line.split() for line in repr(shown).splitlines()[1:]] == [
        ["1", "dog", "1.250", "2"],
        ["2", "–", "1", "–"],
        ["0", "cat", "0.500", "dog"],
    ]
    assert "<td>dog</td>" in shown._repr_html_()
    assert [row["label"] for row in shown] == [1, None, 0]


def test_a_plot_of_each_score() -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    axes = score_table().plot()
    assert [each.get_xlabel() for each in axes][::2] == ["el2n (higher is harder)", "margin (lower is harder)"]
    assert sum(bar.get_height() for bar in axes[0].patches) == 199
    one = score_table().plot("forgetting", pyplot.subplots()[1])
    assert one.get_ylabel() == "rows"
    pyplot.close("all")
