from __future__ import annotations

from pathlib import Path

import pytest

from prunesampler.errors import MismatchError
from prunesampler.shards import build_index
from prunesampler.shards.matching import check_coreset
from prunesampler.tables.score_table import Coreset
from tests.helpers.shardfiles import write_shards


def test_a_coreset_of_these_rows_passes(tmp_path: Path) -> None:
    index = build_index(write_shards(tmp_path, [3]), progress=False)
    check_coreset(Coreset([1], num_rows=3), index)
    check_coreset(Coreset([1], num_rows=3, fingerprint=index.fingerprint), index)
    with pytest.raises(MismatchError, match="of 4 rows, the index has 3"):
        check_coreset(Coreset([1], num_rows=4), index)
    with pytest.raises(MismatchError, match="fingerprint sha256:00, the index has sha256:"):
        check_coreset(Coreset([1], num_rows=3, fingerprint="sha256:00"), index)
