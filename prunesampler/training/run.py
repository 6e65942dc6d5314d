"""A training run, followed from scoring to the pruned epochs."""

from __future__ import annotations

import logging
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunesampler.capture.binder import Binder, Pass, Token
from prunesampler.capture.forward_hook import ForwardHook, find_logits, find_targets
from prunesampler.capture.row_loader import RowLoader, plain_class
from prunesampler.errors import BindingError, PruneSamplerError, PruneSamplerWarning, RankError, StateError
from prunesampler.tables.score_table import Coreset, ScoreTable
from prunesampler.tracking.ranks import Group
from prunesampler.training.config import Plan
from prunesampler.training.pruned_phase import PrunedEpochs
from prunesampler.training.run_folder import RunDir
from prunesampler.training.sampler_swap import Replacement
from prunesampler.training.scoring_phase import Scoring

__all__ = ["Phase", "Run"]

_log = logging.getLogger("prunesampler")

Phase = Literal["scoring", "pruned", "scored", "detached"]


class Run:
    """What a loader and a model report of a training run, and what becomes of it.

    Args:
        loader: reports its passes here.
        model: whose training forwards are seen; None where logits are given by hand.
        plan: what is wanted.
        scoring: takes the logits.
        pruned: the epochs after that.
        replacement: puts other samplers into the loader.
        binder: which logits belong to which rows.
        rundir: where scores and coreset are written.
        group: the ranks of the run.
        logits_fn: the model's output → logits (B, classes).
        target_fn: a batch → targets (B,).
        train_on_all: whether training goes on with all rows where scoring fails.

    Attributes:
        phase: ``"scoring"``, then ``"pruned"`` (or ``"scored"`` where nothing is selected); ``"detached"`` at the end.
        current: the pass that was trained on last.
        given: the coreset that the run began with, if it did not score.
        scored_epochs: epochs before the pruned ones.
        paused: whether batches and forwards are passed over.
        base_resumes: whether the loader's own sampler was set to where a scoring epoch was cut off.
        skipped: batches of the next pass that its loader leaves out.
    """

    def __init__(
        self,
        loader: RowLoader[Any],
        model: nn.Module | None,
        plan: Plan,
        *,
        scoring: Scoring,
        pruned: PrunedEpochs,
        replacement: Replacement,
        binder: Binder,
        rundir: RunDir,
        group: Group,
        logits_fn: Callable[[Any], Tensor] | None,
        target_fn: Callable[[Any], Any] | None,
        train_on_all: bool,
    ) -> None:
        self._loader_ref = weakref.ref(loader)  # so that a loader, and its workers, end with the last name for it
        self.plan, self.scoring, self.pruned = plan, scoring, pruned
        self.replacement, self.binder, self.rundir = replacement, binder, rundir
        self._find_logits, self._find_targets = logits_fn or find_logits, target_fn or find_targets
        self._group, self._train_on_all = group, train_on_all
        self.phase: Phase = "scoring"
        self.current: Pass | None = None
        self.given: Coreset | None = None
        self.scored_epochs = plan.score_epochs
        self.paused = self.base_resumes = False
        self.skipped = 0
        self.binder.follow(scoring.online)
        self._forwards_unfetched = 0
        self._hook = None if model is None else ForwardHook(model, self)

    @property
    def _loader(self) -> Any:
        return self._loader_ref()

    # -- what the loader and the model report ------------------------------------------------------------------

    def before_pass(self) -> None:
        """``iter(loader)``: the moment when the set may change."""
        if self.paused or self.phase == "detached":
            return
        self.replacement.check_in_place(self._loader, self.pruned.sampler)
        if not torch.is_grad_enabled():
            return  # an evaluation
        if self.phase == "scoring" and self._owes_rest:
            self.scoring.check_start(skipped=True)
        elif self.phase == "scoring" and self.scoring.due:
            if hasattr(self._loader, "next_iter_state"):  # nothing but the state of a sampler that is replaced now
                vars(self._loader)["next_iter_state"] = None
            with self._guard():
                if self.scoring.progress.rows_open:
                    self._end_epoch()
                self._conclude()
        if self.phase == "pruned":
            self.pruned.before_pass()

    def started(self) -> Pass:
        """An iterator begins."""
        skipped, self.skipped = self.skipped, 0
        return self.binder.start(skipped)

    def fetched(self, token: Pass, rows: NDArray[np.int64], batch: Any) -> None:
        """A batch is handed out."""
        if self.paused or self.phase in ("detached", "scored"):
            return
        self._forwards_unfetched = 0
        if token.fetched == token.skipped and self.phase == "pruned":
            self.pruned.started(token)
        with self._guard():
            online = self.phase == "scoring" and self.scoring.online
            targets = self._find_targets(batch) if online else None
            in_training = torch.is_grad_enabled() if self._hook is None else self._hook.in_training
            self.binder.fetched(token, torch.from_numpy(rows), batch, targets, in_training)

    def exhausted(self, token: Pass) -> None:
        """An iterator ended."""
        token.exhaust()
        with self._guard():
            self._close(token)

    def forwarded(self, inputs: tuple[Any, ...], output: Any) -> None:
        """A training forward has returned."""
        if self.paused or self.phase in ("detached", "scored"):
            return
        with self._guard():
            self._forwards_unfetched += 1
            if self._forwards_unfetched > 64 and self.current is None:
                raise BindingError(
                    "the model trains, but the attached loader hands out no batches: call attach after the framework "
                    "has prepared the loader (some build a new one), and before the loop begins"
                )
            token = self.binder.match(inputs)
            if token is not None:
                self._bind(token, lambda: self._find_logits(output))

    # -- what a user asks for ----------------------------------------------------------------------------------

    def observe(self, logits: Tensor, inputs: Any) -> None:
        """Logits given by hand, of the batch that waits or of these inputs."""
        if self.phase == "detached" or self.paused:
            return
        with self._guard():
            token = self.binder.take_waiting() if inputs is None else self.binder.match(inputs)
            if token is None:
                raise BindingError("observe(logits, inputs): these inputs are not a batch that waits for its logits")
            self._bind(token, lambda: logits)

    def finish(self) -> None:
        """End the scoring now."""
        if self.phase == "scoring":
            if not self.scoring.progress.rows:
                raise StateError("finish() has nothing to write: no batch has been trained on since attach")
            self._end_epoch()
            self._conclude()

    def end_pass(self) -> None:
        """End the pass that was trained on, and the scoring where it is due."""
        if self.current is not None:
            self.current.close()
        if self.phase != "scoring" or self.paused:
            return
        with self._guard():
            self.binder.check_seen()
            self.scoring.progress.cut_off = 0
            if self.scoring.progress.rows_open:
                self._end_epoch()
            if self.scoring.due:
                self._conclude()

    def detach(self) -> None:
        """Leave the loader as it was."""
        if self.phase == "detached":
            return
        self.phase = "detached"
        if self._hook is not None:
            self._hook.remove()
        self.binder.clear()
        self.pruned.end()
        if self._loader is not None:
            self._loader.__class__ = plain_class(self._loader)

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Within this context nothing is followed, and no set is switched."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    # -- one batch, one epoch, the end of scoring --------------------------------------------------------------

    def _bind(self, token: Token, logits: Callable[[], Tensor]) -> None:
        before = self.open_pass()
        if before is not None and before is not token.of and self.phase == "scoring":
            self._close(before, abandoned=True)
        if self.phase == "scoring" and self.scoring.progress.cut_off:
            loader_resumes = self.base_resumes or hasattr(self._loader, "load_state_dict")
            if self.scoring.resume(token, loader_resumes=loader_resumes):
                self._end_epoch()
        self.current = token.of
        if self.phase == "scoring":
            self.scoring.present(token, logits, real=self.replacement.real_rows(token.index))
        elif self.pruned.weighted and token.of.position is not None:
            self.pruned.weight(token, logits())
        self._close(token.of)

    def open_pass(self) -> Pass | None:
        """The pass that was trained on last, unless it has ended."""
        return self.current if self.current is not None and not self.current.closed else None

    def _close(self, of: Pass, abandoned: bool = False) -> None:
        """End the epoch if its last batch is bound."""
        if of.closed or not of.bound or not (abandoned or (of.exhausted and not self.binder.waiting(of))):
            return
        of.close()
        if self.phase == "scoring" and self._end_epoch():
            self._conclude()

    def _end_epoch(self) -> bool:
        if self.current is not None:
            self.current.close()
        return self.scoring.end_epoch(self.binder)

    @property
    def _owes_rest(self) -> bool:
        """Whether a StatefulDataLoader has yet to hand out the rest of an epoch that was cut off."""
        state = getattr(self._loader, "next_iter_state", None) or {"_iterator_finished": True}
        return not state.get("_iterator_finished")

    def _conclude(self) -> None:
        """Select and write; on several ranks all come here together."""
        with self.pausing():
            table = self.scoring.table()
        self._conclude_with(table)

    def begin(self, given: Coreset | None) -> None:
        """Start on a given coreset, or on what an earlier run left; otherwise with scoring."""
        self.given = given
        if given is not None:
            self.scored_epochs = 0
            self._prune(given)
        elif self.rundir.finished:
            found = self.rundir.take_up(self.plan.scoring(), self.plan.selection)
            if found is None:
                _log.info("selecting again from the scores in %s", self.rundir.scores_path)
                self._conclude_with(None)
            else:
                self._prune(found)

    def _conclude_with(self, table: ScoreTable | None) -> None:
        coreset = self.rundir.conclude(table, self.plan.selection, eligible=self.replacement.eligible)
        if coreset is not None:
            self._prune(coreset)
        else:
            self.stop_scoring("scored")
            _log.info("scored %d rows%s", self.replacement.num_rows, self._written())

    def _prune(self, coreset: Coreset) -> None:
        self.pruned.begin(coreset)
        self.stop_scoring("pruned")

    def stop_scoring(self, phase: Phase) -> None:
        """Nothing is scored any more."""
        self.phase = phase
        self.binder.follow(self.pruned.weighted)
        if self.pruned.coreset is not None:
            kept, eligible = len(self.pruned.coreset), self.replacement.num_eligible
            _log.info("training on %d of %d rows (%s)%s", kept, eligible, _how(self.pruned.coreset), self._written())

    def _written(self) -> str:
        path = self.rundir.scores_path
        return "" if path is None else f", written to {path.parent}"

    # -- failure -----------------------------------------------------------------------------------------------

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except (PruneSamplerError, OSError) as error:  # a full disk is no reason to lose the run either
            if not self._train_on_all or self.phase == "pruned" or isinstance(error, RankError):
                raise
            self.scoring.failed = True
            self.binder.follow(False)
            if self._group.world_size == 1 or self.scoring.abandoned:
                message = f"scoring failed, so training goes on with all rows: {error}"
                warnings.warn(message, PruneSamplerWarning, stacklevel=3)
                self.detach()


def _how(coreset: Coreset) -> str:
    options, spare = coreset.selection.get("options", {}), coreset.selection.get("superfluous")
    if spare is not None:
        return f"{spare} are superfluous by {options.get('by')}"
    return f"{options.get('method', 'a given coreset')} by {options.get('by', 'its maker')}"
