from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import prunesampler as ps
from prunesampler.analysis.advice import judge
from prunesampler.analysis.report.page import page
from prunesampler.cli.app import main
from prunesampler.errors import ArgumentError
from prunesampler.scores.registry import SCORES, Score
from prunesampler.selection.registry import METHODS, register_method
from prunesampler.selection.select import Selection, resolve_keep, select, select_file
from prunesampler.tables.score_table import ScoreTable
from tests.helpers.attached import N, scored
from tests.helpers.blockfiles import THREADS, saved, table
from tests.helpers.plain_geometry import blobs

BUILT_IN = tuple(METHODS)
WITH_BUDGET = tuple(name for name, method in METHODS.items() if method.default_threshold is None)


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


@settings(max_examples=25)
@given(data=st.data(), keep=st.floats(0.02, 1), labelled=st.booleans())
@pytest.mark.parametrize("method", WITH_BUDGET)
@pytest.mark.filterwarnings("ignore::prunesampler.errors.PruneSamplerWarning")
def test_every_method_keeps_the_exact_number(method: str, data: Any, keep: float, labelled: bool) -> None:
    """Also of classes of one row, among equal rows, and of rows without a score."""
    size = data.draw(st.integers(2, 40))
    small = st.integers(0, 3)
    columns = [data.draw(st.lists(small, min_size=size, max_size=size)) for _ in range(4)]
    labels, features = np.array(columns[0]) - 1, np.array(columns[1:3], np.float32).T + 1
    score = np.where(np.array(columns[3]) == 3, np.nan, columns[3])
    whole = ScoreTable({"el2n": score, "confidence": np.array(columns[0]) / 3}, labels=labels)
    options = {"class_balanced": data.draw(st.booleans()), "min_per_class": data.draw(st.sampled_from([None, 1]))}
    if options["min_per_class"] and round(keep * size) < len(set(labels[labels >= 0])):
        return
    coreset = select(whole, keep, method=method, features=features, **options if labelled else {})
    assert len(coreset) == resolve_keep(keep, size)
    assert coreset == select(whole, keep, method=method, features=features, **options if labelled else {})


@pytest.mark.parametrize("method", BUILT_IN)
@pytest.mark.filterwarnings("ignore::prunesampler.errors.PruneSamplerWarning")
def test_every_method_is_found_everywhere(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By select, from a file, by the command line and by attach: the same rows."""
    confidence = Score(lambda logits, targets: logits.softmax(1).gather(1, targets[:, None])[:, 0], "lower")
    monkeypatch.setitem(SCORES, "confidence", confidence)
    features = blobs(N, 3)[0]
    np.save(tmp_path / "features.npy", features)
    chosen: dict[str, Any] = {"method": method, "features": tmp_path / "features.npy"}
    chosen["keep"] = keep = 0.5 if method in WITH_BUDGET else "auto"
    scores = ("el2n", "forgetting", "confidence")
    loader, _ = scored(save_dir=tmp_path / "run", scores=scores, **chosen)
    whole = loader.pruning.table
    expected = select(whole, **chosen)
    assert loader.pruning.coreset.rows.tolist() == expected.rows.tolist()
    options = ["--method", method, "--features", str(tmp_path / "features.npy"), "--keep", str(keep)]
    assert main(["select", str(tmp_path / "run" / "scores.parquet"), "-o", str(tmp_path / "out"), *options]) == 0
    assert ps.Coreset.load(tmp_path / "out").rows.tolist() == expected.rows.tolist()
    judgement = judge(whole, [0.5], method=method if keep == 0.5 else "random", features=features)
    assert "half" in page(whole, judgement, name="half", coreset=expected)


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
