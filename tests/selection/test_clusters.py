from __future__ import annotations

import numpy as np
import pytest

from prunesampler.selection.clusters import spherical_k_means
from prunesampler.selection.features import Features
from tests.helpers import plain_geometry as plain


def test_clusters_far_apart_are_found() -> None:
    features, label = plain.blobs(500, 16, of=7, spread=0.2)
    found = spherical_k_means(Features(features), 7, np.random.default_rng(0))
    pairs = set(zip(label.tolist(), found.of.tolist(), strict=True))
    assert len(pairs) == 7
    assert found.centres.norm(dim=1).numpy() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("clusters", [1, 5, 40, 60])
def test_each_row_is_with_its_nearest_centre_and_each_centre_the_mean_direction_of_its_rows(clusters: int) -> None:
    features = plain.blobs(60, 4, spread=1)[0]
    features[1] = features[0] * 2  # the same direction
    found = spherical_k_means(Features(features), clusters, np.random.default_rng(1))
    unit = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    cosine = unit @ found.centres.double().numpy().T
    np.testing.assert_allclose(cosine[np.arange(60), found.of], cosine.max(1), atol=1e-6)
    np.testing.assert_allclose(found.similarity, cosine.max(1), atol=1e-6)
    for each in np.unique(found.of):
        mean = unit[found.of == each].sum(0)
        np.testing.assert_allclose(found.centres[each], mean / np.linalg.norm(mean), atol=1e-5)


def test_rows_that_are_all_the_same_are_one_cluster_or_more() -> None:
    found = spherical_k_means(Features(np.ones((9, 3))), 4, np.random.default_rng(0))
    assert found.similarity == pytest.approx(1)
