"""What one rank has seen since the last merge: one value per row and column, on the device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["BAD_CLASS", "BAD_ROW", "CHANGED_LABEL", "Share"]

BAD_ROW, BAD_CLASS, CHANGED_LABEL = range(3)


class Share:
    """Sums and counts of one rank, one epoch. Nothing here waits for the device.

    What belongs to a row lies side by side, so that a presentation, which comes in no order, reads memory once.

    Attributes:
        sums: (N,) float32 by score.
        counts: (N,) int32 by recorded column: those that are not counted by presentations.
        presentations: (N,) int32.
        packed: (N,) int32, forgetting events << 2 | learned << 1 | correct at the last presentation; the two flags
            outlive the epoch. None where nobody asked for forgetting.
        labels: (N,) int32, −1 before the first presentation; outlives the epoch.
        problems: (3,) int64 by kind of problem: the highest row that has it, −1 for none.
        followed: whether any presentation said if it was correct.

    >>> share = Share(4, ("el2n",), forgetting=True)
    >>> share.add(torch.tensor([2, 2]), {"el2n": torch.tensor([0.5, 1.0])}, torch.tensor([True, False]))
    >>> share.sums["el2n"].tolist(), (share.packed >> 2).tolist()
    ([0.0, 0.0, 1.5, 0.0], [0, 0, 1, 0])
    """

    def __init__(self, num_rows: int, scores: Iterable[str], *, forgetting: bool) -> None:
        self.num_rows = num_rows
        self.device = torch.device("cpu")
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self._scores, self._forgetting = tuple(scores), forgetting
        self._arrange(torch.zeros(num_rows, 2 + forgetting + len(self._scores), dtype=torch.int32))
        self.labels.fill_(-1)
        self.problems = torch.full((3,), -1)
        self.followed = False

    def _arrange(self, columns: Tensor) -> None:
        """Name the columns of (N, columns) int32."""
        self._columns = columns
        self.presentations, self.labels, *others = columns.unbind(1)
        self.packed = others[0] if self._forgetting else None
        floats = columns.view(torch.float32)[:, 2 + self._forgetting :]
        recorded = {name: self.sums[name] for name in self.counts}
        self.sums = {**dict(zip(self._scores, floats.unbind(1), strict=True)), **recorded}

    @property
    def empty(self) -> bool:
        """Whether nothing was added since the last merge. Waits for the device."""
        counts = (self.presentations, *self.counts.values())
        return not any(bool(count.any()) for count in counts) and bool((self.problems < 0).all())

    def move(self, device: torch.device) -> None:
        """Put the buffers on ``device``."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=device.type == "cuda")

        with torch.inference_mode(False):
            self.sums = {name: moved(self.sums[name]) for name in self.counts}  # the others are moved below
            self.counts = {name: moved(tensor) for name, tensor in self.counts.items()}
            self.problems = moved(self.problems)
            self._arrange(moved(self._columns))
        self.device = device

    def add(
        self,
        rows: Tensor,
        scores: Mapping[str, Tensor],
        correct: Tensor | None = None,
        targets: Tensor | None = None,
        classes: int | None = None,
    ) -> None:
        """Presentations, in the order in which they happened; a row may come several times.

        Args:
            rows: (B,) int64, B >= 1, on the CPU checked already; this and all that follows on the share's device.
            scores: (B,) floats by name: all that the share was made with.
            correct: (B,) bool.
            targets: (B,) class indices, below 0 for none.
            classes: number of classes that they must be below; None does not look.
        """
        rows = self._checked(rows)
        distinct = self._present(rows)
        for name, values in scores.items():
            self.sums[name].index_add_(0, rows, values.float())
        if targets is not None:
            if classes is not None:
                self._note(BAD_CLASS, (targets < 0) | (targets >= classes), rows)
            self._label(rows, targets.clamp(min=-1).int())
        if correct is not None and self.packed is not None:
            self.followed = True
            self._follow(self.packed, rows, correct, distinct)

    def _present(self, rows: Tensor) -> bool:
        """Count them; whether all are known to be distinct, which only the CPU can say without waiting."""
        before = self.presentations.index_select(0, rows)
        self.presentations.index_add_(0, rows, torch.ones_like(before))
        return before.is_cpu and torch.equal(self.presentations.index_select(0, rows), before.add_(1))

    def _follow(self, packed: Tensor, rows: Tensor, correct: Tensor, distinct: bool) -> None:
        if distinct:
            now = correct.int()
            before = packed.index_select(0, rows).bitwise_and_(1)
        else:
            rows, order = rows.sort(stable=True)  # presentations of one row stay in their order
            now = correct.index_select(0, order).int()
            before = packed.index_select(0, rows).bitwise_and_(1)
            before[1:] = torch.where(rows[1:] == rows[:-1], now[:-1], before[1:])
        # The changes of a row's last bit add up to its change over the batch, so one pass serves repeated rows.
        packed.index_add_(0, rows, (now - before).add_((before > now).int(), alpha=4))
        packed.scatter_reduce_(0, rows, packed.index_select(0, rows).bitwise_or_(now << 1), "amax")

    def _label(self, rows: Tensor, labels: Tensor) -> None:
        known = self.labels.index_select(0, rows)
        if known.is_cpu and torch.equal(known, labels):
            return
        self.labels.scatter_reduce_(0, rows, torch.where(known < 0, labels, known), "amax")
        self._note(CHANGED_LABEL, self.labels.index_select(0, rows) != labels, rows)

    def record(self, rows: Tensor, name: str, values: Tensor) -> None:
        """Values of a column that presentations do not count: (B,) each, on the device, B >= 1."""
        rows = self._checked(rows)
        if name not in self.counts:
            self.allow(name)
        self.sums[name].index_add_(0, rows, values.float())
        self.counts[name].index_add_(0, rows, torch.ones_like(rows, dtype=torch.int32))

    def allow(self, name: str) -> None:
        """Make room for a recorded column."""
        with torch.inference_mode(False):
            self.sums[name] = torch.zeros(self.num_rows, device=self.device)
            self.counts[name] = torch.zeros(self.num_rows, dtype=torch.int32, device=self.device)

    def _checked(self, rows: Tensor) -> Tensor:
        if rows.is_cpu:
            return rows
        # An index outside the buffers would be a device assert, which kills the process.
        inside = rows.clamp(0, self.num_rows - 1)
        self._note(BAD_ROW, inside != rows, inside)
        return inside

    def _note(self, problem: int, bad: Tensor, rows: Tensor) -> None:
        if bad.is_cpu and not bad.any():
            return
        noted = self.problems[problem]
        noted.copy_(torch.maximum(noted, torch.where(bad, rows, -1).amax()))

    def clear(self, flags: Tensor | None, labels: Tensor) -> None:
        """Begin an epoch with the (N,) flags and labels that stand at its beginning."""
        for name in self.counts:
            del self.sums[name]
        self.counts.clear()
        for tensor in (*self.sums.values(), self.presentations):
            tensor.zero_()
        if self.packed is not None and flags is not None:
            self.packed.copy_(flags)
        self.labels.copy_(labels)
        self.problems.fill_(-1)
        self.followed = False

    def state_dict(self) -> dict[str, Any]:
        """Copies of all buffers, on the CPU."""

        def copied(tensor: Tensor) -> Tensor:
            return tensor.detach().to("cpu", copy=True)

        return {
            "sums": {name: copied(tensor) for name, tensor in self.sums.items()},
            "counts": {name: copied(tensor) for name, tensor in self.counts.items()},
            "presentations": copied(self.presentations),
            "packed": None if self.packed is None else copied(self.packed),
            "labels": copied(self.labels),
            "problems": copied(self.problems),
            "followed": self.followed,
        }

    def layout(self, recorded: Iterable[str]) -> dict[str, Any]:
        """What a state with these recorded columns looks like."""
        n, recorded = self.num_rows, list(recorded)
        scores = [name for name in self.sums if name not in self.counts]
        return {
            "sums": dict.fromkeys((*scores, *recorded), (torch.float32, n)),
            "counts": dict.fromkeys(recorded, (torch.int32, n)),
            "presentations": (torch.int32, n),
            "packed": None if self.packed is None else (torch.int32, n),
            "labels": (torch.int32, n),
            "problems": (torch.int64, 3),
            "followed": bool,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state whose layout was checked, after :meth:`clear`."""
        for name in state["counts"]:
            self.allow(name)
            self.counts[name].copy_(state["counts"][name])
        for name in self.sums:
            self.sums[name].copy_(state["sums"][name])
        self.presentations.copy_(state["presentations"])
        self.labels.copy_(state["labels"])
        self.problems.copy_(state["problems"])
        self.followed = state["followed"]
        if self.packed is not None:
            self.packed.copy_(state["packed"])
