"""What all ranks have seen up to the last merge, on the host."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from prunesampler.errors import ArgumentError, StateError
from prunesampler.scores.registry import SCORES
from prunesampler.tables.agreement import spearman
from prunesampler.tables.score_table import ScoreTable
from prunesampler.tracking.epoch_buffers import BAD_CLASS, BAD_ROW, CHANGED_LABEL, EpochBuffers
from prunesampler.tracking.ranks import Group
from prunesampler.tracking.state import copied

__all__ = ["Reduction", "Totals"]

Reduction = Literal["mean", "last"]


class Totals:
    """Merged sums and counts, held by rank 0; every rank holds the merged flags and labels.

    Of averaged scores the sums over the odd epochs (the first, the third, …) are kept too: how far the two halves of
    the epochs lie apart tells how far a score can be trusted.

    Attributes:
        epochs: merges that brought presentations; counted by rank 0.
        followed: whether forgetting was followed.
        presentations: (N,) int32.
        forgetting_events: (N,) int32, or None.
        flags: (N,) uint8, learned << 1 | correct at the last presentation, or None.
        labels: (N,) int32, −1 for none.

    >>> buffers, totals = EpochBuffers(3, ["el2n"], forgetting=False), Totals(3, ["el2n"], "mean", forgetting=False)
    >>> buffers.add(torch.tensor([0, 2, 0]), {"el2n": torch.tensor([0.5, 0.25, 1.0])})
    >>> totals.merge(buffers, Group())
    >>> totals.value("el2n").tolist()
    [0.75, nan, 0.25]
    """

    def __init__(
        self, num_rows: int, scores: Iterable[str], reduction: Reduction, *, forgetting: bool, first: bool = True
    ) -> None:
        self.epochs, self.followed = 0, False
        self._num_rows, self._reduction, self._first = num_rows, reduction, first
        self._scores = tuple(scores)
        self._halved = self._scores if reduction == "mean" else ()
        self._sums = {name: self._zeros(torch.float64) for name in self._scores}
        self._counts: dict[str, Tensor] = {}
        self._odd_sums = {name: self._zeros(torch.float64) for name in self._halved}
        self._odd_presentations = self._zeros(torch.int32) if self._halved else None
        self.presentations = self._zeros(torch.int32)
        self.forgetting_events = self._zeros(torch.int32) if forgetting else None
        self.flags = torch.zeros(num_rows, dtype=torch.uint8) if forgetting else None
        self.labels = torch.full((num_rows,), -1, dtype=torch.int32)

    def _zeros(self, dtype: torch.dtype) -> Tensor:
        # Ranks above 0 hand their sums in and keep none.
        return torch.zeros(self._num_rows if self._first else 0, dtype=dtype)

    def merge(self, buffers: EpochBuffers, group: Group) -> None:
        """Add every rank's buffers, or nothing. A collective; all ranks raise together.

        Of a row that several ranks have seen, the lowest one's counts are added.

        Raises:
            ArgumentError: a row or class index on the device was out of its range.
            StateError: a row's label changed.
        """
        labels = buffers.labels.to("cpu", copy=True)
        merged = group.max_(labels.clone())
        problems = buffers.problems.to("cpu", copy=True)
        conflict = ((labels >= 0) & (labels != merged)).nonzero()
        if len(conflict):
            problems[CHANGED_LABEL] = conflict[-1, 0]
        _refuse(group.max_(problems), self._num_rows)
        self.labels = merged
        self._merge_columns(buffers, group)

    def _merge_columns(self, buffers: EpochBuffers, group: Group) -> None:
        def summed(mine: Tensor) -> Tensor:
            return group.sum_(mine.cpu().masked_fill(others, 0))

        seen = buffers.presentations.cpu()
        nothing = torch.zeros_like(seen)
        recorded = group.union(buffers.counts)
        others = ~group.owners(seen)
        presented = summed(seen)
        sums = {name: summed(buffers.sums[name]) for name in self._scores}
        events = None
        if buffers.packed is not None:
            self.followed = group.any(buffers.followed) or self.followed
            self._merge_flags(buffers.packed.cpu(), others, group)
            events = summed(buffers.packed.cpu() >> 2)
        counts = {}
        for name in recorded:
            mine = buffers.counts.get(name, nothing).cpu()
            others = ~group.owners(mine)
            sums[name], counts[name] = summed(buffers.sums.get(name, nothing.float())), summed(mine)
        if group.rank > 0:
            return
        self.epochs += bool(presented.any())
        self.presentations += presented
        if self.epochs % 2 and self._odd_presentations is not None:
            self._odd_presentations += presented
            for name, odd in self._odd_sums.items():
                odd += sums[name]
        if events is not None and self.forgetting_events is not None:
            self.forgetting_events += events
        for name, total in sums.items():
            if name in counts:
                self._sums.setdefault(name, self._zeros(torch.float64))
                self._counts[name] = self._counts.get(name, 0) + counts[name]
            if self._reduction == "mean":
                self._sums[name] += total
            else:
                count = counts.get(name, presented)
                self._sums[name] = torch.where(count > 0, total / count.double(), self._sums[name])

    def _merge_flags(self, packed: Tensor, others: Tensor, group: Group) -> None:
        assert self.flags is not None
        merged = group.max_(packed.to(torch.int8).bitwise_and_(3).masked_fill_(others, -1))
        self.flags = torch.where(merged < 0, self.flags.to(torch.int8), merged).to(torch.uint8)

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

    def non_finite(self) -> dict[str, int]:
        """By column, how many rows were seen and have no value all the same; columns without such rows left out."""
        counts = {name: int((self.value(name).isnan() & (self._seen(name) > 0)).sum()) for name in self._sums}
        return {name: count for name, count in counts.items() if count}

    def table(self, *, kind: Literal["online", "rescored"], **identity: Any) -> ScoreTable:
        """All of it as :meth:`ScoreTracker.table` describes it; ``identity``: keys, fingerprint, provenance.

        Raises:
            StateError: nothing was merged yet.
        """
        counts = (self.presentations, *self._counts.values())
        if not any(bool(count.any()) for count in counts):
            raise StateError("nothing was scored yet: after the batches of an epoch call end_epoch(), then table()")
        protocol: dict[str, Any] = {"kind": kind, "epochs": self.epochs, "reduction": self._reduction, "runs": 1}
        # A table of recorded columns alone has no empty ones beside them.
        names = [name for name in self._sums if name in self._counts or bool(self.presentations.any())]
        scores = {name: self.value(name).numpy() for name in names}
        protocols = dict.fromkeys(scores, protocol)
        for name in self._halved if self.epochs > 1 else ():
            assert self._odd_presentations is not None
            odd, even = self._odd_sums[name], self._sums[name] - self._odd_sums[name]
            odd, even = odd / self._odd_presentations, even / (self.presentations - self._odd_presentations)
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
            directions={name: SCORES[name].direction for name in scores if name in SCORES},
            **columns,
            **identity,
        )

    def state_dict(self) -> dict[str, Any]:
        """Copies of everything; ``held`` is None on ranks above 0."""
        held = {
            "sums": self._sums,
            "counts": self._counts,
            "odd_sums": self._odd_sums,
            "odd_presentations": self._odd_presentations,
            "presentations": self.presentations,
            "forgetting_events": self.forgetting_events,
        }
        everyones = {"epochs": self.epochs, "followed": self.followed, "flags": self.flags, "labels": self.labels}
        return copied({**everyones, "held": held if self._first else None})  # type: ignore[no-any-return]

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
        state = copied(state)
        self.epochs, self.followed = state["epochs"], state["followed"]
        self.flags, self.labels = state["flags"], state["labels"]
        if self._first:
            held = state["held"]
            self._sums, self._counts, self._odd_sums = held["sums"], held["counts"], held["odd_sums"]
            self._odd_presentations, self.presentations = held["odd_presentations"], held["presentations"]
            self.forgetting_events = held["forgetting_events"]


def _finite(values: Tensor) -> Tensor:
    """float32, NaN for what is not finite as such."""
    values = values.float()
    return torch.where(values.isfinite(), values, torch.nan)


def _refuse(problems: Tensor, num_rows: int) -> None:
    rows = problems.tolist()
    if rows[BAD_ROW] >= 0:
        raise ArgumentError("rows", f"must be in [0, {num_rows})", "other ones on the device")
    if rows[BAD_CLASS] >= 0:
        raise ArgumentError("targets", "must be class indices in [0, classes)", f"another one at row {rows[BAD_CLASS]}")
    if rows[CHANGED_LABEL] >= 0:
        raise StateError(
            f"row {rows[CHANGED_LABEL]} came with two different labels: the dataset changed during scoring, or a row "
            "is not the same sample in every epoch"
        )
