from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prunesampler as ps
from prunesampler.errors import ArgumentError
from prunesampler.selection.registry import METHODS, register_method
from prunesampler.selection.select import Selection, select, select_file
from prunesampler.tables.score_table import ScoreTable
from tests.helpers.blockfiles import THREADS, saved, table


def hardest(candidates: Any, budget: int, rng: np.random.Generator) -> Any:
    """What "top" does, from arrays in memory."""
    return np.lexsort((candidates.ties, -candidates.hardness))[:budget]


def drawn(candidates: Any, budget: int, rng: np.random.Generator) -> Any:
    return rng.choice(len(candidates.hardness), budget, replace=False)


def half_of_the_hardest(candidates: Any, budget: Any, rng: Any) -> Any:
    return candidates.take("hardest", budget // 2)


@pytest.fixture
def registered() -> Iterator[None]:
    register_method("my hardest", hardest)
    register_method("my draw", drawn, reads_scores=False)
    register_method("half", half_of_the_hardest, by_group=True)
    yield
    for name in ("my hardest", "my draw", "half"):
        del METHODS[name]


@pytest.mark.filterwarnings("ignore::prunesampler.errors.PruneSamplerWarning")
@pytest.mark.parametrize("method", [hardest, "my hardest"])
@pytest.mark.parametrize(
    "options", [{}, {"class_balanced": True}, {"min_per_class": 6}, {"unscored": "drop"}, {"by": "margin"}]
)
def test_a_function_selects_like_the_method_that_it_copies(
    method: Any, options: dict[str, Any], registered: None, tmp_path: Path
) -> None:
    whole = table(0)
    expected = select(whole, 0.4, method="top", **options)
    found = select(whole, 0.4, method=method, **options)
    assert found.rows.tolist() == expected.rows.tolist()
    (path,) = saved(tmp_path, whole)
    select_file(THREADS.map, path, tmp_path / "out.parquet", Selection(0.4, method=method, **options))
    assert ps.Coreset.load(tmp_path / "out.parquet") == found


def test_a_function_draws_by_the_seed_and_sees_labels(registered: None) -> None:
    whole = ScoreTable({"el2n": np.r_[np.nan, np.arange(49.0)]}, labels=np.arange(50) % 2)
    first, again, other = (select(whole, 20, method=drawn, seed=seed).rows.tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert 0 in first  # without a score, and so kept before the function is asked
    assert len(select(whole, 20, method="my draw")) == 20

    def one_class(candidates: Any, budget: int, rng: Any) -> Any:
        return np.flatnonzero(candidates.labels == 1)[:budget]

    assert (select(whole, 20, method=one_class, unscored="drop").rows % 2).all()


@pytest.mark.parametrize(
    ("positions", "received"),
    [
        ([0, 1], "2 positions"),
        ([0, 1, 1], "2 distinct positions"),
        ([0, 1, 10], "positions 0 to 10"),
        ([-1, 1, 2], "positions -1 to 2"),
        ([0.0, 1.0, 2.0], "float64 of shape (3,)"),
        ([[0, 1, 2]], "int64 of shape (1, 3)"),
        ([True, False, True], "bool of shape (3,)"),
        (None, "object of shape ()"),
    ],
)
def test_positions_that_are_refused(positions: Any, received: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        select(ScoreTable({"el2n": np.arange(10.0)}), 3, method=lambda *_: positions)
    assert caught.value.argument == "method"
    assert "must give 3 distinct positions in [0, 10) as integers" in str(caught.value)
    assert received in str(caught.value)


def test_too_few_candidates_are_refused(registered: None) -> None:
    with pytest.raises(ArgumentError, match="method half must give 4 candidates, got 2"):
        select(ScoreTable({"el2n": np.arange(10.0)}), 4, method="half")


def test_a_function_stands_in_a_file_by_its_name() -> None:
    options = Selection(0.5, method=hardest).to_dict()
    assert options["method"] == "tests.selection.test_registry:hardest"
    assert json.loads(json.dumps(options)) == options
    with pytest.raises(ArgumentError, match="stands in a file for a function, which must be given itself"):
        Selection(**options)


def test_names_that_are_refused(registered: None) -> None:
    with pytest.raises(ArgumentError, match=r"^method must be one of stratified, top, .*, half, or a function .*best"):
        Selection(0.5, method="best")
    for name in ("top", "", 3):
        with pytest.raises(ArgumentError, match=r"^name must be a str other than"):
            register_method(name, hardest)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"^function must be a function"):
        register_method("new", "hardest")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"^offset belongs to the methods stratified, window, not to"):
        Selection(0.5, method=hardest, offset=0.1)
