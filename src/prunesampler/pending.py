"""Batches that wait to be scored together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Batch", "Pending"]

Batch = tuple[Tensor, Tensor, Tensor]
_BATCHES, _LOGITS = 16, 1 << 20


class Pending:
    """Copies of rows, logits and targets, side by side in memory that is used again and again.

    Scoring costs some thirty kernel launches however small the batch is: sixteen batches share them, or as many as
    have a million logits. Fresh memory for each would cost more than the scoring itself: the system hands it out page
    by page.

    >>> pending, batch = Pending(), (torch.tensor([7]), torch.zeros(1, 10), torch.tensor([3]))
    >>> [len(pending.add(*batch)) for _ in range(16)] == [0] * 15 + [1]
    True
    """

    def __init__(self) -> None:
        self._room: Batch | tuple[()] = ()
        self._filled = self._size = 0
        self._kind: tuple[Any, ...] = ()

    def add(self, rows: Tensor, logits: Tensor, targets: Tensor) -> list[Batch]:
        """Keep a copy of (B,), (B, C), (B,).

        Returns:
            What is to be scored now, oldest first; mostly nothing. It is the caller's, to write to as well, until the
            next call.
        """
        batch = rows, logits, targets
        kind = tuple((part.device, part.dtype, part.shape[1:]) for part in batch)
        end = self._filled + len(rows)
        ready = []
        if kind != self._kind or end > self._size:
            ready = self.take()
            end = len(rows)
            self._size = max(end, min(_BATCHES * end, _LOGITS // max(1, logits.shape[1])))
            self._kind = kind
            with torch.inference_mode(False):
                self._room = tuple(part.new_empty((self._size, *part.shape[1:])) for part in batch)  # type: ignore[assignment]
        for room, part in zip(self._room, batch, strict=True):
            room[self._filled : end].copy_(part)
        self._filled = end
        if end + len(rows) > self._size:
            ready += self.take()
        return ready

    def take(self) -> list[Batch]:
        """All that waits, joined to one batch; an empty list where nothing does."""
        filled, self._filled = self._filled, 0
        if not filled:
            return []
        rows, logits, targets = (room[:filled] for room in self._room)
        return [(rows, logits, targets)]
