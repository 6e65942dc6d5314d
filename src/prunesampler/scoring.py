"""The scoring epochs of an attached run: what is credited, how far they have come, what they found."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map_only

from prunesampler.binding import Binder, Token
from prunesampler.distributed import Group
from prunesampler.errors import ArgumentError, StateError
from prunesampler.layouts import check_layout
from prunesampler.plan import Plan
from prunesampler.progress import Progress
from prunesampler.tables import ScoreTable
from prunesampler.tracker import ScoreTracker

__all__ = ["Scoring"]


class Scoring:
    """Scores of the training batches, of a pass of their own at the end, or both.

    Args:
        plan: what is scored, and for how long.
        progress: how far it has come.
        tracker: of the training batches; None where all scores come from a pass of their own.
        rescore: that pass: what was tracked → the table; None where there is none.
        group: the ranks of the run.
        keys, fingerprint: of the dataset, for the table.

    Attributes:
        failed: whether this rank has given up.
        abandoned: whether all ranks know that one of them has.
        due: whether the scoring epochs are over: as counted here, or as several ranks agreed at the end of the last.
    """

    def __init__(
        self,
        plan: Plan,
        progress: Progress,
        *,
        tracker: ScoreTracker | None,
        rescore: Callable[[ScoreTable | None], ScoreTable] | None,
        group: Group,
        keys: Any,
        fingerprint: str | None,
    ) -> None:
        self.progress, self.tracker, self.failed = progress, tracker, False
        self.abandoned = False
        self._plan, self._rescore, self._group = plan, rescore, group
        self._keys, self._fingerprint = keys, fingerprint
        self._agreed = False

    @property
    def online(self) -> bool:
        """Whether training batches are credited to rows."""
        return self.tracker is not None and not self.failed

    @property
    def due(self) -> bool:
        """Whether it is time to select, at the next ``iter``."""
        return self.progress.is_due if self._group.world_size == 1 else self._agreed

    def present(self, token: Token, logits: Callable[[], Tensor], *, real: int = sys.maxsize) -> None:
        """One batch was trained on, whose first ``real`` rows count: the others only fill it up."""
        if self.online and self.tracker is not None:
            values, rows, targets = logits(), token.rows, token.targets
            token.check_counts(values)
            if real < len(rows):
                rows, values = rows[:real], values[:real]
                targets = tree_map_only(Tensor, lambda column: column[:real] if column.dim() else column, targets)
            if len(rows):
                self.tracker.update(rows, values, targets)
        self.progress.train(len(token.rows))

    def end_epoch(self, binder: Binder) -> bool:
        """Merge what was seen since the last epoch, over all ranks.

        Returns:
            Whether to select at once: several ranks do it here, in a training forward, where all of them are; in
            ``iter`` they need not be.

        Raises:
            StateError: another rank has failed.
            ArgumentError: score_fn does not return the score to select by.
        """
        self.progress.end_epoch()
        self.abandoned = self._group.any(self.failed)
        if self.abandoned:
            raise StateError("scoring failed on one of the ranks")
        if self.tracker is not None:
            binder.check()
            self._check_column(self.tracker)
            self.tracker.end_epoch()
        if self._group.world_size == 1:
            return False
        self._agreed = self._group.any(self.progress.is_due)
        return self._agreed and self._rescore is None

    def _check_column(self, tracker: ScoreTracker) -> None:
        # What score_fn returns is known once it was called: better after one epoch than after all of them.
        selection = self._plan.selection
        if self._plan.scores or self._rescore is not None or selection is None or selection.method == "random":
            return
        columns = tracker.columns
        if not self._group.any(selection.by in columns):
            raise ArgumentError("by", f"must be a column that score_fn returned, one of {columns}", selection.by)

    def table(self) -> ScoreTable | None:
        """What was found; of tracked scores on rank 0 alone."""
        tracked = None
        if self.tracker is not None and self._group.rank == 0:
            provenance = {"scoring": self._plan.scoring()}
            tracked = self.tracker.table(keys=self._keys, fingerprint=self._fingerprint, provenance=provenance)
        return tracked if self._rescore is None else self._rescore(tracked)

    def resume(self, token: Token, *, loader_resumes: bool) -> bool:
        """The first batch after a restart inside an epoch tells whether that epoch goes on or starts again.

        Args:
            token: that batch.
            loader_resumes: whether the loader itself goes on inside an epoch.

        Returns:
            Whether the epoch was complete and is over.
        """
        batches, self.progress.cut_off = self.progress.cut_off, 0
        if batches >= self.progress.batches_per_pass:
            return True
        if loader_resumes:
            token.index += batches
            token.of.fetched += batches
            token.of.trained += batches
        elif token.index < batches:
            self.progress.restart_epoch()
            if self.tracker is not None:
                self.tracker.reset_epoch()
        return False

    def state_dict(self) -> dict[str, Any]:
        """Counts and scores so far."""
        progress = self.progress
        tracker = None if self.tracker is None else self.tracker.state_dict()
        return {"rows": progress.rows, "rows_open": progress.rows_open, "ended": progress.ended, "tracker": tracker}

    def load_state_dict(self, state: dict[str, Any], *, batches_open: int) -> None:
        """Go on from there; on all ranks together.

        Where a rank is given the state of another, as Accelerate does with rank 0's, its share of an epoch that was
        cut off is lost, and that epoch starts again on all of them.

        Raises:
            StateError: the state is damaged, or holds scores of another protocol. Nothing has changed then.
        """
        tracker = state.get("tracker") if isinstance(state, dict) else None
        lost = self._group.any(_is_anothers(tracker, self._group))
        layout = {"rows": int, "rows_open": int, "ended": int, "tracker": None if tracker is None else type(tracker)}
        check_layout(state, layout, "state['scoring']")
        if (state["tracker"] is None) != (self.tracker is None):
            raise StateError("the state was saved with scores of another protocol (rescore=) than this run's")
        if self.tracker is not None:
            if lost:
                state = {**state, "rows": state["rows"] - state["rows_open"], "rows_open": 0}
                state["tracker"] = {**state["tracker"], "share": None}
            self.tracker.load_state_dict(state["tracker"])
        self.progress.rows, self.progress.rows_open = state["rows"], state["rows_open"]
        self.progress.ended = state["ended"]
        self.progress.cut_off = batches_open if self.progress.rows_open else 0


def _is_anothers(tracker: Any, group: Group) -> bool:
    given = tracker if isinstance(tracker, dict) else {}
    return given.get("share") is not None and given.get("rank") != group.rank
