"""What all ranks have seen up to the last merge, on the host."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor

from prunesampler.errors import ArgumentError, StateError
from prunesampler.scores.dynamics import WINDOW, slide
from prunesampler.scores.registry import SCORES
from prunesampler.tables.agreement import spearman
from prunesampler.tables.score_table import ScoreTable
from prunesampler.tracking.epoch_buffers import CHANGED_LABEL, SCORED, EpochBuffers
from prunesampler.tracking.ranks import Group
from prunesampler.tracking.state import copied

Reduction = Literal["mean", "last", "running"]

_EVERYONES = ("epochs", "followed", "flags", "labels")
_HELD = (
    *("sums", "counts", "non_finite", "odd_sums", "odd_presentations"),
    *("presentations", "last_epoch", "forgetting_events", "earlier_events", "suggestions", "confidence"),
)
_MOST = 2  # lead: measured best of 0 to 255, and as good as the mean of the probabilities
_NEW = 0.3  # share of the newest epoch in a running mean


class Totals:
    """Merged sums and counts, held by rank 0; every rank holds the merged flags and labels.

    Of averaged scores the sums over the odd epochs (the first, the third, …) are kept too: how far the two halves of
    the epochs lie apart tells how far a score can be trusted.

    Attributes:
        epochs: merges that brought presentations; counted by rank 0.
        followed: whether forgetting was followed.
        presentations: (N,) int32.
        non_finite: (N,) int32 by recorded column, and ``SCORED`` for the scores: presentations left out of the sums.
        last_epoch: (N,) int32, the last epoch in which a row was presented, −1 for none.
        forgetting_events: (N,) int32, or None.
        recent: (10 N,) float32 by score over windows of epochs, row by row: its values in the last epochs.
        window_epochs: (N,) int32, in how many epochs a row had such values; None where there are no windows.
        earlier_events: (N,) int32, those before the present window of ``forgetting_window`` epochs; None without one.
        suggestions: (N,) int32, 1 + the suggested label << 4 | its lead in votes << 2 | how often the label was the
            answer, of late; 0 for none, None where answers are not followed. Every epoch in which a row was seen has
            one vote, and most of them win, without a count for every class (Boyer and Moore 1991, "MJRTY: a fast
            majority vote algorithm"). As a lead is at most 2, and the last two bits go up and down within 0 to 3, late
            epochs, whose models are better, overrule early ones.
        confidence: (N,) float32, the mean of the highest probability; None likewise.
        nothing_finite: whether the last merge brought presentations, none of them with a finite score.
        torn: whether a merge was broken off in the middle, so that sums and counts do not belong together.
        flags: (N,) uint8, learned << 1 | correct at the last presentation, or None.
        labels: (N,) int32, −1 for none.
    """

    def __init__(
        self,
        num_rows: int,
        scores: Iterable[str],
        reduction: Reduction,
        *,
        forgetting: bool,
        forgetting_window: int | None = None,
        answers: bool = False,
        first: bool = True,
    ) -> None:
        self.epochs, self.followed, self.torn, self.nothing_finite = 0, False, False, False
        self._window = forgetting_window
        self._num_rows, self._reduction, self._first = num_rows, reduction, first
        self._scores = tuple(scores)
        over_epochs = {name: SCORES[name] for name in self._scores if name in SCORES and SCORES[name].over_epochs}
        self._windows = {name: entry.window for name, entry in over_epochs.items() if entry.window is not None}
        self._averaged = over_epochs.keys() - self._windows.keys()  # whatever the reduction
        self._halved = tuple(name for name in self._scores if name not in self._windows) if reduction == "mean" else ()
        self.sums = {name: self._zeros(torch.float64) for name in self._scores}
        self.counts: dict[str, Tensor] = {}
        self.non_finite: dict[str, Tensor] = {}
        self.odd_sums = {name: self._zeros(torch.float64) for name in self._halved}
        self.odd_presentations = self._zeros(torch.int32) if self._halved else None
        self.recent = {name: self._zeros(torch.float32).repeat(WINDOW) for name in self._windows}
        self.window_epochs = self._zeros(torch.int32) if self._windows else None
        self.presentations = self._zeros(torch.int32)
        self.last_epoch = self._zeros(torch.int32) - 1
        self.forgetting_events = self._zeros(torch.int32) if forgetting else None
        self.earlier_events = self._zeros(torch.int32) if forgetting and forgetting_window else None
        self.suggestions = self._zeros(torch.int32) if answers else None
        self.confidence = self._zeros(torch.float32) if answers else None
        self.flags = torch.zeros(num_rows, dtype=torch.uint8) if forgetting else None
        self.labels = torch.full((num_rows,), -1, dtype=torch.int32)

    def _zeros(self, dtype: torch.dtype) -> Tensor:
        # Ranks above 0 hand their sums in and keep none.
        return torch.zeros(self._num_rows if self._first else 0, dtype=dtype)

    def merge(self, buffers: EpochBuffers, group: Group) -> None:
        """Add every rank's buffers, or nothing. A collective; all ranks raise together.

        Of a row that several ranks have seen, the lowest one's counts are added.
        """
        labels = buffers.labels.to("cpu", copy=True)
        merged = group.max_(labels.clone())
        problems = buffers.problems.to("cpu", copy=True)
        conflict = ((labels >= 0) & (labels != merged)).nonzero()
        if len(conflict):
            problems[CHANGED_LABEL] = conflict[-1, 0]
        row, target, label = group.max_(problems).tolist()
        if row >= 0:
            raise ArgumentError("rows", f"must be in [0, {self._num_rows})", "other ones on the device")
        if target >= 0:
            rule = "must be class indices in [0, classes): give target_fn=, a function from the batch to them"
            raise ArgumentError("targets", rule, f"another one at row {target}")
        if label >= 0:
            raise StateError(
                f"row {label} came with two different labels: the dataset changed during scoring, or a row is not the "
                "same sample in every epoch"
            )
        self.torn = True
        self.labels = merged
        self._merge_columns(buffers, group)
        self.torn = False

    def _merge_columns(self, buffers: EpochBuffers, group: Group) -> None:
        def summed(mine: Tensor) -> Tensor:
            return group.sum_(mine.cpu().masked_fill(others, 0))

        seen = buffers.presentations.cpu()
        nothing = torch.zeros_like(seen)
        named = group.exchange((set(buffers.counts), set(buffers.non_finite)))
        recorded, bad = (sorted(set().union(*names)) for names in zip(*named, strict=True))
        others = ~group.owners(seen)
        presented = summed(seen)
        sums = {name: summed(buffers.sums[name]) for name in self._scores}
        non_finite = {SCORED: summed(buffers.non_finite.get(SCORED, nothing))} if SCORED in bad else {}
        events = None
        if buffers.packed is not None:
            self.followed = group.any(buffers.followed) or self.followed
            packed = buffers.packed.cpu()
            flags = group.max_(packed.to(torch.int8).bitwise_and_(3).masked_fill_(others, -1))
            self.flags = torch.where(flags < 0, cast(Tensor, self.flags).to(torch.int8), flags).to(torch.uint8)
            events = summed(packed >> 2)
        answers = None if buffers.answers is None else summed(buffers.answers)
        counts = {}
        for name in recorded:
            mine = buffers.counts.get(name, nothing).cpu()
            others = ~group.owners(mine)
            sums[name], counts[name] = summed(buffers.sums.get(name, nothing.float())), summed(mine)
            if name in bad:
                others = torch.zeros_like(others)
                non_finite[name] = summed(buffers.non_finite.get(name, nothing))
        if group.rank == 0:
            self._add(presented, sums, counts, non_finite, events)
            if answers is not None:
                self._hear(answers, presented)

    def _hear(self, answers: Tensor, presented: Tensor) -> None:
        assert self.suggestions is not None
        assert self.confidence is not None
        seen = answers > 0
        self.suggestions = torch.where(
            seen, _voted(self.suggestions, answers >> 9, (answers >> 8) & 1), self.suggestions
        )
        part = presented.float() / self.presentations.clamp(min=1).float() * seen
        self.confidence.lerp_((answers & 255).float() / 255, part)

    def _add(
        self,
        presented: Tensor,
        sums: dict[str, Tensor],
        counts: dict[str, Tensor],
        non_finite: dict[str, Tensor],
        events: Tensor | None,
    ) -> None:
        self.epochs += bool(presented.any())
        seen_before = {name: self._scored(name) > 0 for name in self.sums}
        for name, count in non_finite.items():
            self.non_finite[name] = self.non_finite.get(name, 0) + count
        self.presentations += presented
        self.last_epoch[presented > 0] = self.epochs - 1
        scored = presented - non_finite.get(SCORED, 0)
        self.nothing_finite = SCORED in non_finite and not bool(scored.any())
        if self.epochs % 2 and self.odd_presentations is not None:
            self.odd_presentations += scored
            for name, odd in self.odd_sums.items():
                odd += sums[name]
        if events is not None and self.forgetting_events is not None:
            if self._window and (self.epochs - 1) % self._window == 0:
                self.earlier_events = self.forgetting_events.clone()
            self.forgetting_events += events
        for name, total in sums.items():
            if name in counts:
                self.sums.setdefault(name, self._zeros(torch.float64))
                self.counts[name] = self.counts.get(name, 0) + counts[name]
            if self._is_mean(name):
                self.sums[name] += total
                continue
            count = counts.get(name, scored)
            newest = total / count.double()
            if name in self._windows and self.window_epochs is not None:
                rows = count.nonzero().flatten()
                full, values = slide(self.recent[name], self.window_epochs, newest, rows, self._windows[name])
                self.sums[name][full] += values
                continue
            if self._reduction == "running" and name in seen_before:
                newest = torch.where(seen_before[name], torch.lerp(self.sums[name], newest, _NEW), newest)
            self.sums[name] = torch.where(count > 0, newest, self.sums[name])
        if self.window_epochs is not None:
            self.window_epochs += scored > 0

    def _is_mean(self, name: str) -> bool:
        return name in self._averaged or (self._reduction == "mean" and name not in self._windows)

    def _scored(self, name: str) -> Tensor:
        """(N,) of how many values a column's mean is."""
        if name in self.counts:
            return self.counts[name]
        if name in self._windows and self.window_epochs is not None:
            return (self.window_epochs - (WINDOW - 1)).clamp(min=0)
        return self.presentations - self.non_finite.get(SCORED, 0)

    def value(self, name: str) -> Tensor:
        """(N,) float32, a column's mean, or that of the last epoch in which the row was seen; NaN for no value."""
        scored = self._scored(name)
        value = self.sums[name] / scored if self._is_mean(name) or name in self._windows else self.sums[name]
        return torch.where(scored > 0, _finite(value), torch.nan)

    def without_value(self) -> dict[str, int]:
        """By column, how many rows were seen and have no value all the same; columns without such rows left out."""
        counts = {}
        for name in self.sums.keys() - self._windows.keys():  # a row may have too few epochs for a window
            seen = self.non_finite.get(name, 0) + self.counts[name] if name in self.counts else self.presentations
            counts[name] = int((self.value(name).isnan() & (seen > 0)).sum())
        return {name: count for name, count in counts.items() if count}

    def left_out(self) -> tuple[int, int]:
        """How many presentations gave an infinite or NaN score, which is in no mean; and how many there were."""
        bad = sum(int(count.sum()) for count in self.non_finite.values())
        recorded = sum(int(count.sum()) for count in self.counts.values())
        recorded += sum(int(count.sum()) for name, count in self.non_finite.items() if name != SCORED)
        return bad, (int(self.presentations.sum()) if self._scores else 0) + recorded

    def table(self, *, kind: Literal["online", "rescored"], **identity: Any) -> ScoreTable:
        """All of it as :meth:`ScoreTracker.table` describes it; ``identity``: keys, fingerprint, provenance."""
        counts = (self.presentations, *self.counts.values())
        if not any(bool(count.any()) for count in counts):
            raise StateError("nothing was scored yet: after the batches of an epoch call end_epoch(), then table()")
        protocol: dict[str, Any] = {"kind": kind, "epochs": self.epochs, "reduction": self._reduction, "runs": 1}
        # A table of recorded columns alone has no empty ones beside them.
        names = [name for name in self.sums if name in self.counts or bool(self.presentations.any())]
        scores = {name: self.value(name).numpy() for name in names}
        protocols = dict.fromkeys(scores, protocol)
        protocols |= {name: {**protocol, "reduction": "mean"} for name in self._averaged & scores.keys()}
        windows = {**protocol, "reduction": "windows", "window": WINDOW}
        protocols |= {name: dict(windows) for name in self._windows.keys() & scores.keys()}
        for name in self._halved if self.epochs > 1 else ():
            assert self.odd_presentations is not None
            odd, even = self.odd_sums[name], self.sums[name] - self.odd_sums[name]
            odd, even = odd / self.odd_presentations, even / (self._scored(name) - self.odd_presentations)
            agreement = spearman(_finite(odd).numpy(), _finite(even).numpy())
            protocols[name] = protocol if math.isnan(agreement) else {**protocol, "split_half": agreement}
            scores[f"{name}_spread"] = _finite((odd - even).abs()).numpy()
            protocols[f"{name}_spread"] = {**protocols[name], "spread_of": name}
        columns: dict[str, Any] = {}
        if self._reduction != "mean":  # then some rows' values may be older than others'
            columns["last_epoch"] = self.last_epoch.numpy()
        if self.suggestions is not None and bool(self.suggestions.any()):
            columns["suggested_label"] = ((self.suggestions >> 4) - 1).numpy()
            confidence = cast(Tensor, self.confidence)
            signed = torch.where(self.suggestions & 2 > 0, confidence, -confidence)
            columns["signed_confidence"] = torch.where(self.suggestions > 0, signed, torch.nan).numpy()
        if self.followed and self.forgetting_events is not None and self.flags is not None:
            protocols["forgetting"] = protocol
            learned = (self.flags & 2).bool().numpy()
            columns |= {"forgetting_events": self.forgetting_events.numpy(), "learned": learned}
            if self.earlier_events is not None and self._window:
                recent = (self.forgetting_events - self.earlier_events).double()
                recent[~self.flags.bitwise_and(2).bool()] += self._window
                scores["recent_forgetting"] = torch.where(self.presentations > 0, recent, torch.nan).float().numpy()
                protocols["recent_forgetting"] = {**protocol, "window": self._window}
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

    @property
    def _held(self) -> tuple[str, ...]:
        return (*_HELD, "recent", "window_epochs") if self._windows else _HELD

    def state_dict(self) -> dict[str, Any]:
        """Copies of everything; ``held`` is None on ranks above 0."""
        held = {name: getattr(self, name) for name in self._held} if self._first else None
        return copied({**{name: getattr(self, name) for name in _EVERYONES}, "held": held})  # type: ignore[no-any-return]

    def layout(self, recorded: Iterable[str], non_finite: Iterable[str], *, held: bool) -> dict[str, Any]:
        """What a state with these recorded columns looks like."""
        n, recorded = self._num_rows, list(recorded)
        count = (torch.int32, n, 0)
        columns = {
            "sums": dict.fromkeys((*self._scores, *recorded), (torch.float64, n)),
            "counts": dict.fromkeys(recorded, count),
            "non_finite": dict.fromkeys(non_finite, count),
            "odd_sums": dict.fromkeys(self._halved, (torch.float64, n)),
            "odd_presentations": count if self._halved else None,
            "presentations": count,
            "last_epoch": (torch.int32, n, -1),
            "forgetting_events": None if self.flags is None else count,
            "earlier_events": None if self.flags is None or not self._window else count,
            "suggestions": None if self.suggestions is None else count,
            "confidence": None if self.suggestions is None else (torch.float32, n),
        }
        if self._windows:
            columns["recent"] = dict.fromkeys(self._windows, (torch.float32, n * WINDOW))
            columns["window_epochs"] = count
        return {
            "epochs": int,
            "followed": bool,
            "flags": None if self.flags is None else (torch.uint8, n, 0, 3),
            "labels": (torch.int32, n, -1),
            "held": columns if held else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state whose layout was checked; on rank 0 one that holds the sums."""
        state = copied(state)
        for name in _EVERYONES:
            setattr(self, name, state[name])
        for name in self._held if self._first else ():
            setattr(self, name, state["held"][name])
        self.torn = False


def _voted(held: Tensor, suggested: Tensor, right: Tensor) -> Tensor:
    """Suggestions with one vote more of each row: (N,) of 1 + a class, and whether the label was the answer."""
    leader, lead, trust = held >> 4, held >> 2 & 3, held & 3
    lead = torch.where(leader == suggested, (lead + 1).clamp_(max=_MOST), lead - 1)
    leader = torch.where(lead < 0, suggested, leader)
    trust = torch.where(held > 0, trust + 2 * right - 1, 1 + right).clamp_(0, 3)
    return (leader << 4 | lead.clamp_(min=0) << 2 | trust).int()


def _finite(values: Tensor) -> Tensor:
    """float32, NaN for what is not finite as such."""
    values = values.float()
    return torch.where(values.isfinite(), values, torch.nan)
