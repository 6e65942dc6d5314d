"""A dataset that tells which of its rows a batch holds, and loaders of all kinds."""

from __future__ import annotations

from torch.utils.data import Dataset


class Squares(Dataset):
    """Row i is i², so that a batch tells which rows it holds."""

    def __init__(self, n: int = 23) -> None:
        self.n = n
        self.offset = 0

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> int:
        return i * i + self.offset


class SquaresAtOnce(Squares):
    def __getitems__(self, indices: list[int]) -> list[int]:
        return [i * i for i in indices]


GRID = [
    {"num_workers": workers, "multiprocessing_context": context, "persistent_workers": persistent, "in_order": order}
    for workers, context, persistent, order in [
        (0, None, False, True),
        (2, None, False, True),
        (2, None, True, True),
        (2, None, False, False),
        (1, "forkserver", False, True),
    ]
]
