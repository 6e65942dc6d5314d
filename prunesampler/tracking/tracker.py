"""Scores of the batches that pass by, kept on the device until an epoch ends."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from prunesampler._format import Shown
from prunesampler.errors import (
    ArgumentError,
    PruneSamplerError,
    PruneSamplerWarning,
    StateError,
    check_bool,
    check_choice,
    check_int,
)
from prunesampler.scores.logits import check_logits
from prunesampler.scores.registry import SCORES, compute
from prunesampler.tables.score_table import ScoreTable
from prunesampler.tracking.epoch_buffers import BatchQueue, EpochBuffers, ScoredBatch, moved, packed_answers
from prunesampler.tracking.inputs import (
    as_tensor,
    check_classes,
    column_tensor,
    own_columns,
    row_tensor,
    score_names,
    target_tensor,
    torch_device,
)
from prunesampler.tracking.ranks import Group
from prunesampler.tracking.state import check_identity, check_layout, names_in
from prunesampler.tracking.totals import Reduction, Totals

ScoreFunction = Callable[[Tensor, Any], Mapping[str, Tensor]]

_VERSION = 4
_RECORDED = ("counts", "non_finite")
_DEFAULT = ("el2n", "forgetting")
_ANSWERS = ("suggested_label", "signed_confidence")


class ScoreTracker(Shown):
    """Scores rows from the logits that training computes anyway.

    A presentation is one time that a row's logits were seen. :meth:`update` never waits for the device; what it has
    seen is merged over ranks and becomes part of the table with :meth:`end_epoch`. On the device that takes 12 bytes
    a row, 4 for each score and 4 for forgetting. Rank 0 holds what was merged on the host, in 21 bytes a row, 16 for
    each score, 48 for one over windows and 4 for forgetting.

    Args:
        num_rows: size of the dataset.
        scores: columns, of ``"el2n"``, ``"loss"``, ``"margin"``, ``"entropy"``, ``"forgetting"`` and those of
            :func:`prunesampler.register_score` that need only logits; by default EL2N and forgetting. Of all epochs
            together, whatever the reduction: ``"aum"`` and ``"aum_softmax"`` are means of the margin, ``"dyn_unc"``
            and ``"dual"`` means over windows of ten epochs, which a row has after as many in which it was presented.
            With ``score_fn``, names that it must return.
        reduction: a row's score is the ``"mean"`` over its presentations; or over those of the ``"last"`` epoch in
            which it had any; or a ``"running"`` mean over such epochs, in which the newest has weight 0.3. Means over
            two epochs or more come with a column ``<score>_spread``, see :meth:`table`.
        device: where the buffers are; by default that of the first logits. With ``"cpu"``, logits of a GPU are copied
            to the host, which waits for the GPU.
        score_fn: (logits, targets) → (B,) tensors by column name, instead of the scores above: for soft or
            multi-dimensional targets. A bool column ``"correct"`` is followed for forgetting.
        group: the ranks that score together; by default all of ``torch.distributed``: every rank makes a tracker.
        forgetting_window: an int >= 1: the table then has a column ``recent_forgetting``, the forgetting events since
            the last so many epochs began, counted in steps of as many; a row that was never learned has as many more.
        audit: follow what :func:`prunesampler.audit` reads, see :meth:`table`. False saves up to a fifth of the
            time of :meth:`update`, 4 bytes a row on the device and 8 on the host.

    A value that is infinite or NaN is left out of its row's mean, and counted: :meth:`table` says how many were.

    Raises:
        ArgumentError: an argument breaks its rule.
        UnsupportedError: several processes were started but ``torch.distributed`` is not initialised.

    >>> tracker = ScoreTracker(3)
    >>> logits, targets = torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([1, 0])
    >>> tracker.update([0, 2], logits, targets)
    >>> tracker.end_epoch()
    >>> table = tracker.table()
    >>> table.scores["el2n"].round(3), table.forgetting_events, table.learned
    (array([0.707,   nan, 0.067], dtype=float32), array([0, 0, 0], dtype=int32), array([False, False,  True]))
    """

    def __init__(
        self,
        num_rows: int,
        *,
        scores: Sequence[str] | None = None,
        reduction: Reduction = "mean",
        device: torch.device | str | int | None = None,
        score_fn: ScoreFunction | None = None,
        group: Group | None = None,
        forgetting_window: int | None = None,
        audit: bool = True,
    ) -> None:
        self.num_rows = check_int("num_rows", num_rows, 1)
        if scores is None:
            self.scores: tuple[str, ...] = _DEFAULT if score_fn is None else ()
        else:
            self.scores = score_names(scores, own=score_fn is not None)
        for name in () if score_fn else self.scores:
            if name in SCORES and (needs := SCORES[name].needs) != "logits":
                cure = "compute it with prunesampler.score(), or attach(..., rescore=)"
                rule = f"must be scores of logits; {name!r} needs the {needs}: {cure}"
                raise ArgumentError("scores", rule, list(self.scores))
        self.reduction: Reduction = check_choice("reduction", reduction, get_args(Reduction))
        if score_fn is not None and not callable(score_fn):
            raise ArgumentError("score_fn", "must be None or a function of logits and targets", score_fn)
        self._score_fn = score_fn
        self._group = Group.create() if group is None else group
        self._settled = device is not None
        forgetting = "forgetting" in self.scores or (score_fn is not None and scores is None)
        computed = () if score_fn else tuple(name for name in self.scores if name != "forgetting")
        answers = check_bool("audit", audit) and score_fn is None
        self._wanted = (*computed, *["correct"] * forgetting, *_ANSWERS * answers)
        # A user's function is called at once, so that its errors come from the batch that caused them.
        self._queued = all(SCORES[name].built_in for name in computed)
        if forgetting_window is not None:
            check_int("forgetting_window", forgetting_window, 1)
        first = self._group.rank == 0
        self._torn = False
        with torch.inference_mode(False):  # tensors created in inference mode cannot be updated outside of it
            self._buffers = EpochBuffers(self.num_rows, computed, forgetting=forgetting, answers=answers)
            self._totals = Totals(
                self.num_rows,
                computed,
                reduction,
                forgetting=forgetting,
                forgetting_window=forgetting_window,
                answers=answers,
                first=first,
            )
        if device is not None:
            self._buffers.move(torch_device(device))
        self._queue = BatchQueue(self._wanted)

    def _facts(self) -> dict[str, Any]:
        return {
            "rows": self.num_rows,
            "scores": self.scores,
            "reduction": self.reduction,
            "epochs": self._totals.epochs,
        }

    @property
    def has_scores(self) -> bool:
        """Whether :meth:`table` has anything to give: on rank 0, once something was merged."""
        return self._group.rank == 0 and self._totals.epochs > 0

    def update(self, rows: Any, logits: Tensor, targets: Any) -> None:
        """One batch of presentations.

        Args:
            rows: (B,) integers in [0, num_rows); a tensor, an array or a list. A row that comes twice was presented
                twice, in the batch's order.
            logits: (B, C) floats, C >= 2; copied, so they may be changed afterwards.
            targets: (B,) class indices in [0, C), beside the logits or on the CPU; anything with ``score_fn``.

        Raises:
            ArgumentError: another number of rows or targets than of logits, or some out of range. Ranges of tensors
                on a GPU are checked in :meth:`end_epoch`.
            UnsupportedError: logits or targets of another shape or dtype, without ``score_fn``.
        """
        logits = as_tensor("logits", logits)
        if not self._settled:
            self._buffers.move(logits.device)
            self._settled = True
        if self._score_fn is not None:
            self._update_with(self._score_fn, rows, logits, targets)
            return
        targets = self._checkable(target_tensor(targets))
        check_logits(logits, targets)
        size = logits.shape[0]
        rows = self._rows(rows, size)
        check_classes(targets, logits.shape[1])
        if not size:
            return
        if self._queued:
            with self._changing():
                for batch in self._queue.add(rows, logits, targets):
                    self._credit(batch)
        else:
            targets = moved(targets, logits.device)
            batch = ScoredBatch(rows, compute(self._wanted, logits, targets), targets.long(), logits.shape[1])
            with self._changing():
                self._credit(batch)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Around what changes buffers: where it is broken off (Ctrl-C, no memory left), they are torn from then on."""
        self._check_whole()
        self._torn = True
        yield
        self._torn = False

    def _check_whole(self) -> None:
        if self._torn or self._totals.torn:
            cure = "load_state_dict() a state of before" if self._totals.torn else "reset_epoch() to drop this epoch"
            raise StateError(
                "the tracker was interrupted in the middle of a change, so its sums and counts do not belong together: "
                f"{cure}, or make a new tracker"
            )

    @torch.no_grad()
    def _credit(self, batch: ScoredBatch) -> None:
        rows, targets = self._here(batch.rows), self._here(batch.targets)
        values = {name: self._here(column) for name, column in batch.values.items()}
        correct, told = values.pop("correct", None), [values.pop(name) for name in _ANSWERS if name in values]
        answers = packed_answers(*told) if told else None
        self._buffers.add(rows, values, correct, targets, batch.classes, answers)

    def _credit_waiting(self) -> None:
        with self._changing():
            for batch in self._queue.take():
                self._credit(batch)

    @torch.no_grad()
    def _update_with(self, score_fn: ScoreFunction, rows: Any, logits: Tensor, targets: Any) -> None:
        rows = self._rows(rows, len(logits) if logits.dim() else 0)
        if not len(rows):
            return
        columns, correct = own_columns(score_fn(logits, targets), self.scores, len(rows))
        self._check_columns(columns)
        labels = None
        if isinstance(targets, Tensor) and targets.shape == rows.shape and not targets.is_floating_point():
            labels = self._here(targets.detach()).long()
        rows = self._here(rows)
        with self._changing():
            self._record(rows, columns)
            self._buffers.add(rows, {}, None if correct is None else self._here(correct), labels)

    @torch.no_grad()
    def record(self, rows: Any, **values: Any) -> None:
        """Values of your own columns: a row's score is the mean over its records (or over the last epoch's).

        Args:
            rows: (B,) as in :meth:`update`.
            values: name → (B,) numbers.

        Raises:
            ArgumentError: another number of values than of rows, rows out of range, or a name that is taken.
        """
        rows = self._rows(rows, None)
        columns = {name: column_tensor(name, column, len(rows)) for name, column in values.items()}
        self._check_columns(columns)
        if len(rows):
            rows = self._here(rows)
            with self._changing():
                self._record(rows, columns)

    def end_epoch(self) -> None:
        """Merge what was seen since the last call. With several ranks a collective, and all of them raise together.

        Of a row that several ranks have presented since then (padding, to give them equally many), the presentations
        of the lowest rank count.

        Raises:
            ArgumentError: rows or targets on the device were out of range.
            StateError: a row came with another label than before. Whatever is raised, nothing was merged;
                :meth:`reset_epoch` drops it.
        """
        self._credit_waiting()
        with torch.inference_mode(False):
            self._torn = True  # until what was merged is cleared, lest it be merged again
            try:
                self._totals.merge(self._buffers, self._group)
            except PruneSamplerError:
                self._torn = False  # of the buffers nothing has changed
                raise
            self._clear()
        if self._totals.nothing_finite:  # last, as a warning may be an error
            text = "every score of this epoch is infinite or NaN: look at what the model gives"
            warnings.warn(text, PruneSamplerWarning, stacklevel=2)

    def reset_epoch(self) -> None:
        """Forget what was seen since the last :meth:`end_epoch`."""
        if self._totals.torn:
            self._check_whole()
        self._torn = True
        self._clear()

    def _clear(self) -> None:
        self._queue.clear()
        self._buffers.clear(self._totals.flags, self._totals.labels)
        self._torn = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Scores that this rank has seen since the last :meth:`end_epoch`, recorded ones included."""
        return (*self._buffers.sums, *["forgetting"] * self._buffers.followed)

    @property
    def epochs(self) -> int:
        """Epochs merged so far (on rank 0)."""
        return self._totals.epochs

    @property
    def non_finite(self) -> dict[str, int]:
        """By column, how many rows were seen but have no score, because all their values were infinite or NaN."""
        return self._totals.without_value()

    @property
    def merged(self) -> list[str]:
        """Columns that have a :meth:`value`; on rank 0."""
        return list(self._totals.sums)

    def value(self, name: str) -> Tensor:
        """(N,) float32, a column as merged so far, NaN for rows without; on rank 0.

        Raises:
            ArgumentError: no such column was merged.
        """
        if name not in self.merged:
            raise ArgumentError("name", f"must be a column merged here, one of {self.merged}", name)
        return self._totals.value(name)

    def table(
        self,
        *,
        keys: Any = None,
        fingerprint: str | None = None,
        provenance: Mapping[str, Any] | None = None,
        kind: Literal["online", "rescored"] = "online",
    ) -> ScoreTable:
        """All that was merged, one entry per row; on rank 0.

        After two epochs or more, a mean comes with a column ``<score>_spread``, which says how far it can be trusted:
        the distance between the mean over the odd epochs and that over the even ones, NaN for a row that was not seen
        in both. ``protocols[score]["split_half"]`` is Spearman's rank correlation of the two over all rows.

        Two columns are for :func:`prunesampler.audit`, where there is neither ``audit=False`` nor a ``score_fn``:
        ``suggested_label`` is the class that the model preferred in most epochs, the label left out, and
        ``signed_confidence`` the mean of the highest probability, at the last presentation of each epoch, negative
        where the label is not its class.

        Args:
            keys: (N,) str or int that name the samples outside of this dataset.
            fingerprint: what the dataset is recognised by.
            provenance: JSON, anything else to store in the file.
            kind: the protocol: measured on training batches as they pass, or in a pass of its own.

        Raises:
            StateError: nothing was merged yet, or this is not rank 0.

        Warns:
            PruneSamplerWarning: rows have no score because a value was not finite.
        """
        if (rank := self._group.rank) > 0:
            raise StateError(f"table() must be called on rank 0, which holds the merged scores; this is rank {rank}")
        self._check_whole()
        bad, presented = self._totals.left_out()
        if bad:
            rows = [
                f"{name} has no value for {count} of {self.num_rows} rows" for name, count in self.non_finite.items()
            ]
            every = "every one of them: look at what the model gives" if bad == presented else "left out of the means"
            text = f"{bad} of {presented} presentations ({bad / presented:.2%}) gave an infinite or NaN score, {every}"
            warnings.warn("; ".join([text, *rows]), PruneSamplerWarning, stacklevel=2)
        return self._totals.table(kind=kind, keys=keys, fingerprint=fingerprint, provenance=provenance)

    def state_dict(self) -> dict[str, Any]:
        """The last merge and what this rank has seen since, as CPU tensors and plain Python; without communication.

        ``torch.load(..., weights_only=True)`` reads it. Each rank saves its own; that of rank 0 right after
        :meth:`end_epoch` fits all ranks, and any number of them.
        """
        self._credit_waiting()
        return {
            **self._identity(),
            "rank": self._group.rank,
            "world_size": self._group.world_size,
            "share": None if self._buffers.empty else self._buffers.state_dict(),
            "totals": self._totals.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from where :meth:`state_dict` was called.

        Args:
            state: of a tracker with the same arguments, and of the same rank unless saved right after
                :meth:`end_epoch`. The device may be another one.

        Raises:
            StateError: another version, configuration or rank, or a state that is incomplete or has unknown parts.
                The tracker is then as before.
        """
        state = _upgraded(state)
        self.check_state(state)
        share, place = state["share"], (state["rank"], state["world_size"])
        if share is not None and place != (self._group.rank, self._group.world_size):
            raise StateError(
                f"the state was saved inside an epoch by rank {place[0]} of {place[1]}, and this is rank "
                f"{self._group.rank} of {self._group.world_size}: only a state saved between epochs fits every rank"
            )
        with torch.inference_mode(False):
            self._totals.load_state_dict(state["totals"])
            self.reset_epoch()
            if share is not None:
                self._buffers.load_state_dict(share)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse what :meth:`load_state_dict` would, but for the place of a rank.

        Raises:
            StateError: as there.
        """
        state = _upgraded(state)
        held = bool(names_in(state, "totals", "held"))
        share = state.get("share") if isinstance(state, Mapping) else None
        identity = self._identity()
        layout = {
            **{key: type(value) for key, value in identity.items()},
            "rank": int,
            "world_size": int,
            "share": None if share is None else self._buffers.layout(*(names_in(share, name) for name in _RECORDED)),
            "totals": self._totals.layout(*(names_in(state, "totals", "held", name) for name in _RECORDED), held=held),
        }
        check_layout(state, layout)
        check_identity(state, identity)
        if self._group.rank == 0 and not held:
            raise StateError("the state was saved by a rank above 0, which holds no sums: give rank 0 its own")

    def _identity(self) -> dict[str, Any]:
        return {
            "version": _VERSION,
            "num_rows": self.num_rows,
            "scores": list(self.scores),
            "own_scores": self._score_fn is not None,
            "reduction": self.reduction,
        }

    def _checkable(self, tensor: Tensor) -> Tensor:
        # For buffers on the CPU: they do not check rows and targets again.
        return tensor.cpu() if self._buffers.presentations.is_cpu else tensor

    def _rows(self, rows: Any, length: int | None) -> Tensor:
        return row_tensor(self._checkable(as_tensor("rows", rows)), length, self.num_rows)

    def _here(self, tensor: Tensor) -> Tensor:
        return moved(tensor, self._buffers.device)

    def _check_columns(self, columns: Mapping[str, Tensor]) -> None:
        for name in columns:
            if name.removesuffix("_spread") in self._wanted:
                raise ArgumentError("name", "must not be a tracked score or its spread", name)
            if name not in self._buffers.counts:
                ScoreTable({name: [0.0]})  # refuses a name that a column cannot have

    def _record(self, rows: Tensor, columns: Mapping[str, Tensor]) -> None:
        for name, values in columns.items():
            self._buffers.record(rows, name, self._here(values))


def _upgraded(state: Any) -> Any:
    """A state of an earlier version as one of today.

    Version 2 did not tell non-finite presentations and ages, and 3 had no answers.
    """
    if not isinstance(state, Mapping) or state.get("version") not in (2, 3):
        return state
    state = copy.deepcopy(dict(state))
    share, held = state.get("share"), state.get("totals", {}).get("held")
    answers, first = state.get("own_scores") is False, state["version"] == 2
    if isinstance(share, dict) and isinstance(share.get("labels"), Tensor):
        share |= {"non_finite": {}} if first else {}
        share["answers"] = torch.zeros_like(share["labels"]) if answers else None
    if isinstance(held, dict) and isinstance(seen := held.get("presentations"), Tensor):
        if first:
            held |= {"non_finite": {}, "earlier_events": None}
            held["last_epoch"] = torch.where(seen > 0, state["totals"].get("epochs", 0) - 1, -1).int()
        held["suggestions"] = torch.zeros_like(seen) if answers else None
        held["confidence"] = torch.zeros_like(seen, dtype=torch.float32) if answers else None
    return state | {"version": _VERSION}
