"""A loader that reports its rows is the same loader still."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from torch.utils.data import DataLoader

from prunesampler.capture.row_loader import RowLoader, plain_class, row_loader_class, with_rows
from prunesampler.errors import UnsupportedError
from tests.helpers.squares import GRID, Squares


class Ledger:
    def __init__(self) -> None:
        self.passes = 0
        self.events: list[Any] = []

    def before_pass(self) -> None:
        self.events.append("before")

    def started(self) -> int:
        self.passes += 1
        return self.passes

    def fetched(self, token: int, rows: Any, batch: Any) -> None:
        assert (rows**2).tolist() == batch.tolist()
        self.events.append((token, rows.tolist()))

    def exhausted(self, token: int) -> None:
        self.events.append((token, "end"))


@pytest.mark.parametrize("options", GRID[:3], ids=str)
def test_a_row_loader_reports_and_hands_out_as_before(options: dict[str, Any]) -> None:
    loader: Any = DataLoader(Squares(7), batch_size=3, **options)
    loader.__class__ = row_loader_class(RowLoader, type(loader))
    loader._row_listener = ledger = Ledger()
    for number in (1, 2):
        ledger.events.clear()
        assert [batch.tolist() for batch in loader] == [[0, 1, 4], [9, 16, 25], [36]]
        assert ledger.events == [
            "before",
            (number, [0, 1, 2]),
            (number, [3, 4, 5]),
            (number, [6]),
            (number, "end"),
        ]
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
