"""A training run, followed from scoring to the pruned epochs."""

from __future__ import annotations

import functools
import logging
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Literal, TypeVar, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunesampler.capture.batch_slice import batch_slice
from prunesampler.capture.binder import Binder, Pass, Token
from prunesampler.capture.find import Finder
from prunesampler.capture.forward_hook import ForwardHook
from prunesampler.capture.row_function import RowFunction
from prunesampler.capture.row_loader import RowLoader, plain_class, row_loader_class
from prunesampler.capture.rows import Collated
from prunesampler.errors import (
    BindingError,
    PruneSamplerError,
    PruneSamplerWarning,
    RankError,
    StateError,
    UnsupportedError,
)
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.score_table import ScoreTable
from prunesampler.tracking.eval_pass import model_inputs
from prunesampler.tracking.ranks import Group
from prunesampler.tracking.state import check_count, check_layout
from prunesampler.training.attachment import Attachment
from prunesampler.training.checkpoint import coreset_state, load_coreset
from prunesampler.training.config import RunConfig
from prunesampler.training.continuation import RunKey, carry, let_go, unwrapped, weakly
from prunesampler.training.proxy import ProxyTraining
from prunesampler.training.pruned_phase import PrunedPhase
from prunesampler.training.rescore_inputs import RescoreInputs
from prunesampler.training.run_folder import RunFolder
from prunesampler.training.scoring_phase import ScoringPhase

_log = logging.getLogger("prunesampler")

Phase = Literal["scoring", "pruned", "scored", "detached"]

F = TypeVar("F", bound=Callable[..., Any])


def _one_at_a_time(method: F) -> F:
    """A loader may be read ahead by a thread while the loop trains in another."""

    @functools.wraps(method)
    def locked(self: Run, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return method(self, *args, **kwargs)

    return cast(F, locked)


class Run:
    """What a loader and a model report of a training run, and what becomes of it.

    It holds neither, so that a loader (and its workers) and a model end with the last name for them.

    Attributes:
        phase: ``"scoring"``, then ``"pruned"`` (or ``"scored"`` where nothing is selected); ``"detached"`` at the end.
        given: the coreset that the run began with, if it did not score.
        scored_epochs: epochs before the pruned ones.
        key: what the run is known by, beside its model.
        group: its ranks.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        key: RunKey,
        scoring: ScoringPhase,
        pruned: PrunedPhase,
        swap: Any,
        binder: Binder,
        folder: RunFolder,
        group: Group,
        finder: Finder,
        row_fn: RowFunction | None,
        proxy: ProxyTraining | None,
        input_fn: Callable[[Any], Any] | None,
        rescore_inputs: RescoreInputs | None,
        train_on_all: bool,
    ) -> None:
        self.config, self.key, self.scoring, self.pruned = config, key, scoring, pruned
        self.swap, self.folder, self._binder = swap, folder, binder
        self._finder = finder
        self._rescore_inputs = rescore_inputs
        self._row_fn = row_fn
        self._find_inputs = model_inputs if input_fn is None else lambda model, batch, targets: input_fn(batch)
        self._filter = proxy
        self.group, self._train_on_all = group, train_on_all
        self.phase: Phase = "scoring"
        self.given: Coreset | None = None
        self.scored_epochs = config.score_epochs
        self._failure: Exception | None = None  # of what nobody heard
        self._current: Pass | None = None  # the pass that was trained on last
        self._lock = threading.RLock()
        self._paused: set[int] = set()  # threads
        self._failed_ahead: PruneSamplerError | None = None  # in a thread that reads ahead, where nobody may see it
        self._base_resumes = False  # whether the loader's own sampler was set to where a scoring epoch was cut off
        self._skipped = 0  # batches of the next pass that its loader leaves out
        self._forwards_unfetched = 0
        self._loader_ref: Callable[[], Any] = weakly(None)
        self._model_ref: Callable[[], nn.Module | None] = weakly(None)
        self._inner_ref: Callable[[], nn.Module | None] = weakly(None)  # the same without what wraps it
        self._tie: Callable[[], Attachment | None] = weakly(None)
        self._has_model = self._told = False
        self._hook: ForwardHook | None = None
        self._watches = True  # whether training forwards are followed
        self._has_bound = False  # whether one ever was, so that it is known how far a framework fetches ahead

    @property
    def _loader(self) -> Any:
        return self._loader_ref()

    @property
    def loader_lives(self) -> bool:
        """Whether the loader, or an iterator of it, is still there."""
        return self._tie() is not None

    # -- its loader and its model ------------------------------------------------------------------------------

    def tie(self, loader: RowLoader[Any], model: nn.Module | None) -> Attachment:
        """Follow this loader, which holds what is returned, and this model."""
        attachment = Attachment(self)
        self._tie, self._loader_ref = weakref.ref(attachment), weakref.ref(loader)
        if model is not None:
            self._has_model, self._model_ref = True, weakref.ref(model)
            self._inner_ref = weakref.ref(unwrapped(model))
            carry(model, self)
        self._unhook()
        self._follow()
        return attachment

    def is_tied_by(self, attachment: Attachment) -> bool:
        """Whether this is the loader that the run follows now."""
        return self._tie() is attachment

    def go_on_with(self, loader: RowLoader[Any], model: nn.Module | None, swap: Any) -> Attachment:
        """Follow another loader over the same rows; for the pass that was open it is as if the loop had left it."""
        self._release_loader()
        self._binder.clear()
        self.swap = swap
        self.scoring.progress.resize(swap.progress(self.config.score_epochs))
        self.pruned.move_to(swap)
        return self.tie(loader, model)

    def is_of(self, key: RunKey, model: nn.Module | None) -> bool:
        """Whether this is the run of such a model and key."""
        mine = self._inner_ref()
        same = not self._has_model if model is None else mine is unwrapped(model)
        return same and key.difference(self.key) is None

    def follows(self, loader: Any, model: nn.Module | None) -> bool:
        """Whether these very objects are the ones that the run follows now."""
        return self._loader is loader and self._model_ref() is model

    @property
    def has_begun(self) -> bool:
        """Whether anything was trained on, or selected."""
        return self.phase != "scoring" or self.scoring.progress.rows > 0

    def tell_once(self, message: str, stacklevel: int) -> None:
        """Warn, the first time."""
        if not self._told:
            self._told = True
            warnings.warn(message, PruneSamplerWarning, stacklevel=stacklevel + 1)

    def lose_loader(self) -> None:
        """The loader and all its iterators are gone."""
        self._binder.clear()
        self.folder.release()
        if self.phase == "scoring" and self.scoring.progress.rows and not self._told:
            self._told = True
            _log.warning(
                "the attached loader is gone, %s, and nothing is scored any more: keep the loader, or where a loop "
                "makes it anew attach each of them, to the same model and with the same options, and the run goes on",
                self.progress,
            )

    @property
    def progress(self) -> str:
        """How far the run is, for people."""
        if self.phase != "scoring":
            return f"already {self.phase}"
        of = self.scoring.progress
        return f"{of.ended + (of.rows_open > 0)} of {of.epochs} scoring epochs begun"

    # -- what the loader and the model report ------------------------------------------------------------------

    @_one_at_a_time
    def before_pass(self) -> None:
        """``iter(loader)``: the moment when the set may change."""
        if self._is_paused or self.phase == "detached":
            return
        failure, self._failure = self._failure, None
        if failure is not None:
            with self._guard():
                raise failure
        self.swap.check_in_place(self._loader, self.pruned.in_place)
        self.pruned.take_place()
        if not torch.is_grad_enabled():
            return  # an evaluation
        if self._current is None:
            with self._guard():
                self._binder.check_called()
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
            left_early = self.scoring.progress.rows_open and self.pruned.at_the_end
            if self._tracks_draws and left_early and self.group.world_size == 1:
                self._end_drawn_epoch()
            self.pruned.before_pass(self._binder)
            self._follow()

    @_one_at_a_time
    def started(self) -> Pass:
        """An iterator begins."""
        skipped, self._skipped = self._skipped, 0
        return self._binder.start(skipped, self._is_paused)

    @_one_at_a_time
    def fetched(self, token: Pass, item: Collated) -> Any:
        """A batch is fetched. Returns what is handed out of it."""
        batch = item.batch
        if token.paused or self._is_paused or self.phase in ("detached", "scored"):
            return batch
        self._forwards_unfetched = 0
        if token.fetched == token.skipped and self.phase == "pruned":
            self.pruned.started(token)
        with self._guard():
            rows, drawn = self._rows(token, item), item.drawn or len(item.rows) or None
            if self._filter is not None and self._in_training and self.pruned.draws_every_epoch:
                rows, batch = self._filtered(self._filter, rows, batch)
                drawn = None
            if not self._watches:
                token.count(self._binder.ahead, self._in_training)
                self._current = token if self._in_training else self._current
                return batch
            positions = torch.from_numpy(rows)
            targets = self._finder.targets(batch, positions) if self._is_scored else None
            if self._rescore_inputs is not None:
                self._rescore_inputs.fetched(batch)
            self._binder.fetched(token, positions, batch, targets, self._in_training, drawn)
        return batch

    def _filtered(self, proxy: ProxyTraining, rows: NDArray[np.int64], batch: Any) -> tuple[NDArray[np.int64], Any]:
        """The part of a batch that the proxy finds hard."""
        targets = self._finder.targets(batch, torch.from_numpy(rows))
        inputs = self._find_inputs(proxy.module, batch, targets)
        count = self.swap.handed_out(len(rows), self.pruned.batch_share)
        chosen, losses = proxy.hardest(inputs, targets, count)
        if self.scoring.online and self.scoring.tracker is not None:
            self.scoring.tracker.record(torch.from_numpy(rows), proxy_loss=losses)
        return rows[chosen.numpy()], batch_slice(batch, chosen, len(rows))

    @_one_at_a_time
    def exhausted(self, token: Pass) -> None:
        """An iterator ended."""
        token.exhaust()
        if self._watches:
            with self._guard():
                self._close(token)
        else:
            token.count_all()
        self._take_place(token)

    def released(self, token: Pass) -> None:
        """The loop has let go of an iterator: it looked one batch ahead, or counted its batches.

        What fails here is raised at the next ``iter``, as nobody hears of it now.
        """
        token.release()
        alone = self.group.world_size == 1 and threading.current_thread() is threading.main_thread()
        if alone and token is self._current and self.phase == "scoring" and not self._paused:
            if not token.closed and token.trained == self.swap.batches():
                try:
                    self._end_epoch()
                except (PruneSamplerError, OSError) as error:
                    self._failure = error
            if token.closed and self._failure is None and self.scoring.due and not self.scoring.rescores:
                with suppress(PruneSamplerError, OSError):  # it is tried again
                    self._conclude()
        self._take_place(token)

    def _take_place(self, of: Pass) -> None:
        if of is self._current and of.closed:
            self.pruned.take_place()

    @_one_at_a_time
    def forwarded(self, inputs: tuple[Any, ...], output: Any) -> None:
        """A training forward has returned."""
        if self._paused or not self._watches:
            return
        failure, self._failed_ahead = self._failed_ahead, None
        if failure is not None:
            raise failure
        with self._guard():
            self._forwards_unfetched += 1
            if self._forwards_unfetched > 64 and self._current is None:
                raise BindingError(
                    "the model trains, but the attached loader hands out no batches: call attach after the framework "
                    "has prepared the loader (some build a new one), and before the loop begins; a loader that leaves "
                    "out batches of this one, by skip_first_batches, say, is followed after "
                    "loader.pruning.follow(that_loader, skipped=number)"
                )
            token = self._binder.match(inputs)
            if token is not None:
                self._look_ahead(inputs, output)
                self._bind(token, lambda: self._finder.logits(output))

    def _look_ahead(self, inputs: tuple[Any, ...], output: Any) -> None:
        """Refuse now what the pass over ``rescore`` would refuse, or score wrongly, when the epochs are trained."""
        if self.config.rescored and self.phase == "scoring":
            self._finder.look(output)
            if self._rescore_inputs is not None and self._rescore_inputs.forwarded(inputs):
                self._rescore_inputs = None

    # -- what a user asks for ----------------------------------------------------------------------------------

    @_one_at_a_time
    def observe(self, logits: Tensor, inputs: Any) -> None:
        """Logits given by hand, of the batch that waits or of these inputs."""
        if self._is_paused or not self._watches:
            return
        with self._guard():
            token = self._binder.take_waiting() if inputs is None else self._binder.match(inputs)
            if token is None:
                raise BindingError("observe(logits, inputs): these inputs are not a batch that waits for its logits")
            self._bind(token, lambda: logits)

    @_one_at_a_time
    def follow_rest(self, rest: Any, skipped: int) -> None:
        """Follow another loader through the rest of one pass, of which it leaves out the first batches."""
        if not isinstance(rest, RowLoader):
            rest.__class__ = row_loader_class(RowLoader, cast(Any, type(rest)))
        rest._row_listener = self._tie()
        self._skipped = skipped

    @_one_at_a_time
    def finish(self) -> None:
        """End the scoring now."""
        if self.phase == "scoring":
            if not self.scoring.progress.rows:
                raise StateError("finish() has nothing to write: no batch has been trained on since attach")
            self._end_epoch()
            self._conclude()
        elif self.phase == "pruned" and self._tracks_draws:
            if self.scoring.progress.rows_open:
                self._end_drawn_epoch()
            self.folder.conclude(self.scoring.table(), None)

    @_one_at_a_time
    def end_pass(self) -> None:
        """End the pass that was trained on, and the scoring where it is due."""
        if self._current is not None:
            self._current.close()
        self.pruned.take_place()
        if self._is_paused or not (self.phase == "scoring" or (self.phase == "pruned" and self._tracks_draws)):
            return
        with self._guard():
            self._binder.check_seen()
            if self.phase == "pruned":
                if self.scoring.progress.rows_open:
                    self._end_drawn_epoch()
                return
            self.scoring.progress.settle()
            if self.scoring.progress.rows_open:
                self._end_epoch()
            if self.scoring.due:
                self._conclude()

    @_one_at_a_time
    def detach(self) -> None:
        """Leave the loader as it was."""
        if self.phase == "detached":
            return
        self.phase = "detached"
        self._follow()
        self._binder.clear()
        self.folder.release()
        self.pruned.end()
        self._release_loader()
        model = self._inner_ref()
        if model is not None:
            let_go(model, self)

    def _release_loader(self) -> None:
        if self._loader is not None:
            self._loader.__class__ = plain_class(self._loader)

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Within this context nothing is followed, and no set is switched; what other threads fetch, they do."""
        mine = {threading.get_ident()} - self._paused
        self._paused |= mine
        try:
            yield
        finally:
            self._paused -= mine

    @property
    def _is_paused(self) -> bool:
        return threading.get_ident() in self._paused

    # -- one batch, one epoch, the end of scoring --------------------------------------------------------------

    def _rows(self, token: Pass, item: Collated) -> NDArray[np.int64]:
        """The rows of a batch that is handed out, without a doubt where they matter."""
        rows = item.rows if self._row_fn is None else self._row_fn(item.batch, item.rows)
        if not self._is_followed and self._filter is None:
            return rows
        if self._row_fn is None:
            rows = item.known_rows()
        if self._is_scored and not (item.drawn is None and np.array_equal(rows, item.rows)):
            drawn = None if self.phase == "scoring" else self.pruned.draws
            if self.swap.real_rows(token.fetched, drawn) < len(rows):
                raise UnsupportedError(
                    "a batch is filled up, as processes have equal numbers of batches, and its collate function "
                    "reorders it, so it cannot be told which rows only fill it up: give the loader drop_last=True"
                )
        return rows

    def _bind(self, token: Token, logits: Callable[[], Tensor]) -> None:
        before = self._open_pass
        if before is not None and before is not token.of and (self.phase == "scoring" or self._tracks_draws):
            self._close(before, abandoned=True, in_forward=True)
        if self.phase == "scoring" and self.scoring.progress.cut_off:
            loader_resumes = self._base_resumes or hasattr(self._loader, "load_state_dict")
            if self.scoring.resume(token, loader_resumes=loader_resumes):
                self._end_epoch()
        self._current = token.of
        if self.phase == "scoring":
            self.scoring.present(token, logits, real=self.swap.real_rows(token.index))
        elif token.of.position is not None:
            if self.pruned.weighted:
                self.pruned.weight(token, logits())
            if self._tracks_draws:
                real = self.swap.real_rows(token.index, self.pruned.draws)
                self.scoring.present(token, logits, real=real)
        if not self._has_bound:
            self._has_bound = True
            self._follow()
        self._close(token.of, in_forward=True)

    @property
    def _open_pass(self) -> Pass | None:
        """The pass that was trained on last, unless it has ended."""
        return self._current if self._current is not None and not self._current.closed else None

    def _close(self, of: Pass, *, abandoned: bool = False, in_forward: bool = False) -> None:
        """End the epoch if its last batch is bound; after the last scoring epoch switch the set.

        In the last forward of a loop that looks one batch ahead, ranks select together, but ``len(loader)`` stays until
        the loop has let go of the iterator: it may still ask whether this batch is the last.
        """
        over = of.exhausted and not self._binder.waiting(of)
        if of.closed or not of.bound or not (abandoned or over):
            return
        scoring = self.phase == "scoring"
        drawn = self.phase == "pruned" and self._tracks_draws
        due = self._end_epoch() if scoring or drawn else False
        of.close()  # not before: an interrupted merge of scores comes again with the next pass
        if scoring:
            alone = self.group.world_size == 1
            if in_forward and (self.scoring.rescores or (alone and not (over and of.released))):
                return
            if due:
                self._conclude(at_once=not in_forward or of.released)
        elif drawn:
            self._draw_next()

    def _end_epoch(self) -> bool:
        concludes = self.scoring.end_epoch(self._binder)
        if self._current is not None:
            self._current.close()
        return concludes

    def _end_drawn_epoch(self) -> None:
        """Merge the scores of an epoch that was drawn, and draw the next one from them; on all ranks together."""
        self._end_epoch()
        self._draw_next()

    def _draw_next(self) -> None:
        # Rank 0 alone has the merged scores.
        self.pruned.read_next(self.group.on_rank_0(lambda: self.pruned.draw_next(self.scoring.table())))

    @property
    def _tracks_draws(self) -> bool:
        """Whether the epochs that a policy draws are scored."""
        return self.config.tracks_throughout and self.pruned.draws_every_epoch and self.scoring.online

    @property
    def _is_scored(self) -> bool:
        """Whether the present batches are."""
        return self.scoring.online if self.phase == "scoring" else self.phase == "pruned" and self._tracks_draws

    @property
    def _in_training(self) -> bool:
        """Whether a forward now would be a training forward."""
        model = self._model_ref()
        return torch.is_grad_enabled() and (model is not None and model.training if self._has_model else True)

    def _follow(self) -> None:
        """Have the binder compare inputs where scores or weights hang on it, and the model hooked where it is needed.

        Pruned epochs without either count the batches that are handed out, less those that a framework fetches ahead.
        """
        self._binder.follow(self._is_followed)
        ahead_unknown = self.phase == "pruned" and self._has_model and not self._has_bound
        self._watches = self.phase == "scoring" or self._is_followed or ahead_unknown
        model, tie = self._model_ref(), self._tie()
        if not self._watches:
            self._unhook()
        elif self._hook is None and model is not None and tie is not None:
            self._hook = ForwardHook(model, tie)

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    @property
    def _is_followed(self) -> bool:
        """Whether scores or weights hang on the rows of the present batches."""
        return self._is_scored or (self.phase == "pruned" and self.pruned.weighted)

    @property
    def _owes_rest(self) -> bool:
        """Whether a StatefulDataLoader has yet to hand out the rest of an epoch that was cut off."""
        state = getattr(self._loader, "next_iter_state", None) or {"_iterator_finished": True}
        return not state.get("_iterator_finished")

    def _conclude(self, *, at_once: bool = True) -> None:
        """Select and write; on several ranks all come here together."""
        with self.pausing():
            table = self.scoring.table()
        self._conclude_with(table, at_once=at_once)

    def begin(self, given: Coreset | None) -> None:
        """Start on a given coreset, on what an earlier run left, or on a policy's first draw; else with scoring."""
        self.given = given
        if given is not None:
            self.scored_epochs = 0
            self._prune(given, fixed=True)
        elif self.folder.finished and self.config.policy.every_epoch:
            raise StateError(
                f"{self.folder.scores_path} is of a finished run, and {self.config.policy} draws from the scores of "
                "its own: give another save_dir, or load the checkpoint of that run with load_state_dict"
            )
        elif self.folder.finished:
            found = self.folder.take_up(self.config.scoring(), self.config.selection)
            if found is None:
                _log.info("selecting again from the scores in %s", self.folder.scores_path)
                self._conclude_with(None)
            else:
                self._prune(found)
        elif not self.config.score_epochs:
            self._prune(self.pruned.draw(0, None), epoch=0)

    def _conclude_with(self, table: ScoreTable | None, *, at_once: bool = True) -> None:
        every_epoch = self.config.policy.every_epoch
        draw = None if self.config.scores_only else functools.partial(self.pruned.draw, self.scored_epochs)
        coreset = self.folder.conclude(table, draw, keep_coreset=not every_epoch)
        if coreset is not None:
            self._prune(coreset, epoch=self.scored_epochs if every_epoch else None, at_once=at_once)
        else:
            self._enter("scored")
            _log.info("scored %d rows%s", self.swap.num_rows, self.folder.shown)

    def _prune(self, coreset: Coreset, *, epoch: int | None = None, fixed: bool = False, at_once: bool = True) -> None:
        self.pruned.begin(coreset, epoch=epoch, fixed=fixed, at_once=at_once)
        self._enter("pruned")

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._follow()
        if phase == "pruned" and self.pruned.coreset is not None:
            drawn, eligible = len(self.pruned.coreset), self.swap.num_eligible
            how = str(self.config.policy) if self.pruned.draws_every_epoch else _how(self.pruned.coreset)
            _log.info("training on %d of %d rows (%s)%s", drawn, eligible, how, self.folder.shown)

    # -- state -------------------------------------------------------------------------------------------------

    @_one_at_a_time
    def state_dict(self) -> dict[str, Any]:
        """What :class:`~prunesampler.Pruning` saves of the run, without what it was made with."""
        # The last pass that is scored is not over before its loop is, which may still ask for its length.
        phase = "scoring" if self.pruned.waits else self.phase
        open_pass, pruned = self._open_pass, phase == "pruned"
        scored = phase == "scoring" or (pruned and self._tracks_draws)
        return {
            "phase": phase,
            "batches_open": self.scoring.progress.cut_off if open_pass is None else open_pass.trained,
            "scoring": self.scoring.state_dict() if scored else None,
            "coreset": None if phase == "scoring" else self._coreset_state(),
            "sampler": self.pruned.position(self._current) if pruned else None,
            "proxy": None if self._filter is None else self._filter.state_dict(),
        }

    def _coreset_state(self) -> dict[str, Any] | None:
        return None if self.pruned.coreset is None else coreset_state(self.pruned.coreset)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse a state that is damaged, or was not saved on the coreset that this run was given."""
        check_count(state["batches_open"], "state['batches_open']")
        if state["phase"] not in get_args(Phase):
            raise StateError(f"state['phase'] must be one of {get_args(Phase)}, got {state['phase']!r}")
        if self.given is not None and (state["coreset"] is None or load_coreset(state["coreset"]) != self.given):
            raise StateError("the state was not saved on the coreset that attach(coreset=...) was given now")
        if (state["proxy"] is None) != (self._filter is None):
            raise StateError("the state was saved by a run of another policy, with or without a proxy")
        tracked = self.config.tracks_throughout and self.given is None
        if state["phase"] == "scoring" or (state["phase"] == "pruned" and tracked):
            self.scoring.check_state(state["scoring"])
        else:
            check_layout(state["scoring"], None, "state['scoring']")

    @_one_at_a_time
    def load_state_dict(self, state: Mapping[str, Any], *, mid_epoch: bool, base_resumes: bool) -> None:
        """Go on from a state that was checked; on all ranks together."""
        if self._filter is not None:
            self._filter.load_state_dict(state["proxy"])
        if state["phase"] == "scoring":
            self.scoring.load_state_dict(state["scoring"], batches_open=state["batches_open"])
            if base_resumes:
                self.scoring.check_start(skipped=True)
            self.swap.go_to(self.scoring.progress.ended)
            self.pruned.forget()
            self._enter("scoring")
            self._binder.expect_skips(state["batches_open"])
        elif state["phase"] == "pruned":
            fixed = self.given is not None
            skips = self.pruned.resume(state["coreset"], state["sampler"], mid_epoch=mid_epoch, fixed=fixed)
            self._enter("pruned")
            if self._tracks_draws:
                self.scoring.load_state_dict(state["scoring"], batches_open=0)
                if self.pruned.at_the_end and self.group.any(self.scoring.progress.rows_open > 0):
                    self._end_drawn_epoch()
                elif self.pruned.at_the_end:
                    self._draw_next()
            self._binder.expect_skips(skips)
        elif state["phase"] == "scored":
            self.pruned.forget()
            self._enter("scored")
        else:
            self.detach()
        self._binder.clear()
        self._base_resumes = base_resumes
        self._current = None

    # -- failure -----------------------------------------------------------------------------------------------

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except (PruneSamplerError, OSError) as error:  # a full disk is no reason to lose the run either
            if not self._train_on_all or self.phase == "pruned" or isinstance(error, RankError):
                if self._binder.reads_ahead and isinstance(error, PruneSamplerError):
                    self._failed_ahead = error
                raise
            self.scoring.give_up()
            self._follow()
            if self.group.world_size == 1 or self.scoring.abandoned:
                message = f"scoring failed, so training goes on with all rows: {error}"
                warnings.warn(message, PruneSamplerWarning, stacklevel=3)
                self.detach()


def _how(coreset: Coreset) -> str:
    options, spare = coreset.options, coreset.selection.get("superfluous")
    if spare is not None:
        return f"{spare} are superfluous by {options.get('by')}"
    return f"{options.get('method', 'a given coreset')} by {options.get('by', 'its maker')}"
