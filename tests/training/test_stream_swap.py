"""The gate of a stream, and how its passes are counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from prunesampler.capture.rows import RowBatch, RowStream, row_stream
from prunesampler.tables.coreset import Coreset
from prunesampler.training.policies.prune_once import PruneOnce
from prunesampler.training.progress import StreamProgress
from prunesampler.training.stream_swap import StreamSwap


class Stream:
    num_rows, fingerprint, num_replicas = 9, "sha256:x", 2

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def iter_rows(self) -> Iterator[RowBatch]:
        return iter(())

    def prunable(self, seed: int) -> None:
        self.calls.append(("prunable", seed))

    def prune(self, rows: Any) -> None:
        self.calls.append(("prune", rows))

    def adopt(self, loader: Any) -> None:
        raise AssertionError


def test_what_takes_the_samplers_place_decides_what_the_stream_lets_through() -> None:
    stream = Stream()
    assert isinstance(stream, RowStream)
    assert row_stream(stream) is stream
    swap = StreamSwap(stream, PruneOnce(), seed=3)
    assert (swap.num_rows, swap.num_eligible, swap.num_replicas) == (9, 9, 2)
    coreset = Coreset([1, 2], num_rows=9)
    order = swap.sampler(coreset, seed=0, epoch_length="kept")
    swap.exchange(order)
    swap.exchange(swap.base)
    assert stream.calls == [("prunable", 3), ("prune", coreset), ("prune", None)]
    assert order.state_dict() == {"epoch": 0, "position": 0}
    assert order.began == (0, 0)
    assert swap.draws_of(4, "kept") == 4
    assert swap.batches() is None  # type: ignore[func-returns-value]
    assert isinstance(swap.progress(2), StreamProgress)


@pytest.mark.parametrize("epochs", [1, 3])
def test_whole_passes_are_counted(epochs: int) -> None:
    progress = StreamSwap(Stream(), PruneOnce(), seed=0).progress(epochs)
    for _ in range(epochs):
        assert not progress.is_due
        progress.train(40)
        progress.train(60)
        progress.end_epoch()
    assert progress.is_due


def test_a_short_look_is_no_pass_but_most_of_one_is() -> None:
    progress = StreamProgress(2)
    progress.end_epoch()
    assert progress.ended == 0
    progress.train(100)
    progress.end_epoch()
    progress.train(49)
    assert not progress.is_due
    progress.end_epoch()
    assert progress.ended == 1
    progress.train(75)
    assert progress.is_due
    progress.cut_off = 5
    assert not progress.is_due
