"""Shards of pictures, with an index of them; and no time lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunesampler.shards import ShardIndex, build_index, retry
from tests.helpers.shardfiles import write_shards


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Four shards with 22 samples: a picture and a class each."""
    return write_shards(tmp_path / "shards", [7, 1, 5, 9])


@pytest.fixture
def index(paths: list[str]) -> ShardIndex:
    """Their index, in memory."""
    return build_index(paths, progress=False)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails is tried again at once."""
    monkeypatch.setattr(retry, "PAUSE", 0.0)
