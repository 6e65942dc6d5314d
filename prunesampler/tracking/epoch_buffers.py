"""What one rank has seen since the last merge: batches that wait to be scored, and per-row sums on the device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prunesampler.scores.logits import Prediction
from prunesampler.tracking.state import copied

BAD_ROW, BAD_CLASS, CHANGED_LABEL = range(3)
SCORED = "presentations"  # where non-finite values of the scores themselves are counted, beside recorded columns

_TOGETHER = 64  # batches
_CPU_LOGITS = 1 << 19  # 2 MB: with less, calling torch again and again costs more than a cache saves
_GPU_LOGITS = 1 << 20


class ScoredBatch(NamedTuple):
    """(B,) rows, scores by name and class indices; and the number of classes."""

    rows: Tensor
    values: dict[str, Tensor]
    targets: Tensor
    classes: int


class BatchQueue:
    """Scores sixty-four batches together: for a small batch, calling torch costs ten times the computation.

    Logits are copied into one buffer, in which they are scored whenever it is full.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._kind: tuple[Any, ...] = ()
        self._room = 0  # rows of logits
        self.clear()

    def clear(self) -> None:
        """Forget all that waits."""
        self._rows: list[Tensor] = []
        self._predictions: list[Prediction] = []
        self._filled = 0  # rows of logits that wait, with these targets
        self._targets: list[Tensor] = []

    def add(self, rows: Tensor, logits: Tensor, targets: Tensor) -> list[ScoredBatch]:
        """Copy (B,) int64, (B, C) and (B,), checked already, B >= 1. What was scored now; mostly nothing."""
        size, classes = logits.shape
        kind = (classes, logits.dtype, logits.device, rows.device, targets.device)
        ready = []
        if kind != self._kind or (size > self._room and not logits.is_cpu):
            ready = self.take()
            self._kind = kind
            self._room = (_CPU_LOGITS if logits.is_cpu else max(_GPU_LOGITS, logits.numel())) // classes or 1
            with torch.inference_mode(False):
                dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
                self._logits = logits.new_empty(self._room, classes, dtype=dtype)
        self._rows.append(rows.clone())
        targets = targets.clone() if targets.dtype == torch.int64 else targets.long()
        if size > self._room:
            for part, labels in zip(logits.split(self._room), targets.split(self._room), strict=True):
                self._copy(len(part), part, labels)
        else:
            self._copy(size, logits, targets)
        return ready + self.take() if len(self._rows) == _TOGETHER else ready

    def _copy(self, size: int, logits: Tensor, targets: Tensor) -> None:
        if self._filled + size > self._room:
            self._predict()
        end = self._filled + size
        self._logits[self._filled : end] = logits
        self._filled = end
        self._targets.append(targets)

    def _predict(self) -> None:
        if self._filled:
            logits, targets = self._logits[: self._filled], moved(torch.cat(self._targets), self._logits.device)
            self._predictions.append(Prediction.of(self._names, logits, targets, overwrite=True))
            self._filled = 0
            self._targets.clear()

    @torch.no_grad()
    def take(self) -> list[ScoredBatch]:
        """Scores of all that waits, joined to one batch, beside its logits; an empty list where nothing does."""
        if not self._rows:
            return []
        self._predict()
        seen = Prediction.join(self._predictions)
        rows = moved(torch.cat(self._rows), self._logits.device)
        self.clear()
        return [ScoredBatch(rows, {name: seen.score(name) for name in self._names}, seen.targets, seen.classes)]


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``, without waiting for a GPU unless it must be read from there."""
    if tensor.is_cpu and device.type == "cuda":
        tensor = tensor.pin_memory()  # from other memory a copy of more than 64 kB waits for the device
    return tensor.to(device, non_blocking=device.type != "cpu")


class EpochBuffers:
    """Sums and counts of one rank in one epoch. Nothing here waits for the device, unless it says so.

    All values of a row are next to each other, so that a presentation, in random order, reads memory once.

    Attributes:
        device: where the buffers lie.
        sums: (N,) float32 by score.
        counts: (N,) int32 by recorded column, of its finite values: those that are not counted by presentations.
        non_finite: (N,) int32 by recorded column, and :data:`SCORED` for the scores, of presentations that gave an
            infinite or NaN value and are left out of the sums; on a CPU only where there are any.
        presentations: (N,) int32.
        packed: (N,) int32, forgetting events << 2 | learned << 1 | correct at the last presentation; the two flags
            outlive the epoch. None where forgetting is not followed.
        labels: (N,) int32, −1 before the first presentation; outlives the epoch.
        answers: (N,) int32, what the model said at the last presentation of the epoch, see :func:`packed_answers`; None
            where answers are not followed.
        problems: (3,) int64 by kind of problem: the highest row that has it, −1 for none.
        followed: whether any presentation said if it was correct.
    """

    def __init__(self, num_rows: int, scores: Iterable[str], *, forgetting: bool, answers: bool = False) -> None:
        self.num_rows, self.device, self.followed = num_rows, torch.device("cpu"), False
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.non_finite: dict[str, Tensor] = {}
        self._scores, self._forgetting, self._answers = tuple(scores), forgetting, answers
        integers = 2 + forgetting + answers
        self._arrange(torch.zeros(num_rows, integers + len(self._scores), dtype=torch.int32))
        self.labels.fill_(-1)
        self.problems = torch.full((3,), -1)

    def _arrange(self, columns: Tensor) -> None:
        """Name the columns of (N, columns) int32."""
        self._columns = columns
        self.presentations, self.labels, *others = columns.unbind(1)
        self.packed = others[0] if self._forgetting else None
        self.answers = others[self._forgetting] if self._answers else None
        floats = columns.view(torch.float32)[:, 2 + self._forgetting + self._answers :]
        self.sums |= zip(self._scores, floats.unbind(1), strict=True)

    @property
    def empty(self) -> bool:
        """Whether nothing was added since the last merge. Waits for the device."""
        counts = (self.presentations, *self.counts.values(), *self.non_finite.values())
        return not any(bool(count.any()) for count in counts) and bool((self.problems < 0).all())

    def move(self, device: torch.device) -> None:
        """Put the buffers on ``device``."""
        with torch.inference_mode(False):
            for recorded in (self.sums, self.counts):
                recorded.update({name: moved(recorded[name], device) for name in self.counts})
            self.non_finite = {name: moved(count, device) for name, count in self.non_finite.items()}
            self.problems = moved(self.problems, device)
            self._arrange(moved(self._columns, device))
        self.device = device

    def add(
        self,
        rows: Tensor,
        scores: Mapping[str, Tensor],
        correct: Tensor | None = None,
        targets: Tensor | None = None,
        classes: int | None = None,
        answers: Tensor | None = None,
    ) -> None:
        """(B,) presentations, B >= 1, in their order; rows int64, maybe repeated, targets below 0 for none."""
        rows = self._checked(rows)
        before = self.presentations.index_select(0, rows)
        self.presentations.index_add_(0, rows, torch.ones_like(before))
        # Only the CPU can say without waiting that all rows are distinct.
        distinct = before.is_cpu and torch.equal(self.presentations.index_select(0, rows), before.add_(1))
        scores, bad = _finite({name: values.float() for name, values in scores.items()})
        for name, values in scores.items():
            self.sums[name].index_add_(0, rows, values)
        self._count_bad(SCORED, rows, bad)
        if targets is not None:
            if classes is not None:
                self._note(BAD_CLASS, (targets < 0) | (targets >= classes), rows)
            self._label(rows, targets.clamp(min=-1).int())
        if answers is not None and self.answers is not None:
            self.answers.index_copy_(0, rows, answers)
        if correct is not None and self.packed is not None:
            self.followed = True
            self._follow(self.packed, rows, correct, distinct)

    def _follow(self, packed: Tensor, rows: Tensor, correct: Tensor, distinct: bool) -> None:
        if not distinct:
            rows, order = rows.sort(stable=True)  # presentations of one row stay in their order
            correct = correct.index_select(0, order)
        now, before = correct.int(), packed.index_select(0, rows).bitwise_and_(1)
        if not distinct:
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
        self._allow(name)
        finite, bad = _finite({name: values.float()})
        self.sums[name].index_add_(0, rows, finite[name])
        ones = torch.ones_like(rows, dtype=torch.int32)
        self.counts[name].index_add_(0, rows, ones if bad is None else (~bad).int())
        self._count_bad(name, rows, bad)

    def _count_bad(self, name: str, rows: Tensor, bad: Tensor | None) -> None:
        if bad is not None:
            self._allow_bad(name)
            self.non_finite[name].index_add_(0, rows, bad.int())

    def _allow_bad(self, name: str) -> None:
        if name not in self.non_finite:
            with torch.inference_mode(False):
                self.non_finite[name] = torch.zeros(self.num_rows, dtype=torch.int32, device=self.device)

    def _allow(self, name: str) -> None:
        if name not in self.counts:
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
        self.non_finite.clear()
        for tensor in (*self.sums.values(), self.presentations, *([] if self.answers is None else [self.answers])):
            tensor.zero_()
        if self.packed is not None and flags is not None:
            self.packed.copy_(flags)
        self.labels.copy_(labels)
        self.problems.fill_(-1)
        self.followed = False

    def state_dict(self) -> dict[str, Any]:
        """Copies of all buffers, on the CPU."""
        names = ("sums", "counts", "non_finite", "presentations", "packed", "labels", "problems", "followed")
        return {name: copied(getattr(self, name)) for name in (*names, "answers")}

    def layout(self, recorded: Iterable[str], non_finite: Iterable[str]) -> dict[str, Any]:
        """What a state with these recorded columns looks like, as :func:`check_layout` wants it."""
        recorded, n = list(recorded), self.num_rows
        count = (torch.int32, n, 0)
        return {
            "sums": dict.fromkeys((*self._scores, *recorded), (torch.float32, n)),
            "counts": dict.fromkeys(recorded, count),
            "non_finite": dict.fromkeys(non_finite, count),
            "presentations": count,
            "packed": count if self._forgetting else None,
            "labels": (torch.int32, n, -1),
            "answers": count if self._answers else None,
            "problems": (torch.int64, 3, -1, n - 1),
            "followed": bool,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state whose layout was checked, after :meth:`clear`."""
        for name, count in state["counts"].items():
            self._allow(name)
            self.counts[name].copy_(count)
        for name, count in state["non_finite"].items():
            self._allow_bad(name)
            self.non_finite[name].copy_(count)
        for name, total in state["sums"].items():
            self.sums[name].copy_(total)
        for name in ("presentations", "labels", "problems"):
            getattr(self, name).copy_(state[name])
        if self.packed is not None:
            self.packed.copy_(state["packed"])
        if self.answers is not None:
            self.answers.copy_(state["answers"])
        self.followed = state["followed"]


def packed_answers(suggested: Tensor, confidence: Tensor) -> Tensor:
    """(B,) int32: 1 + the suggested label << 9 | whether the label is the answer << 8 | 255 × the confidence.

    0 for no answer: where the label is none of the classes, a logit is not finite, or there are millions of classes.
    """
    sure = confidence.abs().mul(255).round_()
    packed = ((suggested + 1) << 9).int() | ((confidence > 0).int() << 8) | sure.nan_to_num_(0.0).int()
    return packed.masked_fill_((suggested < 0) | (suggested >= 1 << 22) | confidence.isnan(), 0)


def _finite(columns: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
    """The columns with 0 where any of them is infinite or NaN, and where that is; None where it surely is nowhere."""
    bad = None
    for values in columns.values():
        wrong = values.isfinite().logical_not_()
        bad = wrong if bad is None else bad.logical_or_(wrong)
    if bad is None or (bad.is_cpu and not bad.any()):
        return dict(columns), None
    return {name: values.masked_fill(bad, 0.0) for name, values in columns.items()}, bad
