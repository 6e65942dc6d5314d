"""A training run, followed: what it does when its loader hands out a batch, and its model has trained on it."""

from __future__ import annotations

import atexit
import functools
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from prunesampler._logging import log
from prunesampler.capture.binder import Binder, Pass, Token
from prunesampler.capture.row_loader import RowLoader
from prunesampler.capture.rows import Collated
from prunesampler.errors import BindingError, PruneSamplerError, PruneSamplerWarning, RankError, StateError
from prunesampler.tables.coreset import Coreset
from prunesampler.training.attachment import Attachment, Followed
from prunesampler.training.batch_reader import BatchReader
from prunesampler.training.continuation import RunKey
from prunesampler.training.phases import Phases

_alive: weakref.WeakSet[Run] = weakref.WeakSet()

F = TypeVar("F", bound=Callable[..., Any])


def _one_at_a_time(method: F) -> F:
    """A loader may be read ahead by a thread while the loop trains in another."""

    @functools.wraps(method)
    def locked(self: Run, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return method(self, *args, **kwargs)

    return cast(F, locked)


class Run:
    """One training run: what it follows, and how it acts on what it is told.

    Attributes:
        phases: when it scores and when it prunes, with all that takes.
        key: what the run is known by, beside its model.
    """

    def __init__(self, phases: Phases, reader: BatchReader, binder: Binder, *, key: RunKey, train_on_all: bool) -> None:
        self.phases, self.key = phases, key
        self._scoring, self._pruned, self._alone = phases.scoring, phases.pruned, phases.group.world_size == 1
        self._reader, self._binder, self._train_on_all = reader, binder, train_on_all
        self.followed = Followed()
        self._lock = threading.RLock()
        self._paused: set[int] = set()  # threads
        self._unheard: Exception | None = None  # a failure where nobody may see it: between passes, in another thread
        self._current: Pass | None = None  # the pass that was trained on last
        self._base_resumes = False  # whether the loader's own sampler was set to where a scoring epoch was cut off
        self._skipped = 0  # batches of the next pass that its loader leaves out
        self._forwards_unfetched = 0
        self._watches = True  # whether training forwards are followed
        self._has_bound = False  # whether one ever was, so that it is known how far a framework fetches ahead
        self._told = False
        self._saved = False  # since then whoever has the state may go on
        self._trained_at: int | None = None  # the model's state when the latest pass began
        self._passed_silently = False
        _alive.add(self)

    # -- its loader and its model ------------------------------------------------------------------------------

    def tie(self, loader: RowLoader[Any], model: nn.Module | None) -> Attachment:
        """Follow this loader, which holds what is returned, and this model."""
        attachment = self.followed.tie(self, loader, model)
        self._follow()
        return attachment

    def go_on_with(self, loader: RowLoader[Any], model: nn.Module | None, swap: Any) -> Attachment:
        """Follow another loader over the same rows; for the pass that was open it is as if the loop had left it."""
        self.followed.release_loader()
        self._binder.clear()
        self.phases.move_to(swap)
        return self.tie(loader, model)

    def is_of(self, key: RunKey, model: nn.Module | None) -> bool:
        """Whether this is the run of such a model and key."""
        return self.followed.is_model(model) and key.difference(self.key) is None

    def tell_once(self, message: str, stacklevel: int) -> None:
        """Warn, the first time."""
        if not self._told:
            self._told = True
            warnings.warn(message, PruneSamplerWarning, stacklevel=stacklevel + 1)

    def lose_loader(self) -> None:
        """The loader and all its iterators are gone."""
        self._binder.clear()
        self.phases.folder.release()
        if self.phases.now == "scoring" and self.phases.has_begun and not self._told:
            self._told = True
            log.warning(
                "the attached loader is gone, %s, and nothing is scored any more: keep the loader, or where a loop "
                "makes it anew attach each of them, to the same model and with the same options, and the run goes on",
                self.phases.progress,
            )

    # -- what the loader and the model report ------------------------------------------------------------------

    @_one_at_a_time
    def before_pass(self) -> None:
        """``iter(loader)``: the moment when the set may change."""
        phases = self.phases
        if self._is_paused or phases.now == "detached":
            return
        self._raise_unheard()
        phases.check_goes_on()
        phases.swap.check_in_place(self.followed.loader(), self._pruned.in_place)
        self._pruned.take_place()
        if not torch.is_grad_enabled():
            return  # an evaluation
        if self._current is None:
            with self._guard():
                self._binder.check_called()
            self._tell_of_silence()
        if phases.now == "scoring" and self.followed.owes_rest:
            self._scoring.check_start(skipped=True)
        elif phases.now == "scoring" and self._scoring.due:
            self.followed.forget_rest()
            with self._guard():
                self._end_open_epoch()
                self._conclude()
        if phases.now == "pruned":
            if self._alone and phases.tracks_draws and self._pruned.at_the_end:
                self._end_open_epoch()  # it was left early
            self._pruned.before_pass(self._binder)
            self._follow()

    @_one_at_a_time
    def started(self) -> Pass:
        """An iterator begins."""
        skipped, self._skipped = self._skipped, 0
        if not self._is_paused and torch.is_grad_enabled():
            self._trained_at = self.followed.trained
        return self._binder.start(skipped, self._is_paused)

    @_one_at_a_time
    def fetched(self, token: Pass, item: Collated) -> Any:
        """A batch is fetched. Returns what is handed out of it."""
        batch = item.batch
        if token.paused or self._is_paused or self.phases.now in ("detached", "scored"):
            return batch
        self._forwards_unfetched = 0
        if token.fetched == token.skipped and self.phases.now == "pruned":
            self._pruned.started(token)
        with self._guard():
            in_training, proxy = self.followed.in_training, self.phases.proxy
            rows, drawn = self._reader.rows(token, item), item.drawn or len(item.rows) or None
            if proxy is not None and in_training and self._pruned.draws_every_epoch:
                rows, batch = self._reader.filtered(proxy, rows, batch)
                drawn = None
            if self._watches:
                positions = torch.from_numpy(rows)
                targets = self._reader.targets(batch, positions)
                self._binder.fetched(token, positions, batch, targets, in_training, drawn)
            else:
                token.count(self._binder.ahead, in_training)
                self._current = token if in_training else self._current
        return batch

    @_one_at_a_time
    def exhausted(self, token: Pass) -> None:
        """An iterator ended."""
        token.exhaust()
        if self._watches:
            with self._guard():
                self._close(token)
                if not token.paused:
                    self._check_heard()
        else:
            token.count_all()
        self._take_place(token)

    def released(self, token: Pass) -> None:
        """The loop has let go of an iterator: it looked one batch ahead, or counted its batches.

        What fails here is raised at the next ``iter``, as nobody hears of it now.
        """
        token.release()
        alone = self._alone and threading.current_thread() is threading.main_thread()
        if alone and token is self._current and self.phases.now == "scoring" and not self._paused:
            if not token.closed and token.trained == self.phases.swap.batches():
                try:
                    self._end_epoch()
                except (PruneSamplerError, OSError) as error:
                    self._unheard = error
            if token.closed and self._unheard is None and self._scoring.due and not self._scoring.rescores:
                with suppress(PruneSamplerError, OSError):  # it is tried again
                    self._conclude()
        self._take_place(token)

    def _take_place(self, of: Pass) -> None:
        if of is self._current and of.closed:
            self._pruned.take_place()
            self._turn()

    def _turn(self) -> None:
        if self.phases.now == "pruned" and self._pruned.turn():
            self._current = None  # what was trained on last is of other rows

    @_one_at_a_time
    def forwarded(self, inputs: tuple[Any, ...], output: Any) -> None:
        """A training forward has returned."""
        if self._paused or not self._watches:
            return
        self._raise_unheard()
        with self._guard():
            self._forwards_unfetched += 1
            if self._forwards_unfetched > 64 and self._current is None:
                raise BindingError(
                    "the model trains, but the attached loader hands out no batches: call attach after the framework "
                    "has prepared the loader (some build a new one), and before the loop begins; a loader that leaves "
                    "out batches of this one, by skip_first_batches, say, is followed after "
                    "loader.pruning.follow(that_loader, skipped=number)"
                )
            token, again = self._binder.match(inputs), self._binder.repeated
            if token is not None:
                self._reader.look_ahead(inputs, output)
                self._bind(token, lambda: self._reader.logits(output))
            elif again is not None and again.of is self._current and self._pruned.weighted:
                logits = self._reader.logits(output)
                if logits.requires_grad:  # SAM's gradient is of this forward
                    self._pruned.weight(again, logits)

    def _check_heard(self) -> None:
        """Complain of a pass that is over, in which no logits came.

        If the model was trained meanwhile, that is an error. Else it may have been a look at the data, or a thread has
        read a whole pass ahead: it is told before the next pass, if still none came.
        """
        needed = self.phases.now == "scoring" or self.phases.needs_rows
        if self._has_bound or not needed or not torch.is_grad_enabled():
            return
        if self.followed.trained != self._trained_at:
            why = self.followed.why_silent(trained=True)
            raise BindingError(f"a pass over the attached loader is over, and nothing was scored: {why}")
        self._passed_silently = True

    def _tell_of_silence(self) -> None:
        if self._passed_silently and not (self._has_bound or self._told):
            self._told = True
            log.warning(
                "a pass over the attached loader is over, and nothing was scored. If it was no look at the data: %s",
                self.followed.why_silent(self.followed.trained != self._trained_at),
            )

    def tell_what_is_missing(self) -> None:
        """The process ends, perhaps before the scoring does."""
        phases, followed = self.phases, self.followed
        ends = phases.now == "scoring" and phases.group.rank == 0 and followed.loader() is not None
        if not ends or self._saved or self._trained_at is None:
            return
        if not self._has_bound:
            why = followed.why_silent(followed.trained != self._trained_at)
            log.warning("the process ends, and nothing was scored: %s", why)
        else:
            log.warning(
                "the process ends with %s, so no rows were selected%s: train on, give attach fewer score_epochs, or "
                "call loader.pruning.finish() at the end",
                phases.progress,
                phases.folder.not_written,
            )

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
        self.followed.adopt(rest)
        self._skipped = skipped

    @_one_at_a_time
    def finish(self) -> None:
        """End the scoring now."""
        if self.phases.now == "scoring":
            if not self._scoring.progress.rows:
                raise StateError("finish() has nothing to write: no batch has been trained on since attach")
            self._end_epoch()
            self._conclude()
        elif self.phases.tracks_draws:
            self._end_open_epoch()
            self.phases.folder.conclude(self._scoring.table(), None)

    @_one_at_a_time
    def end_pass(self) -> None:
        """End the pass that was trained on, and the scoring where it is due."""
        if self._current is not None:
            self._current.close()
        self._pruned.take_place()
        if self._is_paused or not self.phases.merges:
            return
        with self._guard():
            self._binder.check_seen()
            if self.phases.now == "scoring":
                self._scoring.progress.settle()
            self._end_open_epoch()
            self._turn()
            if self.phases.now == "scoring" and self._scoring.due:
                self._conclude()

    @_one_at_a_time
    def detach(self) -> None:
        """Leave the loader as it was."""
        if self.phases.now != "detached":
            self.phases.detach()
            self._follow()
            self._binder.clear()
            self.followed.release_loader()
            self.followed.let_model_go(self)

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

    def _bind(self, token: Token, logits: Callable[[], Tensor]) -> None:
        before = self._current
        if before is not None and before is not token.of and self.phases.merges:
            self._close(before, abandoned=True, in_forward=True)
        if self.phases.now == "scoring" and self._scoring.progress.cut_off:
            loader_resumes = self._base_resumes or hasattr(self.followed.loader(), "load_state_dict")
            if self._scoring.resume(token, loader_resumes=loader_resumes):
                self._end_epoch()
        self._current = token.of
        if self.phases.now == "scoring":
            self._scoring.present(token, logits, real=self.phases.swap.real_rows(token.index))
        elif token.of.position is not None:
            if self._pruned.weighted:
                self._pruned.weight(token, logits())
                self._reader.check_one_head()
            if self.phases.tracks_draws:
                real = self.phases.swap.real_rows(token.index, self._pruned.draws)
                self._scoring.present(token, logits, real=real)
                if self.phases.recording is not None:
                    self.phases.recording.add(token.rows, logits(), token.targets)
        if not self._has_bound:
            self._has_bound = True
            self._follow()
        self._close(token.of, in_forward=True)

    def _close(self, of: Pass, *, abandoned: bool = False, in_forward: bool = False) -> None:
        """End the epoch if its last batch is bound; after the last scoring epoch switch the set.

        In the last forward of a loop that looks one batch ahead, ranks select together, but ``len(loader)`` stays until
        the loop has let go of the iterator: it may still ask whether this batch is the last.
        """
        over = of.exhausted and not self._binder.waiting(of)
        if of.closed or not of.bound or not (abandoned or over):
            return
        due = self.phases.merges and self._end_epoch()
        of.close()  # not before: an interrupted merge of scores comes again with the next pass
        if self.phases.tracks_draws:
            self.phases.draw_next()
        elif due and not (in_forward and (self._scoring.rescores or (self._alone and not (over and of.released)))):
            self._conclude(at_once=not in_forward or of.released)

    def _end_epoch(self) -> bool:
        concludes = self._scoring.end_epoch(self._binder)
        if self._current is not None:
            self._current.close()
        return concludes

    def _end_open_epoch(self) -> None:
        """Merge what was scored since the last epoch, and draw the next from it; on all ranks together."""
        if self._scoring.progress.rows_open:
            self._end_epoch()
            if self.phases.tracks_draws:
                self.phases.draw_next()

    def _conclude(self, *, at_once: bool = True) -> None:
        with self.pausing():
            table = self._scoring.table()
        self.phases.conclude(table, at_once=at_once)
        self._follow()

    def _follow(self) -> None:
        """Have the binder compare inputs where scores or weights hang on it, and the model hooked where it is needed.

        Pruned epochs without either count the batches that are handed out, less those that a framework fetches ahead.
        """
        phases = self.phases
        self._binder.follow(phases.needs_rows)
        ahead_unknown = phases.now == "pruned" and self.followed.has_model and not self._has_bound
        self._watches = phases.now == "scoring" or phases.needs_rows or ahead_unknown
        self.followed.hook(self._watches)

    def begin(self, given: Coreset | None) -> None:
        """Start, on a given coreset or with what the phases begin with."""
        self.phases.begin(given)
        self._follow()

    # -- state -------------------------------------------------------------------------------------------------

    @_one_at_a_time
    def state_dict(self) -> dict[str, Any]:
        """What :class:`~prunesampler.Pruning` saves of the run, without what it was made with."""
        self._saved = True
        return self.phases.state_dict(self._current)

    @_one_at_a_time
    def load_state_dict(self, state: Mapping[str, Any], *, mid_epoch: bool, base_resumes: bool) -> None:
        """Go on from a state that was checked; on all ranks together."""
        if state["phase"] == "detached":
            self.detach()
        skips = self.phases.load_state_dict(state, mid_epoch=mid_epoch, base_resumes=base_resumes)
        self._follow()
        if self.phases.tracks_draws and self._pruned.at_the_end:
            if self.phases.group.any(self._scoring.progress.rows_open > 0):
                self._end_epoch()
            self.phases.draw_next()
        self._binder.expect_skips(skips)
        self._binder.clear()
        self._base_resumes, self._current = base_resumes, None

    # -- failure -----------------------------------------------------------------------------------------------

    def _raise_unheard(self) -> None:
        error, self._unheard = self._unheard, None
        if error is not None:
            with self._guard():
                raise error

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except (PruneSamplerError, OSError) as error:  # a full disk is no reason to lose the run either
            if not self._train_on_all or self.phases.now == "pruned" or isinstance(error, RankError):
                if self._binder.reads_ahead:
                    self._unheard = error
                raise
            self._scoring.give_up()
            self._follow()
            if self._alone or self._scoring.abandoned:
                message = f"scoring failed, so training goes on with all rows: {error}"
                warnings.warn(message, PruneSamplerWarning, stacklevel=3)
                self.detach()


@atexit.register
def _tell_what_is_missing(process: int = os.getpid()) -> None:
    for run in list(_alive) if os.getpid() == process else ():
        run.tell_what_is_missing()
