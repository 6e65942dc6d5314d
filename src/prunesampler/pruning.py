"""The handle of an attached loader: it follows a training run from scoring to the pruned epochs."""

from __future__ import annotations

import logging
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Sampler

from prunesampler.binding import Binder, Pass, Token
from prunesampler.distributed import Group
from prunesampler.errors import (
    ArgumentError,
    BindingError,
    PruneSamplerError,
    PruneSamplerWarning,
    RankError,
    StateError,
)
from prunesampler.fingerprint import matches
from prunesampler.forward import ForwardHook, find_logits, find_targets
from prunesampler.layouts import check_layout
from prunesampler.plan import Plan
from prunesampler.pruned import PrunedEpochs
from prunesampler.replacement import Replacement
from prunesampler.rowloader import RowLoader, plain_class, row_loader_class
from prunesampler.rundir import RunDir
from prunesampler.scoring import Scoring
from prunesampler.snapshot import check_moment, check_state, coreset_state, load_coreset
from prunesampler.tables import Coreset, ScoreTable
from prunesampler.tracker import ScoreTracker

__all__ = ["Pruning"]

_VERSION = 4
_log = logging.getLogger("prunesampler")

Phase = Literal["scoring", "pruned", "scored", "detached"]


class Pruning:
    """What ``loader.pruning`` is: made by :func:`prunesampler.attach`, not by hand."""

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
        fingerprint: str | None,
        logits_fn: Callable[[Any], Tensor] | None,
        target_fn: Callable[[Any], Any] | None,
        train_on_all: bool,
    ) -> None:
        self._loader_ref = weakref.ref(loader)  # so that a loader, and its workers, end with the last name for it
        self._plan, self._scoring, self._pruned = plan, scoring, pruned
        self._replacement, self._binder, self._rundir, self._group = replacement, binder, rundir, group
        self._find_logits, self._find_targets = logits_fn or find_logits, target_fn or find_targets
        self._fingerprint, self._train_on_all = fingerprint, train_on_all
        self._given: Coreset | None = None
        self._phase: Phase = "scoring"
        self._scored_epochs = plan.score_epochs
        self._paused = self._base_resumes = False
        self._binder.following = scoring.online
        self._pass: Pass | None = None  # the one that was trained on last
        self._forwards_unfetched = 0
        self._skipped = 0  # batches of the next pass that its loader leaves out
        self._hook = None if model is None else ForwardHook(model, self)

    @property
    def _loader(self) -> Any:
        return self._loader_ref()

    # -- what a user reads and calls ---------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """``"scoring"``, then ``"pruned"`` (or ``"scored"`` under ``keep=None``); ``"detached"`` at the end."""
        return self._phase

    @property
    def coreset(self) -> Coreset | None:
        """The kept rows; None until they are selected."""
        return self._pruned.coreset

    @property
    def sampler(self) -> Sampler[int]:
        """What orders the loader now: its own sampler, then a :class:`PrunedSampler`."""
        return self._pruned.sampler

    @property
    def tracker(self) -> ScoreTracker | None:
        """The online scores so far; :meth:`ScoreTracker.record` adds columns of one's own."""
        return self._scoring.tracker

    @property
    def table(self) -> ScoreTable | None:
        """The scores; None until the scoring epochs are over, and on ranks above 0."""
        return None if self._phase == "scoring" else self._rundir.table

    def total_steps(self, epochs: int) -> int:
        """Batches that this rank's loader hands out over a whole run, scoring epochs included.

        Under ``resume=True`` the scoring epochs of the run that is resumed count too. A new run on its coreset has
        none: give :func:`prunesampler.attach` that ``coreset=`` instead.

        Args:
            epochs: passes over the loader, >= 0.

        Raises:
            ArgumentError: epochs is not an int >= 0.
            StateError: under ``keep="auto"`` with ``epoch_length="kept"``, while the rows are not selected yet.
        """
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
            raise ArgumentError("epochs", "must be an int >= 0", epochs)
        now = self._replacement.batches()
        if now is None:
            raise StateError("a shard pipeline does not say how many batches one pass hands out: count a pass")
        full = min(epochs, self._scored_epochs)
        later = now if epochs == full else self._pruned.batches
        if later is None:
            raise StateError(
                'how many rows keep="auto" leaves is known when they are selected: ask again then, or give attach '
                'epoch_length="full", which keeps the number of steps'
            )
        return full * now + (epochs - full) * later

    def observe(self, logits: Tensor, inputs: Any = None) -> None:
        """Give the logits of the batch that waits, where no forward hook can see them.

        Args:
            logits: (B, classes), in the order of the batch; any device.
            inputs: the batch's inputs as the loader gave them, needed where several batches wait.

        Raises:
            BindingError: no batch waits, or it cannot be told which.
        """
        if self._phase == "detached" or self._paused:
            return
        with self._guard():
            token = self._binder.take_waiting() if inputs is None else self._binder.match(inputs)
            if token is None:
                raise BindingError("observe(logits, inputs): these inputs are not a batch that waits for its logits")
            self._bind(token, lambda: logits)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within this context batches and forwards are not followed, and no set is switched."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def finish(self) -> Coreset | None:
        """End the scoring now, select and write; the next pass is pruned. On all ranks, where there are several.

        Returns:
            The coreset; None under ``keep=None``.

        Raises:
            StateError: nothing has been scored yet.
        """
        if self._phase == "scoring":
            if not self._scoring.progress.rows:
                raise StateError("finish() has nothing to write: no batch has been trained on since attach")
            self._end_epoch()
            self._conclude()
        return self.coreset

    def follow(self, rest: Any, *, skipped: int) -> None:
        """Follow another loader through the rest of one pass: a framework's, made to leave out its first batches.

        Args:
            rest: made from the attached loader's dataset, batch sampler and collate function; read next, and once.
            skipped: batches that it leaves out.
        """
        rest = vars(rest).get("base_dataloader", rest)
        rest.__class__ = row_loader_class(RowLoader, cast(Any, type(rest)))
        rest._row_listener = self
        self._skipped = skipped

    def end_pass(self) -> None:
        """End the pass that was trained on, and the scoring where it is due; on all ranks.

        For loops that count batches and so never ask an iterator for more than there are: where one rank alone
        switches its set at the next ``iter(loader)`` by itself, several need to meet.

        Raises:
            BindingError: a whole pass went by, and no logits came.
        """
        if self._pass is not None:
            self._pass.closed = True
        if self._phase != "scoring" or self._paused:
            return
        with self._guard():
            self._binder.check_seen()
            self._scoring.progress.cut_off = 0
            if self._scoring.progress.rows_open:
                self._end_epoch()
            if self._scoring.due:
                self._conclude()

    def detach(self) -> None:
        """Leave the loader as it was before :func:`prunesampler.attach`, its own sampler included."""
        if self._phase == "detached":
            return
        self._phase = "detached"
        if self._hook is not None:
            self._hook.remove()
        self._binder.clear()
        self._pruned.end()
        if self._loader is not None:
            self._loader.__class__ = plain_class(self._loader)

    # -- what the loader and the model report ------------------------------------------------------------------

    def before_pass(self) -> None:
        """``iter(loader)``: the moment when the set may change."""
        if self._paused or self._phase == "detached":
            return
        self._replacement.check_in_place(self._loader, self.sampler)
        if not torch.is_grad_enabled():
            return  # an evaluation
        if self._phase == "scoring" and self._owes_rest:
            self._scoring.check_start(skipped=True)
        elif self._phase == "scoring" and self._scoring.due:
            if hasattr(self._loader, "next_iter_state"):  # nothing but the state of a sampler that is replaced now
                vars(self._loader)["next_iter_state"] = None
            with self._guard():
                if self._scoring.progress.rows_open:
                    self._end_epoch()
                self._conclude()
        if self._phase == "pruned":
            self._pruned.before_pass()

    def started(self) -> Pass:
        """An iterator begins."""
        skipped, self._skipped = self._skipped, 0
        return self._binder.start(skipped)

    def fetched(self, token: Pass, rows: NDArray[np.int64], batch: Any) -> None:
        """A batch is handed out."""
        if self._paused or self._phase in ("detached", "scored"):
            return
        self._forwards_unfetched = 0
        if token.fetched == token.skipped and self._phase == "pruned":
            self._pruned.started(token)
        with self._guard():
            online = self._phase == "scoring" and self._scoring.online
            targets = self._find_targets(batch) if online else None
            in_training = torch.is_grad_enabled() if self._hook is None else self._hook.in_training
            self._binder.fetched(token, torch.from_numpy(rows), batch, targets, in_training)

    def exhausted(self, token: Pass) -> None:
        """An iterator ended."""
        token.exhausted = True
        with self._guard():
            self._close(token)

    def forwarded(self, inputs: tuple[Any, ...], output: Any) -> None:
        """A training forward has returned."""
        if self._paused or self._phase in ("detached", "scored"):
            return
        with self._guard():
            self._forwards_unfetched += 1
            if self._forwards_unfetched > 64 and self._pass is None:
                raise BindingError(
                    "the model trains, but the attached loader hands out no batches: call attach after the framework "
                    "has prepared the loader (some build a new one), and before the loop begins"
                )
            token = self._binder.match(inputs)
            if token is not None:
                self._bind(token, lambda: self._find_logits(output))

    # -- one batch, one epoch, the end of scoring --------------------------------------------------------------

    def _bind(self, token: Token, logits: Callable[[], Tensor]) -> None:
        before = self._open_pass()
        if before is not None and before is not token.of and self._phase == "scoring":
            self._close(before, abandoned=True)
        if self._phase == "scoring" and self._scoring.progress.cut_off:
            loader_resumes = self._base_resumes or hasattr(self._loader, "load_state_dict")
            if self._scoring.resume(token, loader_resumes=loader_resumes):
                self._end_epoch()
        self._pass = token.of
        if self._phase == "scoring":
            self._scoring.present(token, logits, real=self._replacement.real_rows(token.index))
        elif self._pruned.weighted and token.of.position is not None:
            self._pruned.weight(token, logits())
        self._close(token.of)

    def _open_pass(self) -> Pass | None:
        return self._pass if self._pass is not None and not self._pass.closed else None

    def _close(self, of: Pass, abandoned: bool = False) -> None:
        """End the epoch if its last batch is bound."""
        if of.closed or not of.bound or not (abandoned or (of.exhausted and not self._binder.waiting(of))):
            return
        of.closed = True
        if self._phase == "scoring" and self._end_epoch():
            self._conclude()

    def _end_epoch(self) -> bool:
        if self._pass is not None:
            self._pass.closed = True
        return self._scoring.end_epoch(self._binder)

    @property
    def _owes_rest(self) -> bool:
        """Whether a StatefulDataLoader has yet to hand out the rest of an epoch that was cut off."""
        state = getattr(self._loader, "next_iter_state", None) or {"_iterator_finished": True}
        return not state.get("_iterator_finished")

    def _conclude(self) -> None:
        """Select and write; on several ranks all come here together."""
        with self.paused():
            table = self._scoring.table()
        self._conclude_with(table)

    def begin(self, given: Coreset | None) -> None:
        """Start on a given coreset, or on what an earlier run left; otherwise with scoring."""
        self._given = given
        if given is not None:
            self._scored_epochs = 0
            self._prune(given)
        elif self._rundir.finished:
            found = self._rundir.take_up(self._plan.scoring(), self._plan.selection)
            if found is None:
                _log.info("selecting again from the scores in %s", self._rundir.scores_path)
                self._conclude_with(None)
            else:
                self._prune(found)

    def _conclude_with(self, table: ScoreTable | None) -> None:
        coreset = self._rundir.conclude(table, self._plan.selection, eligible=self._replacement.eligible)
        if coreset is not None:
            self._prune(coreset)
        else:
            self._stop_scoring("scored")
            _log.info("scored %d rows%s", self._replacement.num_rows, self._written())

    def _prune(self, coreset: Coreset) -> None:
        self._pruned.begin(coreset)
        self._stop_scoring("pruned")

    def _stop_scoring(self, phase: Phase) -> None:
        self._phase = phase
        self._binder.following = self._pruned.weighted
        if self.coreset is not None:
            kept, eligible = len(self.coreset), self._replacement.num_eligible
            _log.info("training on %d of %d rows (%s)%s", kept, eligible, _how(self.coreset), self._written())

    def _written(self) -> str:
        path = self._rundir.scores_path
        return "" if path is None else f", written to {path.parent}"

    # -- failure -----------------------------------------------------------------------------------------------

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except (PruneSamplerError, OSError) as error:  # a full disk is no reason to lose the run either
            if not self._train_on_all or self._phase == "pruned" or isinstance(error, RankError):
                raise
            self._scoring.failed = True
            self._binder.following = False
            if self._group.world_size == 1 or self._scoring.abandoned:
                message = f"scoring failed, so training goes on with all rows: {error}"
                warnings.warn(message, PruneSamplerWarning, stacklevel=3)
                self.detach()

    # -- restart -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that a restart needs, as tensors and plain Python; of this rank alone, without communication.

        Save it beside the model that it belongs to, and load it with ``torch.load(..., weights_only=True)``.
        """
        open_pass = self._open_pass()
        state: dict[str, Any] = {
            "version": _VERSION,
            "plan": self._plan.to_dict(),
            "num_rows": self._replacement.num_rows,
            "fingerprint": self._fingerprint,
            "phase": self._phase,
            "batches_open": self._scoring.progress.cut_off if open_pass is None else open_pass.trained,
            "scoring": self._scoring.state_dict() if self._phase == "scoring" else None,
            "coreset": None if self.coreset is None else coreset_state(self.coreset),
            "sampler": None,
        }
        if self._phase == "pruned":
            state["sampler"] = self._pruned.position(self._pass)
        return state

    def load_state_dict(self, state: dict[str, Any], *, mid_epoch: bool = True, base_resumes: bool = False) -> None:
        """Go on where :meth:`state_dict` was taken; before the first pass, and on all ranks together.

        Any number of ranks may go on. Give each the state that it saved itself, or all of them rank 0's. The rest of
        a pruned epoch is split anew. A scoring epoch starts again where a rank lacks what it had scored of it.

        Args:
            state: what :meth:`state_dict` returned in a run with the same arguments and dataset.
            mid_epoch: whether the next pass continues inside the epoch that was cut off. False where the loop or
                its framework skips the batches that were trained itself.
            base_resumes: whether the loader's own sampler was set to where a scoring epoch was cut off.

        Raises:
            StateError: the state is of another version, plan or dataset, of another moment than that of other ranks,
                or damaged; the run is then as before.
        """
        try:
            self._check_state(state)
        except StateError:
            self._group.exchange(None)  # the others must not wait
            raise
        check_moment(state, self._group)
        if state["phase"] == "scoring":
            self._scoring.load_state_dict(state["scoring"], batches_open=state["batches_open"])
            if base_resumes:
                self._scoring.check_start(skipped=True)
            self._replacement.go_to(self._scoring.progress.ended)
            self._pruned.end()
            self._pruned.coreset, self._phase = None, "scoring"
            self._binder.following = self._scoring.online
            self._binder.expect_skips(state["batches_open"])
        elif state["phase"] == "pruned":
            skips = self._pruned.resume(state["coreset"], state["sampler"], mid_epoch=mid_epoch)
            self._stop_scoring("pruned")
            self._binder.expect_skips(skips)
        elif state["phase"] == "scored":
            self._pruned.end()
            self._pruned.coreset = None
            self._stop_scoring("scored")
        else:
            self.detach()
        self._binder.clear()
        self._base_resumes = base_resumes
        self._pass = None

    def _check_state(self, state: dict[str, Any]) -> None:
        own = self.state_dict()
        check_state(state, set(own), {name: own[name] for name in ("version", "plan", "num_rows")})
        if not matches(state["fingerprint"], self._fingerprint):
            raise StateError(
                f"the state was saved on a dataset with fingerprint {state['fingerprint']}, and this one has "
                f"{self._fingerprint}"
            )
        check_layout(state["batches_open"], int, "state['batches_open']")
        if state["phase"] not in get_args(Phase):
            raise StateError(f"state['phase'] must be one of {get_args(Phase)}, got {state['phase']!r}")
        if self._given is not None and (state["coreset"] is None or load_coreset(state["coreset"]) != self._given):
            raise StateError("the state was not saved on the coreset that attach(coreset=...) was given now")
        if state["phase"] == "scoring":
            self._scoring.check_state(state["scoring"])


def _how(coreset: Coreset) -> str:
    options, spare = coreset.selection.get("options", {}), coreset.selection.get("superfluous")
    if spare is not None:
        return f"{spare} are superfluous by {options.get('by')}"
    return f"{options.get('method', 'a given coreset')} by {options.get('by', 'its maker')}"
