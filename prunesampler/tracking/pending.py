"""Batches that wait to be scored together."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prunesampler.scores.digest import digest, room
from prunesampler.scores.logits import finish

__all__ = ["Pending", "Scored"]

_BATCHES = 64  # share what a batch costs however small it is
_CACHED = 1 << 17  # logits that a processor works on at once: what fits beside a copy into its cache
_LAUNCHED = 1 << 20  # logits that a GPU works on at once


class Scored(NamedTuple):
    """Batches after one another: (B,) rows, scores by name, targets; and the number of classes."""

    rows: Tensor
    values: dict[str, Tensor]
    targets: Tensor
    classes: int


class Pending:
    """Copies of what batches were, until sixty-four are scored together.

    Of the logits no more than a cacheful waits: then each sample's become the few numbers that its scores follow from.

    Args:
        names: scores, as for :func:`~prunesampler.scores.logits.compute`.

    >>> pending, batch = Pending(("margin",)), (torch.tensor([7]), torch.zeros(1, 10), torch.tensor([3]))
    >>> [len(pending.add(*batch)) for _ in range(64)] == [0] * 63 + [1]
    True
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._kind: tuple[Any, ...] = ()
        self._limit = self._size = 0
        self._waiting: list[Tensor] = []  # targets of the logits that are not digested
        self._rows: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._digests: list[dict[str, Tensor]] = []

    def add(self, rows: Tensor, logits: Tensor, targets: Tensor) -> list[Scored]:
        """Keep what is needed of (B,) int64, (B, C) and (B,), checked already, B >= 1.

        Returns:
            What is scored now, oldest first; mostly nothing.
        """
        size, classes = logits.shape
        on_cpu = logits.is_cpu
        kind = (classes, logits.dtype, logits.device, rows.device, targets.device)
        ready = []
        if kind != self._kind or (size > self._limit and not on_cpu):
            ready = self.take()
            self._kind = kind
            self._limit = (_CACHED if on_cpu else max(_LAUNCHED, logits.numel())) // classes or 1
            with torch.inference_mode(False):
                self._logits = logits.new_empty(self._limit, classes)
                self._memory = room(logits, self._limit)
        large = 2 * size > self._limit
        if large or self._size + size > self._limit:
            self._digest_waiting()
        targets = targets.clone() if targets.dtype == torch.int64 else targets.long()
        self._rows.append(rows.clone())
        self._targets.append(targets)
        if large:
            for part, indices in zip(logits.split(self._limit), targets.split(self._limit), strict=True):
                self._digest(part, indices)
        else:
            self._logits[self._size : self._size + size] = logits
            self._waiting.append(targets)
            self._size += size
        if len(self._rows) == _BATCHES:
            ready += self.take()
        return ready

    def _digest(self, logits: Tensor, targets: Tensor) -> None:
        self._digests.append(digest(self._names, logits, _moved(targets, logits.device), self._memory))

    def _digest_waiting(self) -> None:
        if self._size:
            self._digest(self._logits[: self._size], _joined(self._waiting))
            self._waiting.clear()
            self._size = 0

    @torch.no_grad()
    def take(self) -> list[Scored]:
        """Scores of all that waits, joined to one batch, beside its logits; an empty list where nothing does."""
        if not self._rows:
            return []
        self._digest_waiting()
        numbers = {name: _joined([each[name] for each in self._digests]) for name in self._digests[0]}
        rows, targets = (_moved(_joined(each), numbers["label"].device) for each in (self._rows, self._targets))
        for waiting in (self._rows, self._targets, self._digests):
            waiting.clear()
        classes = self._kind[0]
        return [Scored(rows, finish(self._names, numbers, targets, classes), targets, classes)]


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.is_cpu and device.type == "cuda":
        tensor = tensor.pin_memory()  # a copy of more than 64 kB from other memory waits for the device
    return tensor.to(device, non_blocking=device.type != "cpu")
