"""Files of the first release, in ``data/``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunesampler.errors import MismatchError
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.parquet import read_header, verify
from prunesampler.tables.score_table import ScoreTable

DATA = Path(__file__).parent / "data"
ROWS = np.array([row for row in range(40) if row % 7 != 3])
SHARED = {"num_rows": 40, "fingerprint": "sha256:00"}


def expected_scores() -> ScoreTable:
    return ScoreTable(
        {"el2n": np.where(ROWS % 5 == 0, np.nan, ROWS / 64), "margin": ROWS * 37 % 19 / 8 - 1},
        rows=ROWS,
        labels=np.where(ROWS % 11 == 0, -1, ROWS % 3),
        forgetting_events=ROWS % 4,
        learned=ROWS % 6 != 1,
        presentations=np.where(ROWS % 9 == 4, 0, 5),
        keys=[f"images/é{row:02d}.jpg" for row in ROWS],
        shards=[f"train-{row // 20:04d}.tar" for row in ROWS],
        protocols={"el2n": {"kind": "online", "epochs": 5, "reduction": "mean", "runs": 1}},
        provenance={"seed": 3},
        **SHARED,
    )


def test_a_table_of_the_first_release_loads() -> None:
    loaded = ScoreTable.load(DATA / "scores.parquet", "sha256:00")
    assert loaded == expected_scores()
    assert loaded.digest == "sha256:3c020b30959eeb04eee83a2e593dbab22d2b7131966b30e5dcdc8c3abfcc5eed"
    np.testing.assert_array_equal(loaded.scores["el2n"], expected_scores().scores["el2n"])
    assert loaded.keys == expected_scores().keys
    verify(read_header(DATA / "scores.parquet", "scores"))


def test_a_coreset_of_the_first_release_loads() -> None:
    kept = ROWS[::-3]
    loaded = Coreset.load(DATA / "coreset.parquet")
    assert loaded == Coreset(
        kept,
        weights=kept / 8 + 0.5,
        keys=[f"images/é{row:02d}.jpg" for row in kept],
        shards=[f"train-{row // 20:04d}.tar" for row in kept],
        scores_digest=expected_scores().digest,
        selection={"options": {"method": "top", "keep": 0.3}},
        **SHARED,
    )
    assert loaded.rows.tolist() == sorted(kept.tolist())
    assert loaded.weights is not None
    assert loaded.weights.tolist() == (np.sort(kept) / 8 + 0.5).tolist()
    with pytest.raises(MismatchError, match="sha256:01"):
        Coreset.load(DATA / "coreset.parquet", "sha256:01")


def test_a_coreset_with_integer_keys_loads() -> None:
    loaded = Coreset.load(DATA / "coreset_int_keys.parquet")
    assert (loaded.rows.tolist(), loaded.keys) == ([1, 5, 9], [10, 50, 90])
