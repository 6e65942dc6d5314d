from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import prunesampler as ps
from prunesampler.errors import ArgumentError, UnsupportedError

N, C = 60, 4


def samples(kind: str) -> Any:
    made = {
        "tuple": lambda row: (row, row % C, "more"),
        "list": lambda row: [row, np.int64(row % C)],
        "dict": lambda row: {"x": row, "target": row % C},
        "tensor": lambda row: (torch.tensor(row), torch.tensor(row % C, dtype=torch.int32)),
    }[kind]
    return [made(row) for row in range(N)]


@pytest.mark.parametrize("kind", ["tuple", "list", "dict", "tensor"])
def test_a_share_of_the_rows_has_one_class_more_and_nothing_else_changes(kind: str) -> None:
    dataset = ps.ThresholdSamples(whole := samples(kind), C)
    assert len(dataset.rows) == N // (C + 1)
    together = dataset.__getitems__([*range(N)])
    for row in range(N):
        found, before = dataset[row], whole[row]
        assert together[row] == found
        assert type(found) is type(before)
        label, old = (each["target"] if kind == "dict" else each[1] for each in (found, before))
        assert int(label) == (C if row in dataset.rows else int(old))
        if kind == "tensor":
            assert label.dtype == torch.int32
            assert label.shape == ()
        assert (found["x"] if kind == "dict" else found[0]) == row
        assert len(found) == len(before)


def test_parts_are_disjoint_and_drawn_by_the_seed() -> None:
    drawn = [ps.ThresholdSamples(samples("tuple"), C, part=part).rows.tolist() for part in range(C + 1)]
    assert sorted(row for part in drawn for row in part) == list(range(N))
    assert ps.ThresholdSamples(samples("tuple"), C, seed=1).rows.tolist() != drawn[0]
    assert ps.ThresholdSamples(samples("tuple"), C).rows.tolist() == drawn[0]


def test_a_loader_reads_them_and_their_labels_reach_the_table() -> None:
    dataset = ps.ThresholdSamples(TensorDataset(torch.randn(N, 3), torch.arange(N) % C), C)
    table = ps.score(torch.nn.Linear(3, C + 1), DataLoader(dataset, batch_size=7), progress=False)
    assert table.labels is not None
    assert np.flatnonzero(table.labels == C).tolist() == dataset.rows.tolist()


@pytest.mark.parametrize(("argument", "options"), [("num_classes", {"num_classes": 1}), ("part", {"part": 5})])
def test_wrong_arguments(argument: str, options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument} "):
        ps.ThresholdSamples(samples("tuple"), **{"num_classes": C, **options})
    with pytest.raises(ArgumentError, match="at least 5 rows"):
        ps.ThresholdSamples([(0, 0)] * 4, C)


@pytest.mark.parametrize("sample", [5, (1,), {"x": 1}, (1, torch.zeros(2))])
def test_samples_without_a_class_are_refused(sample: Any) -> None:
    dataset = ps.ThresholdSamples([sample] * N, C)
    with pytest.raises(UnsupportedError, match="label"):
        dataset[int(dataset.rows[0])]
