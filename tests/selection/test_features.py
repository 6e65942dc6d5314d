from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunesampler.errors import ArgumentError
from prunesampler.selection.features import Features, lowest
from prunesampler.selection.near_duplicates import similar_pairs
from prunesampler.selection.select import Selection, select
from prunesampler.tables.score_table import ScoreTable
from tests.helpers.plain_geometry import blobs

GEOMETRY = ("herding", "k_center", "moderate", "prototypes")


def read_only(array: Any) -> Any:
    array = array.copy()
    array.flags.writeable = False
    return array


def as_file(array: Any, folder: Path) -> str:
    np.save(folder / "features.npy", array)
    return str(folder / "features.npy")


@pytest.mark.parametrize("method", GEOMETRY)
def test_how_features_are_given_does_not_matter(method: str, tmp_path: Path) -> None:
    features = np.round(blobs(2100)[0] * 64) / 64  # exact in float16; in three blocks
    first = select(features=features, keep=9, method=method)
    path = as_file(features.astype(np.float16), tmp_path)
    ways = [features.astype(np.float16), features.astype(np.float64), torch.from_numpy(features), read_only(features)]
    ways += [np.asfortranarray(features), features[::-1][::-1], features.astype(">f4"), path, np.load(path, "r")]
    for given in ways:
        assert select(features=given, keep=9, method=method) == first


@pytest.mark.parametrize("method", GEOMETRY)
def test_the_order_of_rows_matters_only_to_the_seed(method: str) -> None:
    """A table of some rows, in any order, takes its own rows' features."""
    features, label = blobs(200)
    rows = np.random.default_rng(1).permutation(200)[:80]
    table = ScoreTable({"el2n": np.zeros(80)}, rows=rows, labels=label[rows], num_rows=200)
    found = select(table, 12, method=method, features=features)
    everything = ScoreTable({"el2n": np.zeros(200)}, labels=label)
    assert found.rows.tolist() == select(everything, 12, method=method, features=features, eligible=rows).rows.tolist()
    others = np.setdiff1d(np.arange(200), rows)
    features[others] = 1e3  # what is not eligible has no say
    assert found.rows.tolist() == select(table, 12, method=method, features=features).rows.tolist()


def test_features_alone_make_a_coreset_of_their_rows() -> None:
    coreset = select(features=blobs(50)[0], keep=0.2, method="k_center", eligible=range(10, 40))
    assert (len(coreset), coreset.num_rows, coreset.scores_digest) == (6, 50, None)
    assert set(coreset.rows.tolist()) <= set(range(10, 40))
    assert coreset.selection["threshold"] is None


@pytest.mark.parametrize("method", [*GEOMETRY, "deduplicate"])
def test_rows_that_have_no_features_are_left_out(method: str) -> None:
    features = blobs(60)[0]
    features[[5, 30]] = np.nan
    present = np.setdiff1d(np.arange(60), [5, 30])
    keep: dict[str, Any] = {} if method == "deduplicate" else {"keep": 58}
    kept = select(features=features, method=method, **keep)
    assert set(kept.rows.tolist()) <= set(present.tolist())
    assert kept.num_rows == 60
    table = ScoreTable({"el2n": np.zeros(60)})
    assert select(table, features=features, method=method, eligible=present, **keep).rows.tolist() == kept.rows.tolist()
    assert all(5 not in pair and 30 not in pair for each in similar_pairs(features) for pair in each.pairs)


REFUSED: dict[str, tuple[Any, str]] = {
    "one dimension": (np.zeros(40), "must be (N, d) numbers of float16, float32 or float64"),
    "none": (np.zeros((40, 0)), "must be (N, d) numbers"),
    "integers": (np.zeros((40, 2), int), "must be (N, d) numbers"),
    "text": (np.full((40, 2), "a"), "must be (N, d) numbers"),
    "another file": ("features.parquet", "must be (N, d) numbers"),
    "NaN": (np.where(np.arange(80).reshape(40, 2) == 17, np.nan, np.ones((40, 2))), "must be finite in float32"),
    "none of a row": (
        np.where(np.arange(40)[:, None] == 17, np.nan, np.ones((40, 2))),
        "must not be NaN for rows that",
    ),
    "beyond float32": (np.where(np.arange(40)[:, None] == 3, 1e39, np.ones((40, 2))), "must be finite in float32"),
    "other rows": (np.ones((39, 2)), "must be of the dataset's 40 rows, got 'those of 39'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_features_that_are_refused(name: str) -> None:
    given, message = REFUSED[name]
    with pytest.raises(ArgumentError, match=r"^features ") as caught:
        select(ScoreTable({"el2n": np.arange(40.0)}), 5, method="k_center", features=given)
    assert message in str(caught.value)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="features must be given for method 'herding'"):
        select(ScoreTable({"el2n": np.arange(40.0)}), 5, method="herding")
    with pytest.raises(ArgumentError, match="table must be given: scores, which method 'stratified' reads"):
        select(features=np.ones((9, 2)), keep=5)
    with pytest.raises(ArgumentError, match="table must be given: scores or features"):
        select(keep=5, method="random")
    with pytest.raises(FileNotFoundError):
        Selection(5, features=tmp_path / "none.npy")
    (tmp_path / "text.npy").write_text("no numbers")
    with pytest.raises(ArgumentError, match="features must be"):
        Selection(5, features=tmp_path / "text.npy")
    np.save(tmp_path / "objects.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(ArgumentError, match="features must be"):
        Selection(5, features=tmp_path / "objects.npy")


def test_directions_need_a_length() -> None:
    features = np.ones((40, 2))
    features[7] = 0
    with pytest.raises(ArgumentError, match=r"must not be zero where their directions are compared.* position 7"):
        select(features=features, keep=5, method="prototypes")
    assert len(select(features=features, keep=5, method="k_center")) == 5


def test_distances_are_those_of_the_differences() -> None:
    features = Features(blobs(3000, 5)[0] + np.float32(1000))  # where products would have lost nearly all digits
    point = features.at([77])[0]
    expected = np.linalg.norm(np.asarray(features, np.float64) - point.double().numpy(), axis=1)
    found = features.distances(point)
    assert found[77] == 0
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(features.mean(), np.asarray(features, np.float64).mean(0), rtol=1e-12)


def test_of_equal_values_the_tie_key_decides() -> None:
    ties = np.array([5, 1, 3, 0], np.uint64)
    assert lowest(torch.tensor([2.0, 1.0, 1.0, 4.0]), ties) == 1
    assert lowest(torch.full((4,), torch.inf), ties) == 3
