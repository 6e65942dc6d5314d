"""Rows that a function of the user's tells: of datasets that return their index, and of streams with ids."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from prunesampler.capture.row_function import RowFunction, ordered_ids
from prunesampler.capture.row_loader import with_rows
from prunesampler.errors import ArgumentError, UnsupportedError

N = 20


class Indexed(Dataset[Any]):
    """Returns its index beside a square."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, row: Any) -> Any:
        row = row[0] if isinstance(row, tuple) else row
        return row * row, row


class Stream(IterableDataset[Any]):
    """In an order of its own, with ids; of several workers each reads a part."""

    def __iter__(self) -> Iterator[Any]:
        info = torch.utils.data.get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        for k in itertools.islice(range(N), first, None, step):
            row = k * 7 % N
            yield row * row, row, f"id-{row}", 1000 + row


class Endings(DataLoader[Any]):
    """Hides what its workers return."""

    def __iter__(self) -> Any:
        for x, row in super().__iter__():
            yield x + 1, row


def second(batch: Any) -> Any:
    return batch[1]


class Keys:
    """A sampler of keys that are no positions."""

    def __iter__(self) -> Iterator[Any]:
        return iter([(row, "seed") for row in range(N)])

    def __len__(self) -> int:
        return N


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Indexed(), batch_size=3, shuffle=True),
        DataLoader(Indexed(), batch_size=3, shuffle=True, num_workers=2),
        DataLoader(Indexed(), batch_size=3, sampler=Keys()),
        DataLoader(Indexed(), batch_sampler=[[3, 1], [0, 2, 4]]),
        DataLoader(Indexed(), batch_size=None, sampler=[torch.tensor([3, 1])], collate_fn=lambda b: b),
        DataLoader(Stream(), batch_size=4),
        DataLoader(Stream(), batch_size=4, num_workers=2),
        DataLoader(Indexed(), batch_size=4, collate_fn=lambda samples: torch.tensor(samples).flip(0).T),
    ],
)
def test_the_batch_says_its_rows(loader: Any) -> None:
    found = list(with_rows(loader, row_fn=second))
    assert found
    for rows, batch in found:
        assert rows.dtype == torch.int64
        assert (rows**2).tolist() == batch[0].tolist()


def test_a_loader_that_hides_its_batches_is_read_as_it_is() -> None:
    for rows, (x, _) in with_rows(Endings(Indexed(), batch_size=3), row_fn=second):
        assert (rows**2 + 1).tolist() == x.tolist()


@pytest.mark.parametrize(
    "given",
    [[3, 1], (3, 1), np.array([3, 1], np.int32), torch.tensor([3, 1], dtype=torch.uint8), [torch.tensor(3), 1]],
)
def test_rows_are_ints_of_any_kind(given: Any) -> None:
    rows = RowFunction(lambda batch: given, DataLoader(Indexed()))(None)
    assert (rows.dtype, rows.tolist()) == (np.int64, [3, 1])


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ([3.0, 1.0], "must return ints"),
        ([True, False], "must return ints"),
        (3, "must return ints in one dimension"),
        ([[3], [1]], "must return ints in one dimension"),
        ([[3], [1, 2]], "must return ints in one dimension"),
        (["a", "b"], "keys= must have the ids"),
        ([None, 1], "keys= must have the ids"),
        ([-1, 3], "rows of the loader's dataset, >= 0 and below 20"),
        ([3, 20], "rows of the loader's dataset, >= 0 and below 20"),
    ],
)
def test_what_are_no_rows_is_refused(given: Any, rule: str) -> None:
    with pytest.raises(ArgumentError, match=f"row_fn .*{rule}"):
        list(with_rows(DataLoader(Indexed(), batch_size=2), row_fn=lambda batch: given))


def test_row_fn_is_a_function() -> None:
    with pytest.raises(ArgumentError, match="row_fn must be a function"):
        with_rows(DataLoader(Indexed()), row_fn="rows")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dataset", "row_fn"),
    [
        (Subset(Indexed(), range(19, -1, -1)), second),  # type: ignore[arg-type]
        (Subset(Indexed(), range(10, 20)), lambda batch: (batch[1] - 10 + 5) % 10),
        (Indexed(), lambda batch: torch.arange(len(batch[1])) + 12),
        (Indexed(), lambda batch: batch[1][:1].expand(len(batch[1]))),
    ],
)
def test_rows_that_the_sampler_did_not_draw_are_refused(dataset: Any, row_fn: Any) -> None:
    with pytest.raises(ArgumentError, match="row_fn must return positions in the loader's own dataset"):
        list(with_rows(DataLoader(dataset, batch_size=4), row_fn=row_fn))


def test_a_collate_function_may_replace_a_few() -> None:
    def refill(samples: list[Any]) -> Any:
        return torch.tensor([(361, 19) if row == 1 else (x, row) for x, row in samples]).T

    ((rows, _), *_) = with_rows(DataLoader(Indexed(), batch_size=4, collate_fn=refill), row_fn=second)
    assert rows.tolist() == [0, 19, 2, 3]


IDS = [f"id-{row}" for row in range(N)]


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        (IDS, 2),
        (tuple(IDS), 2),
        (np.array(IDS), 2),
        ({name: row for row, name in enumerate(IDS)}, 2),
        ({1000 + row: row for row in range(N)}, 3),
        (range(N), 1),
    ],
)
def test_ids_are_looked_up_in_keys(keys: Any, place: int) -> None:
    told = RowFunction(lambda batch: batch[place], DataLoader(Stream(), batch_size=4), keys=keys)
    assert told.num_rows == N
    for batch in DataLoader(Stream(), batch_size=4):
        assert told(batch).tolist() == batch[1].tolist()


def test_ids_that_nobody_knows_are_refused() -> None:
    loader = DataLoader(Stream(), batch_size=4)
    with pytest.raises(ArgumentError, match=r"row_fn must return ids that keys= has, got \['id-7'\]"):
        RowFunction(lambda batch: batch[2], loader, keys=[name for name in IDS if name != "id-7"])(next(iter(loader)))
    with pytest.raises(ArgumentError, match=r"keys must be a mapping \{id: row\} where the ids are ints"):
        RowFunction(second, loader, keys=[1000 + row for row in range(N)])


def test_keys_may_be_a_mapping() -> None:
    assert ordered_ids({"b": 1, "a": 0}) == ["a", "b"]
    assert ordered_ids(["x"]) == ["x"]
    for bad in ({"a": 0, "b": 0}, {"a": 1, "b": 2}, {"a": "0", "b": 1}):
        with pytest.raises(ArgumentError, match="keys must map ids to rows"):
            ordered_ids(bad)


@pytest.mark.parametrize("loader", [DataLoader(Stream(), batch_size=2), DataLoader(Indexed(), batch_size=None)])
def test_what_row_fn_cures_names_it(loader: Any) -> None:
    with pytest.raises(UnsupportedError, match="row_fn="):
        next(with_rows(loader))
