"""Rows reach whoever reads the loader, in whatever order and process batches are made; or are refused."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, Subset

from prunesampler.capture.row_dataset import _carriers, carrying_rows
from prunesampler.capture.row_loader import RowLoader, plain_class, row_loader_class, with_rows
from prunesampler.capture.rows import Collated, RowBatch
from prunesampler.errors import UnsupportedError
from tests.helpers.squares import GRID, Squares, SquaresAtOnce


class Wide:
    def __init__(self, values: list[int]) -> None:
        self.values = torch.tensor(values)


def set_offset(_: int) -> None:
    dataset = torch.utils.data.get_worker_info().dataset
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    assert isinstance(dataset, Squares)
    dataset.offset = 1000


@pytest.mark.parametrize("options", GRID, ids=str)
@pytest.mark.parametrize("kind", [Squares, SquaresAtOnce])
def test_every_batch_comes_with_its_rows(options: dict[str, Any], kind: type[Squares]) -> None:
    loader = DataLoader(kind(), batch_size=5, shuffle=True, **options)
    for _ in range(2):
        seen = []
        for rows, batch in with_rows(loader):
            assert rows.dtype == torch.int64
            assert (rows**2).tolist() == batch.tolist()
            seen += rows.tolist()
        assert sorted(seen) == list(range(23))
        assert all(isinstance(batch, torch.Tensor) for batch in loader)  # plain passes stay plain


def test_custom_batch_samplers_collate_subsets_and_tiny_batches() -> None:
    sampler = BatchSampler(RandomSampler(range(10)), 3, drop_last=True)
    for rows, batch in with_rows(DataLoader(Squares(10), batch_sampler=sampler)):
        assert (rows**2).tolist() == batch.tolist()
    for rows, batch in with_rows(DataLoader(Squares(), batch_size=4, collate_fn=Wide)):
        assert (rows**2).tolist() == batch.values.tolist()
    subset = Subset(Squares(), [20, 3, 4])
    assert [(r.tolist(), b.tolist()) for r, b in with_rows(DataLoader(subset, batch_size=1))] == [
        ([0], [400]),
        ([1], [9]),
        ([2], [16]),
    ]


def test_negative_indices_are_positions_too() -> None:
    loader = DataLoader(list(range(10)), batch_size=2, sampler=[-1, 3])
    assert [rows.tolist() for rows, _ in with_rows(loader)] == [[9, 3]]


@pytest.mark.parametrize("context", ["fork", "forkserver"])
@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: Subset(Subset(data, range(23)), range(23))])
def test_workers_see_the_dataset_itself(context: str, wrap: Any) -> None:
    loader = DataLoader(
        wrap(Squares()), batch_size=5, num_workers=1, worker_init_fn=set_offset, multiprocessing_context=context
    )
    for rows, batch in with_rows(loader):
        assert (rows**2 + 1000).tolist() == batch.tolist()
    assert loader.worker_init_fn is set_offset


class Asking(Squares):
    """Asks its worker for itself, with no worker_init_fn."""

    def __getitem__(self, i: int) -> int:
        assert torch.utils.data.get_worker_info().dataset is self
        return i * i


class AskingStream(IterableDataset[Any]):
    """A stream that knows its rows, from where its worker says."""

    start = 0

    def iter_rows(self) -> Iterator[RowBatch]:
        assert torch.utils.data.get_worker_info().dataset is self
        for row in range(self.start, self.start + 4):
            yield RowBatch(np.array(row), row * row)

    def __iter__(self) -> Any:
        raise AssertionError("its rows are wanted")


def set_start(_: int) -> None:
    torch.utils.data.get_worker_info().dataset.start = 3


def test_workers_know_the_dataset_without_being_asked_to() -> None:
    for rows, batch in with_rows(DataLoader(Asking(), batch_size=5, num_workers=1)):
        assert (rows**2).tolist() == batch.tolist()
    stream: Any = DataLoader(AskingStream(), batch_size=2, num_workers=1, worker_init_fn=set_start)
    found = [(batch.rows.tolist(), batch.batch.tolist()) for batch in carrying_rows(stream)]
    assert found == [([3, 4], [9, 16]), ([5, 6], [25, 36])]


def test_rows_beyond_float32_stay_exact() -> None:
    rows, _ = next(iter(with_rows(DataLoader(Squares(20_000_010), batch_size=2, sampler=[20_000_001, 20_000_000]))))
    assert rows.tolist() == [20_000_001, 20_000_000]


@pytest.mark.parametrize("indices", [[2, 0], np.array([2, 0]), [np.int32(2), 0], torch.tensor([2, 0]), [-1, 0]])
def test_rows_are_the_integers_that_a_sampler_yields(indices: Any) -> None:
    rows, samples, fault = _carriers(DataLoader([5, 6, 7]))["dataset"].__getitems__(indices)
    assert fault is None
    assert (rows.dtype, rows.tolist(), samples) == (np.int64, [2, 0], [7, 5])


class Keyed(Dataset[Any]):
    def __getitem__(self, key: Any) -> int:
        return 3


@pytest.mark.parametrize("indices", [[2.0, 0.0], ["a", "b"], [(1, 2), (0, 1)], [(1, 2), 0], [None, 1]])
def test_other_keys_are_no_rows(indices: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"positions in the dataset as ints, got .*give row_fn="):
        next(with_rows(DataLoader(Keyed(), batch_size=2, sampler=indices)))


class Ledger:
    def __init__(self) -> None:
        self.passes = 0
        self.events: list[Any] = []

    def before_pass(self) -> None:
        self.events.append("before")

    def started(self) -> int:
        self.passes += 1
        return self.passes

    def fetched(self, token: int, item: Collated) -> Any:
        assert (item.rows**2).tolist() == item.batch.tolist()
        self.events.append((token, item.rows.tolist()))
        return item.batch

    def exhausted(self, token: int) -> None:
        self.events.append((token, "end"))

    def released(self, token: int) -> None:
        pass


@pytest.mark.parametrize("options", GRID[:3], ids=str)
def test_a_row_loader_reports_and_hands_out_as_before(options: dict[str, Any]) -> None:
    loader: Any = DataLoader(Squares(7), batch_size=3, **options)
    loader.__class__ = row_loader_class(RowLoader, type(loader))
    loader._row_listener = ledger = Ledger()
    for number in (1, 2):
        ledger.events.clear()
        assert [batch.tolist() for batch in loader] == [[0, 1, 4], [9, 16, 25], [36]]
        assert ledger.events == ["before", (number, [0, 1, 2]), (number, [3, 4, 5]), (number, [6]), (number, "end")]
    assert isinstance(loader, DataLoader)
    assert isinstance(loader.dataset, Squares)
    assert plain_class(loader) is DataLoader
    with pytest.raises(UnsupportedError, match="attached"):
        next(with_rows(loader))


def test_copies_and_pickles_of_a_row_loader_are_plain() -> None:
    loader: Any = DataLoader(Squares(7), batch_size=3)
    loader.__class__ = row_loader_class(RowLoader, type(loader))
    loader._row_listener = Ledger()
    for plain in (copy.copy(loader), copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))):
        assert type(plain) is DataLoader
        assert [batch.tolist() for batch in plain] == [[0, 1, 4], [9, 16, 25], [36]]
    assert loader._row_listener.events == []


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        return itertools.count()


class Lazy(DataLoader):
    def __iter__(self) -> Any:
        yield from super().__iter__()


@pytest.mark.parametrize(
    ("loader", "cure"),
    [
        (DataLoader(Endless(), batch_size=2), "map-style"),
        (DataLoader(Squares(), batch_size=None), "batch_size"),
        (DataLoader({"a": 1, "b": 2}, batch_size=2, sampler=["a", "b"]), "positions"),
        ([1, 2, 3], "DataLoader"),
        (Lazy(Squares(), batch_size=2), "plain DataLoader"),
    ],
)
def test_what_has_no_rows_is_refused(loader: Any, cure: str) -> None:
    with pytest.raises(UnsupportedError, match=cure):
        list(with_rows(loader))


class Pipeline:
    def iter_rows(self) -> Any:
        yield RowBatch(np.array([4, 2]), "batch")


def test_a_pipeline_that_knows_its_rows_is_a_row_source() -> None:
    ((rows, batch),) = with_rows(Pipeline())
    assert (rows.tolist(), batch) == ([4, 2], "batch")


class Frame(Dataset[int]):
    """A table's wrapper; data frames have a method of this name."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, row: int) -> int:
        return 10 * row

    def iter_rows(self) -> Iterator[Any]:
        raise AssertionError("a map-style dataset is read by its rows")


def test_a_map_style_dataset_may_have_a_method_of_any_name() -> None:
    found = [(rows.tolist(), batch.tolist()) for rows, batch in with_rows(DataLoader(Frame(), batch_size=2))]
    assert found == [([0, 1], [0, 10]), ([2, 3], [20, 30])]
