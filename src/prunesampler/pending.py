"""Batches that wait to be scored together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Batch", "Pending"]

Batch = tuple[Tensor, Tensor, Tensor]
_BATCHES, _LOGITS = 16, 1 << 20


class Pending:
    """Copies of rows, logits and targets, joined when there are enough of them.

    Scoring costs some thirty kernel launches however small the batch is: sixteen batches share them, or as many as
    have a million logits.

    >>> pending, batch = Pending(), (torch.tensor([7]), torch.zeros(1, 10), torch.tensor([3]))
    >>> [len(pending.add(*batch)) for _ in range(16)] == [0] * 15 + [1]
    True
    """

    def __init__(self) -> None:
        self._batches: list[Batch] = []
        self._logits = 0
        self._kind: tuple[Any, ...] = ()

    def add(self, rows: Tensor, logits: Tensor, targets: Tensor) -> list[Batch]:
        """Keep a copy of (B,), (B, C), (B,). Returns what is to be scored now, oldest first; mostly nothing."""
        kind = (rows.device, targets.device, targets.dtype, logits.device, logits.dtype, logits.shape[1])
        ready = []
        if kind != self._kind:
            ready, self._kind = self.take(), kind
        self._batches.append((rows.clone(), logits.clone(), targets.clone()))
        self._logits += logits.numel()
        if len(self._batches) == _BATCHES or self._logits >= _LOGITS:
            ready += self.take()
        return ready

    def take(self) -> list[Batch]:
        """All that waits, joined to one batch; an empty list where nothing does."""
        batches, self._batches, self._logits = self._batches, [], 0
        if not batches:
            return []
        rows, logits, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return [(rows, logits, targets)]
