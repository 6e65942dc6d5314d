"""Equal shares of kept samples, against a list that is cut by hand."""

from __future__ import annotations

import numpy as np
import pytest

from prunesampler.shards.worker_split import Remainder, split_samples


def dealt(counts: list[int], ranks: int, workers: int, remainder: Remainder) -> list[list[list[tuple[int, int]]]]:
    """By rank and worker, every (shard, position) that falls to it, in order."""
    shards = np.arange(len(counts))[::-1].copy()
    return [
        [
            [
                (part.shard, i)
                for part in split_samples(
                    shards,
                    np.array(counts)[shards],
                    rank=rank,
                    num_replicas=ranks,
                    worker=worker,
                    num_workers=workers,
                    remainder=remainder,
                )
                for i in range(part.start, part.stop)
            ]
            for worker in range(workers)
        ]
        for rank in range(ranks)
    ]


@pytest.mark.parametrize("counts", [[3, 2], [7], [0, 5, 0, 4, 1, 0], [1], [10, 10, 10], [2, 0, 0, 0]])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_shares_are_a_list_cut_in_equal_lengths(counts: list[int], ranks: int, workers: int) -> None:
    line = [(shard, i) for shard in reversed(range(len(counts))) for i in range(counts[shard])]
    remainders: list[Remainder] = ["pad", "drop", "exact"]
    for remainder in remainders:
        parts = dealt(counts, ranks, workers, remainder)
        whole = [[one for worker in rank for one in worker] for rank in parts]
        lengths = [len(rank) for rank in whole]
        joined = [one for rank in whole for one in rank]
        if remainder == "pad":
            assert lengths == [-(-len(line) // ranks)] * ranks
            assert joined == (line * ranks)[: len(joined)]
        elif remainder == "drop":
            assert lengths == [len(line) // ranks] * ranks
            assert joined == line[: len(joined)]
        else:
            assert max(lengths) - min(lengths) <= 1
            assert joined == line
        for rank in parts:
            sizes = [len(worker) for worker in rank]
            assert max(sizes) - min(sizes) <= 1
            assert all(len(set(worker)) == len(worker) for worker in rank)


def test_nothing_kept_is_nothing() -> None:
    assert split_samples(np.array([0, 1]), np.array([0, 0])) == []
    assert split_samples(np.array([], np.int64), np.array([], np.int64)) == []
