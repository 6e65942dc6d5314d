"""What all ranks have seen up to the last merge, on the host."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from prunesampler.errors import ArgumentError, StateError
from prunesampler.tables.agreement import spearman
from prunesampler.tables.score_table import ScoreTable
from prunesampler.tracking.epoch_buffers import BAD_CLASS, BAD_ROW, CHANGED_LABEL, Share
from prunesampler.tracking.ranks import Group

__all__ = ["Reduction", "Totals"]

Reduction = Literal["mean", "last"]


class Totals:
    """Merged sums and counts, held by rank 0; every rank holds the merged flags and labels.

    Of scores that are averaged, those of every other epoch (the first, the third, …) are summed on their own too: how
    far the two halves of the epochs lie apart tells how far a score can be trusted. That makes 8 bytes a row for each
    score and 4 more, on the host of rank 0.

    Attributes:
        epochs: merges that brought presentations; counted by rank 0.
        followed: whether forgetting was followed.
        presentations: (N,) int32.
        forgetting_events: (N,) int32, or None.
        flags: (N,) uint8, learned << 1 | correct at the last presentation, or None.
        labels: (N,) int32, −1 for none.

    >>> share, totals = Share(3, ("el2n",), forgetting=False), Totals(3, ("el2n",), "mean", forgetting=False)
    >>> share.add(torch.tensor([0, 2, 0]), {"el2n": torch.tensor([0.5, 0.25, 1.0])})
    >>> totals.merge(share, Group())
    >>> totals.value("el2n").tolist()
    [0.75, nan, 0.25]
    """

    def __init__(
        self, num_rows: int, scores: Iterable[str], reduction: Reduction, *, forgetting: bool, first: bool = True
    ) -> None:
        self.epochs, self.followed = 0, False
        self._num_rows, self._reduction, self._first = num_rows, reduction, first
        size = self._size = num_rows if first else 0  # ranks above 0 hand their sums in and keep none
        self._scores = tuple(scores)
        self._halved = self._scores if reduction == "mean" else ()
        self._sums = {name: self._column() for name in self._scores}
        self._counts: dict[str, Tensor] = {}
        self._odd_sums = {name: self._column() for name in self._halved}
        self._odd_presentations = torch.zeros(size, dtype=torch.int32) if self._halved else None
        self.presentations = torch.zeros(size, dtype=torch.int32)
        self.forgetting_events = torch.zeros(size, dtype=torch.int32) if forgetting else None
        self.flags = torch.zeros(num_rows, dtype=torch.uint8) if forgetting else None
        self.labels = torch.full((num_rows,), -1, dtype=torch.int32)

    def _column(self) -> Tensor:
        return torch.zeros(self._size, dtype=torch.float64)

    def _allow(self, name: str) -> None:
        self._sums[name] = self._column()
        self._counts[name] = torch.zeros(self._size, dtype=torch.int32)

    def merge(self, share: Share, group: Group) -> None:
        """Add every rank's share, or nothing. A collective; all ranks raise together.

        Of a row that several ranks have seen, the lowest one's counts are added.

        Raises:
            ArgumentError: a row or class index on the device was out of its range.
            StateError: a row's label changed.
        """
        labels = share.labels.to("cpu", copy=True)
        merged = group.max_(labels.clone())
        problems = share.problems.to("cpu", copy=True)
        conflict = ((labels >= 0) & (labels != merged)).nonzero()
        if len(conflict):
            problems[CHANGED_LABEL] = conflict[-1, 0]
        _refuse(group.max_(problems), self._num_rows)
        self.labels = merged
        self._merge_columns(share, group)

    def _merge_columns(self, share: Share, group: Group) -> None:
        recorded = group.union(share.counts)
        seen = share.presentations.cpu()
        others = ~group.owners(seen)

        def summed(mine: Tensor) -> Tensor:
            return group.sum_(mine.cpu().masked_fill(others, 0))

        presented = summed(seen)
        sums = {name: summed(share.sums[name]) for name in self._scores}
        counts = {}
        if share.packed is not None:
            self.followed = group.any(share.followed) or self.followed
            self._merge_flags(share.packed.cpu(), others, group)
            events = summed(share.packed.cpu() >> 2)
        for name in recorded:
            mine = share.counts[name].cpu() if name in share.counts else torch.zeros_like(seen)
            others = ~group.owners(mine)
            sums[name] = summed(share.sums[name] if name in share.counts else torch.zeros(len(seen)))
            counts[name] = summed(mine)
        if group.rank == 0:
            self.epochs += bool(presented.any())
            self.presentations += presented
            if self.epochs % 2 and self._odd_presentations is not None:
                self._odd_presentations += presented
                for name, odd in self._odd_sums.items():
                    odd += sums[name]
            if self.forgetting_events is not None:
                self.forgetting_events += events
            for name, total in sums.items():
                self._add(name, total, counts.get(name, presented), counted=name in counts)

    def _merge_flags(self, packed: Tensor, others: Tensor, group: Group) -> None:
        assert self.flags is not None
        merged = group.max_(packed.to(torch.int8).bitwise_and_(3).masked_fill_(others, -1))
        self.flags = torch.where(merged < 0, self.flags.to(torch.int8), merged).to(torch.uint8)

    def _add(self, name: str, total: Tensor, count: Tensor, *, counted: bool) -> None:
        if name not in self._sums:
            self._allow(name)
        if counted:
            self._counts[name] += count
        if self._reduction == "mean":
            self._sums[name] += total
        else:
            self._sums[name] = torch.where(count > 0, total / count.double(), self._sums[name])

    def _seen(self, name: str) -> Tensor:
        return self._counts.get(name, self.presentations)

    @property
    def names(self) -> list[str]:
        """Columns that have a value."""
        return list(self._sums)

    def value(self, name: str) -> Tensor:
        """(N,) float32, a column's mean, or that of the last epoch in which the row was seen; NaN for no value."""
        seen = self._seen(name)
        value = self._sums[name] / seen if self._reduction == "mean" else self._sums[name]
        return torch.where(seen > 0, _finite(value), torch.nan)

    def _halves(self, name: str) -> tuple[Tensor, Tensor]:
        """(N,) float64, the means over the odd and over the even epochs; NaN for no value."""
        assert self._odd_presentations is not None
        odd, seen = self._odd_sums[name], self._odd_presentations
        return odd / seen, (self._sums[name] - odd) / (self.presentations - seen)

    def non_finite(self) -> dict[str, int]:
        """By column, how many rows were seen and have no value all the same; columns without such rows left out."""
        counts = {name: int((self.value(name).isnan() & (self._seen(name) > 0)).sum()) for name in self._sums}
        return {name: count for name, count in counts.items() if count}

    def table(self, *, kind: Literal["online", "rescored"], **identity: Any) -> ScoreTable:
        """All of it as a table; ``identity`` is handed on (keys, fingerprint, provenance).

        After two epochs each averaged score has a column ``<score>_spread``, the distance between its mean over the
        odd and its mean over the even epochs (NaN for a row that was not seen in both), and its protocol says as
        ``split_half`` by what Spearman's correlation the two agree over all rows.

        Raises:
            StateError: nothing was merged yet.
        """
        counts = (self.presentations, *self._counts.values())
        if not any(bool(count.any()) for count in counts):
            raise StateError("nothing was scored yet: call end_epoch() after the batches of an epoch, then table()")
        protocol: dict[str, Any] = {"kind": kind, "epochs": self.epochs, "reduction": self._reduction, "runs": 1}
        # A table of recorded columns alone has no empty ones beside them.
        names = [name for name in self._sums if name in self._counts or bool(self.presentations.any())]
        scores = {name: self.value(name).numpy() for name in names}
        protocols = dict.fromkeys(scores, protocol)
        for name in self._halved if self.epochs > 1 else ():
            odd, even = self._halves(name)
            agreement = spearman(_finite(odd).numpy(), _finite(even).numpy())
            protocols[name] = protocol if math.isnan(agreement) else {**protocol, "split_half": agreement}
            scores[f"{name}_spread"] = _finite((odd - even).abs()).numpy()
            protocols[f"{name}_spread"] = {**protocols[name], "spread_of": name}
        columns: dict[str, Any] = {}
        if self.followed and self.forgetting_events is not None and self.flags is not None:
            protocols["forgetting"] = protocol
            columns = {
                "forgetting_events": self.forgetting_events.numpy(),
                "learned": (self.flags & 2).bool().numpy(),
            }
        return ScoreTable(
            scores,
            num_rows=self._num_rows,
            labels=self.labels.numpy() if bool((self.labels >= 0).any()) else None,
            presentations=self.presentations.numpy(),
            protocols=protocols,
            **columns,
            **identity,
        )

    def state_dict(self) -> dict[str, Any]:
        """Copies of everything; ``held`` is None on ranks above 0."""
        held = {
            "sums": {name: tensor.clone() for name, tensor in self._sums.items()},
            "counts": {name: tensor.clone() for name, tensor in self._counts.items()},
            "odd_sums": {name: tensor.clone() for name, tensor in self._odd_sums.items()},
            "odd_presentations": None if self._odd_presentations is None else self._odd_presentations.clone(),
            "presentations": self.presentations.clone(),
            "forgetting_events": None if self.forgetting_events is None else self.forgetting_events.clone(),
        }
        return {
            "epochs": self.epochs,
            "followed": self.followed,
            "flags": None if self.flags is None else self.flags.clone(),
            "labels": self.labels.clone(),
            "held": held if self._first else None,
        }

    def layout(self, recorded: Iterable[str], *, held: bool) -> dict[str, Any]:
        """What a state with these recorded columns looks like."""
        n, recorded = self._num_rows, list(recorded)
        columns = {
            "sums": dict.fromkeys((*self._scores, *recorded), (torch.float64, n)),
            "counts": dict.fromkeys(recorded, (torch.int32, n)),
            "odd_sums": dict.fromkeys(self._halved, (torch.float64, n)),
            "odd_presentations": (torch.int32, n) if self._halved else None,
            "presentations": (torch.int32, n),
            "forgetting_events": None if self.flags is None else (torch.int32, n),
        }
        return {
            "epochs": int,
            "followed": bool,
            "flags": None if self.flags is None else (torch.uint8, n),
            "labels": (torch.int32, n),
            "held": columns if held else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state whose layout was checked; on rank 0 one that holds the sums."""

        def copied(tensor: Tensor | None) -> Any:
            return None if tensor is None else tensor.clone()

        self.epochs, self.followed = state["epochs"], state["followed"]
        self.flags, self.labels = copied(state["flags"]), copied(state["labels"])
        if self._first:
            held = state["held"]
            self._sums = {name: copied(tensor) for name, tensor in held["sums"].items()}
            self._counts = {name: copied(tensor) for name, tensor in held["counts"].items()}
            self._odd_sums = {name: copied(tensor) for name, tensor in held["odd_sums"].items()}
            self._odd_presentations = copied(held["odd_presentations"])
            self.presentations = copied(held["presentations"])
            self.forgetting_events = copied(held["forgetting_events"])


def _finite(values: Tensor) -> Tensor:
    """float32, NaN for what is not finite as such."""
    values = values.float()
    return torch.where(values.isfinite(), values, torch.nan)


def _refuse(problems: Tensor, num_rows: int) -> None:
    rows = problems.tolist()
    if rows[BAD_ROW] >= 0:
        raise ArgumentError("rows", f"must be in [0, {num_rows})", "rows outside of it, on the device")
    if rows[BAD_CLASS] >= 0:
        raise ArgumentError("targets", "must be class indices in [0, classes)", f"another one at row {rows[BAD_CLASS]}")
    if rows[CHANGED_LABEL] >= 0:
        raise StateError(
            f"row {rows[CHANGED_LABEL]} came with two different labels: the dataset changed while it was being "
            "scored, or rows do not name the same samples in every epoch"
        )
