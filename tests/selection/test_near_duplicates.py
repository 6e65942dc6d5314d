from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

import prunesampler.selection.near_duplicates as module
from prunesampler.errors import ArgumentError, UnsupportedError
from prunesampler.selection.near_duplicates import near_duplicates, similar_pairs
from prunesampler.selection.radix_select import tie_keys
from prunesampler.selection.select import Selection, select
from prunesampler.tables.score_table import ScoreTable
from tests.helpers import plain_geometry as plain

needs_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")


def similar(rows: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Groups of one to eight rows that look alike, some more than others."""
    generator = np.random.default_rng(seed)
    group = generator.integers(0, rows // 4, rows)
    noise = generator.choice([0, 0.05, 0.3], (rows, 1)) * generator.standard_normal((rows, 8))
    return (generator.standard_normal((rows, 8))[group] + noise).astype(np.float32)


def greedy(features: np.ndarray[Any, Any], order: Any, threshold: float) -> tuple[set[int], dict[int, int]]:
    """Row by row: kept unless it resembles a kept one; and which one it resembles most."""
    cosine, kept, of = plain.cosines(features), list[int](), dict[int, int]()
    for row in order:
        near = [other for other in kept if cosine[row, other] > threshold]
        if near:
            of[row] = max(near, key=lambda other: cosine[row, other])
        else:
            kept.append(row)
    return set(kept), of


@pytest.mark.parametrize("block", [7, 2048])
@pytest.mark.parametrize("prefer", ["central", "hardest", "easiest"])
@pytest.mark.parametrize("threshold", [0.999, 0.9, 0.3])
def test_a_row_goes_only_for_one_that_stays(
    prefer: Any, threshold: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    features, score = similar(150), np.random.default_rng(1).permutation(150).astype(float)
    score[[3, 9]] = np.nan
    unit = features / np.linalg.norm(features.astype(float), axis=1, keepdims=True)
    value = -(unit @ unit.mean(0)) if prefer == "central" else score * (-1 if prefer == "hardest" else 1)
    order = np.lexsort((tie_keys(0, np.arange(150)), np.where(np.isnan(value), -np.inf, value)))
    kept, of = greedy(features, order, threshold)
    table = ScoreTable({"el2n": score})
    found = near_duplicates(features, threshold, table=table, prefer=prefer)
    assert set(found.kept.tolist()) == kept
    assert dict(zip(found.dropped.tolist(), found.resembles.tolist(), strict=True)) == of
    np.testing.assert_allclose(found.similarity, plain.cosines(features)[found.dropped, found.resembles], atol=1e-6)
    assert sorted(row for group in found.groups for row in group) == sorted({*of, *of.values()})
    assert all(of[row] == group[0] for group in found.groups for row in group[1:])
    options = {"prefer": prefer}
    coreset = select(table, method="deduplicate", features=features, threshold=threshold, method_options=options)
    assert coreset.rows.tolist() == sorted(kept)


def test_a_chain_loses_every_other_row_only() -> None:
    angle = np.arange(6) * 0.2
    features = np.stack([np.cos(angle), np.sin(angle)], 1)
    table = ScoreTable({"el2n": np.arange(6.0)})
    found = near_duplicates(features, np.cos(0.3), table=table, prefer="easiest")
    assert found.kept.tolist() == [0, 2, 4]
    assert [group.tolist() for group in found.groups] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("search", ["clusters", pytest.param("faiss", marks=needs_faiss)])
def test_many_rows_are_searched_in_parts(search: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CLUSTER", 60)
    monkeypatch.setattr(module, "_BLOCK", 64)
    features = similar(600)
    table = ScoreTable({"el2n": np.random.default_rng(0).random(600)})
    exact = near_duplicates(features, 0.95, table=table, prefer="hardest")
    found = near_duplicates(features, 0.95, table=table, prefer="hardest", search=search)
    assert len(found.dropped) > 0.9 * len(exact.dropped) > 100
    cosine = plain.cosines(features)
    assert (cosine[found.dropped, found.resembles] > 0.95 - 1e-6).all()
    assert set(found.resembles) <= set(found.kept)
    assert len(found.kept) + len(found.dropped) == 600
    monkeypatch.setattr(module, "_EXACT", 599)
    automatic = near_duplicates(features, 0.95, table=table, prefer="hardest")
    assert (
        automatic.kept.tolist() == (found if search == "faiss" or not module_has_faiss() else automatic).kept.tolist()
    )


def module_has_faiss() -> bool:
    return importlib.util.find_spec("faiss") is not None


@pytest.mark.skipif(module_has_faiss(), reason="faiss is installed")
def test_faiss_is_named_where_it_is_wanted() -> None:
    with pytest.raises(UnsupportedError, match=r"prunesampler\[neighbors\]"):
        near_duplicates(similar(50), search="faiss")


def test_pairs_to_choose_a_threshold_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 32)
    features = similar(200)
    cosine = plain.cosines(features)
    np.fill_diagonal(cosine, -2)
    nearest = cosine.max(1)
    for each in similar_pairs(features, [0.99, 0.9, 0.5], examples=3):
        assert each.share == pytest.approx((nearest > each.similarity).mean())
        assert len(each.pairs) == 3
        above = np.sort(nearest[nearest > each.similarity])
        for a, b, at in each.pairs:
            assert a < b
            assert at == pytest.approx(cosine[a, b], abs=1e-6)
            assert np.abs(above[:7] - at).min() < 1e-6
    share = similar_pairs(features, [0.9], sample=50, seed=1)[0].share
    assert share == pytest.approx((nearest > 0.9).mean(), abs=0.2)
    assert similar_pairs(np.eye(3), [0.9])[0] == (0.9, 0, [])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a number": ({"keep": 0.5}, "keep"),
    "one": ({"threshold": 1.0}, "threshold"),
    "no cosine": ({"threshold": 0}, "threshold"),
    "balanced": ({"class_balanced": True}, "class_balanced"),
    "a floor": ({"min_per_class": 1}, "min_per_class"),
    "dropped": ({"unscored": "drop"}, "unscored"),
    "another choice": ({"method_options": {"prefer": "best"}}, "prefer"),
    "another option": ({"method_options": {"clusters": 3}}, "method_options"),
    "no features": ({"features": None}, "features"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_are_refused(name: str) -> None:
    options, argument = REFUSED[name]
    with pytest.raises(ArgumentError) as caught:
        select(ScoreTable({"el2n": np.arange(50.0)}), method="deduplicate", **{"features": similar(50)} | options)
    assert caught.value.argument == argument


def test_scores_are_read_only_where_they_decide() -> None:
    features = similar(50)
    assert not Selection("auto", method="deduplicate", features=features).reads_scores
    assert Selection("auto", method="deduplicate", method_options={"prefer": "easiest"}).reads_scores
    with pytest.raises(ArgumentError, match="table must be given"):
        select(features=features, method="deduplicate", method_options={"prefer": "easiest"})
    with pytest.raises(ArgumentError, match="table must be given"):
        near_duplicates(features, prefer="hardest")
    features[4] = 0
    with pytest.raises(ArgumentError, match="must not be zero"):
        near_duplicates(features)
