"""The scoring epochs of an attached run: what is credited, how far they have come, what they found."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from prunesampler.capture.binder import Binder, Token
from prunesampler.capture.find import Finder
from prunesampler.capture.plausibility import FirstBatches
from prunesampler.errors import ArgumentError, BindingError, PruneSamplerWarning, StateError
from prunesampler.tables.score_table import ScoreTable
from prunesampler.tracking.inputs import check_classes
from prunesampler.tracking.ranks import Group
from prunesampler.tracking.state import check_count, check_layout
from prunesampler.tracking.tracker import ScoreTracker
from prunesampler.training.config import RunConfig
from prunesampler.training.progress import Progress


class Seen:
    """Rows that may be trained on: what the sampler can draw, or, of a stream, what it was seen to hand out.

    A tracker counts presentations; where a stream has none they are marked here.
    """

    def __init__(self, group: Group, swap: Any, *, tracked: bool) -> None:
        self._group, self._eligible = group, swap.eligible
        self._of_stream = swap.batches() is None
        marked = self._of_stream and not tracked
        self._marks = torch.zeros(swap.num_rows, dtype=torch.uint8) if marked else None

    def add(self, rows: Tensor) -> None:
        """They were trained on."""
        if self._marks is not None:
            self._marks[rows] = 1

    def end_epoch(self) -> None:
        """What any rank has seen; a collective."""
        if self._marks is not None:
            self._group.max_(self._marks)

    def only(self, table: ScoreTable) -> ScoreTable:
        """The table without the other rows."""
        if not self._of_stream:
            return table if self._eligible is None else table.only(self._eligible)
        seen = table.presentations if self._marks is None else self._marks.numpy()
        return table if seen is None else table.only(np.flatnonzero(seen))

    def state_dict(self) -> Tensor | None:
        """The marks."""
        return None if self._marks is None else self._marks.clone()

    @property
    def layout(self) -> Any:
        """What a state looks like."""
        return None if self._marks is None else (torch.uint8, len(self._marks))

    def load_state_dict(self, state: Tensor | None) -> None:
        """Go on from there."""
        if self._marks is not None and state is not None:
            self._marks.copy_(state)


class ScoringPhase:
    """Scores of the training batches, of a pass of their own at the end, or both.

    The tracker scores training batches; ``rescore`` is the pass: what was tracked → the table.

    Attributes:
        failed: whether this rank has given up.
        abandoned: whether all ranks know that one of them has.
        due: whether the scoring epochs are over: as counted here, or as several ranks agreed at the end of the last.
    """

    def __init__(
        self,
        config: RunConfig,
        progress: Progress,
        *,
        tracker: ScoreTracker | None,
        rescore: Callable[[ScoreTable | None], ScoreTable] | None,
        group: Group,
        seen: Seen,
        keys: Any,
        fingerprint: str | None,
        classes: list[str] | None = None,
        finder: Finder | None = None,
    ) -> None:
        self.progress, self.tracker, self.failed = progress, tracker, False
        self.abandoned = False
        self._config, self._rescore, self._group = config, rescore, group
        self._seen, self._keys, self._fingerprint, self._classes = seen, keys, fingerprint, classes
        self._agreed = self._starts_again = False
        self._finder = finder or Finder(None, None, own_scores=config.own_scores)
        self._first = None if config.own_scores else FirstBatches(given=self._finder.logits_fn is not None)

    @property
    def online(self) -> bool:
        """Whether training batches are credited to rows."""
        return self.tracker is not None and not self.failed

    @property
    def due(self) -> bool:
        """Whether it is time to select."""
        return self.progress.is_due if self._group.world_size == 1 else self._agreed

    @property
    def rescores(self) -> bool:
        """Whether a pass of its own ends the scoring."""
        return self._rescore is not None

    def give_up(self) -> None:
        """Nothing is scored on this rank any more."""
        self.failed = True

    def present(self, token: Token, logits: Callable[[], Tensor], *, real: int = sys.maxsize) -> None:
        """One batch was trained on, whose first ``real`` rows count: the others only fill it up."""
        self.check_start(token.index > 0)
        if self.online and self.tracker is not None:
            values, rows, targets = logits(), token.rows, token.targets
            token.check_counts(values)
            if real < len(rows):
                rows, values = rows[:real], values[:real]
                targets = tree_map_only(Tensor, lambda column: column[:real] if column.dim() else column, targets)
            if len(rows):
                self.tracker.update(rows, values, targets)
                self._look(values, targets)
        self._seen.add(token.rows)
        self.progress.train(len(token.rows) if token.drawn is None else token.drawn)

    def _look(self, logits: Any, targets: Any) -> None:
        if self._first is None:
            return
        if self._first.over:
            if self._first.answered:
                self._judge()
        elif isinstance(logits, Tensor):
            targets = torch.as_tensor(targets)
            check_classes(targets.cpu(), logits.shape[1])  # of a GPU's the tracker says so at the end of the epoch
            if doubt := self._first.look(logits, targets):
                warnings.warn(doubt, PruneSamplerWarning, stacklevel=6)

    def _judge(self) -> None:
        """Warn of what the gradients of the first batches said."""
        first, self._first = self._first, None
        verdict = None if first is None else first.verdict(several_heads=self._finder.several_heads)
        if verdict is not None:
            warnings.warn(verdict, PruneSamplerWarning, stacklevel=7)

    def end_epoch(self, binder: Binder) -> bool:
        """Merge what was seen since the last epoch, over all ranks; whether it is time to select.

        All ranks are here together; in ``iter`` they need not be.
        """
        self._judge()
        self.abandoned = self._group.any(self.failed)
        if self.abandoned:
            raise StateError("scoring failed on one of the ranks")
        if self.tracker is not None:
            try:
                binder.check()
            except BindingError:
                self.tracker.reset_epoch()
                raise
            self._check_column(self.tracker)
            self.tracker.end_epoch()
        self._seen.end_epoch()
        self.progress.end_epoch()
        if self._group.world_size > 1:
            self._agreed = self._group.any(self.progress.is_due)
        return self.due

    def _check_column(self, tracker: ScoreTracker) -> None:
        # What score_fn returns is known once it was called: better after one epoch than after all of them.
        selection = self._config.selection
        if self._config.scores or self._rescore is not None or selection is None or not selection.reads_scores:
            return
        columns = tracker.columns
        if not self._group.any(selection.by in columns):
            raise ArgumentError("by", f"must be a column that score_fn returned, one of {columns}", selection.by)

    def table(self) -> ScoreTable | None:
        """What was found of the rows that may be trained on; of tracked scores on rank 0 alone."""
        tracked = None
        if self.tracker is not None and self._group.rank == 0:
            provenance: dict[str, Any] = {"scoring": self._config.scoring()}
            provenance |= {"classes": self._classes} if self._classes else {}
            tracked = self.tracker.table(keys=self._keys, fingerprint=self._fingerprint, provenance=provenance)
        found = tracked if self._rescore is None else self._rescore(tracked)
        return None if found is None else self._seen.only(found)

    def resume(self, token: Token, *, loader_resumes: bool) -> bool:
        """The first batch after a restart tells whether the open epoch goes on or starts again; whether it is over."""
        batches = self.progress.settle()
        if batches >= self.progress.batches_per_pass:
            return True
        if loader_resumes:
            token.skip(batches)
        elif token.index < batches:
            self.restart_epoch()
        return False

    def restart_epoch(self) -> None:
        """What was seen since the last epoch is forgotten: it comes again."""
        self.progress.restart_epoch()
        if self.tracker is not None:
            self.tracker.reset_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Counts and scores so far."""
        progress = self.progress
        return {
            "rank": self._group.rank,
            "world_size": self._group.world_size,
            "rows": progress.rows,
            "rows_open": progress.rows_open,
            "rows_per_pass": progress.rows_per_pass,
            "ended": progress.ended,
            "seen": self._seen.state_dict(),
            "tracker": None if self.tracker is None else self.tracker.state_dict(),
        }

    def check_state(self, state: Any) -> None:
        """Refuse a state that is damaged or holds scores of another protocol."""
        tracker = state.get("tracker") if isinstance(state, dict) else None
        counts = dict.fromkeys(("rank", "world_size", "rows", "rows_open", "rows_per_pass", "ended"), int)
        parts = {"seen": self._seen.layout, "tracker": None if tracker is None else type(tracker)}
        check_layout(state, {**counts, **parts}, "state['scoring']")
        for name in counts:
            check_count(state[name], f"state['scoring'][{name!r}]")
        for name, limit in (("rank", "world_size"), ("rows_open", "rows"), ("ended", "rows")):
            if state[name] > state[limit] - (name == "rank"):
                raise StateError(
                    f"state['scoring'][{name!r}] must be less than {limit}, or as many, which is {state[limit]}; got "
                    f"{state[name]}"
                )
        if (tracker is None) != (self.tracker is None):
            raise StateError("the state was saved with scores of another protocol (rescore=) than this run's")
        if self.tracker is not None and tracker is not None:
            self.tracker.check_state(tracker)

    def load_state_dict(self, state: dict[str, Any], *, batches_open: int, drawn: bool = False) -> None:
        """Go on from there; on all ranks together.

        Where a rank lacks its share of an epoch that was cut off (it was given the state of another rank, or there
        were more or fewer), that epoch starts again on all of them. One that was ``drawn`` goes on, and what it had
        read keeps the scores of earlier epochs.
        """
        progress, group, tracker = self.progress, self._group, state["tracker"]
        moved = state["world_size"] != group.world_size
        anothers = moved or (state["rank"] != group.rank and tracker is not None)
        again = group.any(anothers and state["rows_open"] > 0)
        if self.tracker is not None:
            self.tracker.load_state_dict({**tracker, "share": None} if again else tracker)
        self._seen.load_state_dict(state["seen"])
        self._starts_again = again and not drawn
        rows = state["rows"] - state["rows_open"] * again
        if moved and progress.rows_per_pass and state["rows_per_pass"]:
            rows = round(rows * progress.rows_per_pass / state["rows_per_pass"])
        elif moved:
            rows = rows * state["world_size"] // group.world_size
        progress.go_on(rows, 0 if again else state["rows_open"], state["ended"], batches_open)
        self._agreed = group.world_size > 1 and not group.any(not progress.is_due)

    def check_start(self, skipped: bool) -> None:
        """Refuse a first pass after a restart that leaves out (``skipped``) batches whose scores are not all there."""
        if self._starts_again and skipped:
            raise StateError(
                "the run was saved inside a scoring epoch, by another rank or by another number of ranks, and what "
                "this rank had scored of that epoch is not in the state: begin the epoch again, with all its batches, "
                "or give each rank the state that it saved itself"
            )
        self._starts_again = False
