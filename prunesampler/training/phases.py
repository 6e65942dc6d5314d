"""The phases of a run: when its rows are scored, when they are pruned, and what is saved of both."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

from prunesampler._format import brief
from prunesampler._logging import log
from prunesampler.capture.binder import Pass
from prunesampler.errors import StateError
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.schedule import Schedule
from prunesampler.tables.score_table import ScoreTable
from prunesampler.tracking.ranks import Group
from prunesampler.tracking.state import check_count, check_layout
from prunesampler.training.checkpoint import coreset_state, load_coreset
from prunesampler.training.config import RunConfig
from prunesampler.training.proxy import ProxyTraining
from prunesampler.training.pruned_phase import PrunedPhase
from prunesampler.training.recording import Epochs, Recording
from prunesampler.training.run_folder import RunFolder
from prunesampler.training.scoring_phase import ScoringPhase

Phase = Literal["scoring", "pruned", "scored", "detached"]


class Phases:
    """Scoring first, then the rows that the scores, a given coreset or a policy's draws leave.

    Attributes:
        now: ``"scoring"``, then ``"pruned"`` (or ``"scored"`` where nothing is selected); ``"detached"`` at the end.
        given: the coreset that the run began with, if it did not score.
        scored_epochs: epochs before the pruned ones.
        awaits_state: whether its files are there already, so that it may only go on from a state.
    """

    def __init__(
        self,
        config: RunConfig,
        swap: Any,
        *,
        scoring: ScoringPhase,
        pruned: PrunedPhase,
        folder: RunFolder,
        group: Group,
        proxy: ProxyTraining | None,
        recording: Recording | None,
        save_every: int | None,
    ) -> None:
        self.config, self.swap, self.scoring, self.pruned = config, swap, scoring, pruned
        self.folder, self.group, self.proxy = folder, group, proxy
        self.recording, self._save_every = recording, save_every
        self.now: Phase = "scoring"
        self.given: Coreset | None = None
        self.scored_epochs = config.score_epochs
        self.awaits_state = False

    @property
    def has_begun(self) -> bool:
        """Whether anything was trained on, or selected."""
        return self.now != "scoring" or self.scoring.progress.rows > 0

    @property
    def progress(self) -> str:
        """How far the run is, for people."""
        if self.now != "scoring":
            return f"already {self.now}"
        of = self.scoring.progress
        return f"{of.ended + (of.rows_open > 0)} of {of.epochs} scoring epochs begun"

    @property
    def tracks_draws(self) -> bool:
        """Whether the present rows were drawn by a policy, and are scored for its next draw."""
        tracked = self.now == "pruned" and self.config.tracks_throughout
        return tracked and self.pruned.draws_every_epoch and self.scoring.online

    @property
    def merges(self) -> bool:
        """Whether the end of a pass merges what it found, over all ranks."""
        return self.now == "scoring" or self.tracks_draws

    @property
    def scores_batches(self) -> bool:
        """Whether the present batches are scored."""
        return self.scoring.online if self.now == "scoring" else self.tracks_draws

    @property
    def needs_rows(self) -> bool:
        """Whether scores or weights hang on the rows of the present batches."""
        return self.scores_batches or (self.now == "pruned" and self.pruned.weighted)

    def move_to(self, swap: Any) -> None:
        """Go on with another loader over the same rows."""
        self.swap = swap
        self.scoring.progress.resize(swap.progress(self.config.score_epochs))
        self.pruned.move_to(swap)

    def begin(self, given: Coreset | None) -> None:
        """Start on a given coreset, on what an earlier run left, or on a policy's first draw; else with scoring."""
        self.given, every_epoch = given, self.config.policy.every_epoch
        self.awaits_state = self.folder.begun and every_epoch
        if given is not None:
            self.scored_epochs = 0
            self._prune(given, fixed=True)
        elif self.folder.finished and not every_epoch:
            found = self.folder.take_up(self.config.scoring(), self.config.selection)
            if found is None:
                log.info("selecting again from the scores in %s", self.folder.scores_path)
                self.conclude(None)
            else:
                self._prune(found)
        elif not self.config.score_epochs:
            self._prune(self.pruned.draw(0, None), epoch=0)
        else:
            self.swap.exchange(self.swap.base)

    def conclude(self, table: Any, *, at_once: bool = True) -> None:
        """Select from the scores and write; on several ranks all come here together."""
        every_epoch = self.config.policy.every_epoch
        draw = None if self.config.scores_only else functools.partial(self.pruned.draw, self.scored_epochs)
        coreset = self.folder.conclude(table, draw, keep_coreset=not every_epoch)
        if coreset is not None:
            self._prune(coreset, epoch=self.scored_epochs if every_epoch else None, at_once=at_once)
        else:
            self.now = "scored"
            log.info("scored %d rows%s", self.swap.num_rows, self.folder.shown)

    def draw_next(self) -> None:
        """Draw the next epoch from the scores so far; on all ranks together, of which rank 0 has the merged ones."""
        try:
            self.pruned.read_next(self.group.on_rank_0(lambda: self.pruned.draw_next(self.scoring.table())))
        except Exception as error:  # on every rank
            self.pruned.fail_next(error)
        if self.recording is not None and self.recording.end_epoch():
            size, fingerprint = self.swap.num_rows, self.pruned.fingerprint
            self.folder.save(Schedule(self.recording.epochs, num_rows=size, fingerprint=fingerprint))
        if self._save_every is not None and self.scoring.progress.ended % self._save_every == 0:
            self.group.on_rank_0(lambda: self.folder.save(cast(ScoreTable, self.scoring.table())))

    def check_goes_on(self) -> None:
        """Refuse to begin anew what has files already."""
        if self.awaits_state:
            raise StateError(
                "save_dir holds files of a run that was cut off, whose epochs were drawn from scores that are in its "
                "checkpoint: give that to loader.pruning.load_state_dict before the first pass, or attach another "
                "save_dir"
            )

    def detach(self) -> None:
        """Nothing is scored or pruned any more."""
        self.now = "detached"
        self.folder.release()
        self.pruned.end()
        self.swap.leave()

    def _prune(self, coreset: Coreset, *, epoch: int | None = None, fixed: bool = False, at_once: bool = True) -> None:
        self.pruned.begin(coreset, epoch=epoch, fixed=fixed, at_once=at_once)
        self._enter_pruned()

    def _enter_pruned(self) -> None:
        self.now, coreset = "pruned", self.pruned.coreset
        assert coreset is not None
        how = brief(self.config.policy) if self.pruned.draws_every_epoch else _how(coreset)
        rows, eligible = len(coreset), self.swap.num_eligible
        log.info("training on %d of %d rows (%s)%s", rows, eligible, how, self.folder.shown)

    def state_dict(self, last: Pass | None) -> dict[str, Any]:
        """What is saved; ``last`` is the pass that was trained on last."""
        # The last pass that is scored is not over before its loop is, which may still ask for its length.
        phase = "scoring" if self.pruned.waits else self.now
        scored, coreset = phase == "scoring" or self.tracks_draws, self.pruned.coreset
        trained = self.scoring.progress.cut_off if last is None or last.closed else last.trained
        return {
            "phase": phase,
            "batches_open": trained,
            "scoring": self.scoring.state_dict() if scored else None,
            "coreset": None if phase == "scoring" or coreset is None else coreset_state(coreset),
            "sampler": self.pruned.position(last) if phase == "pruned" else None,
            "proxy": None if self.proxy is None else self.proxy.state_dict(),
            "recording": None if self.recording is None else self.recording.state_dict(),
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse a state that is damaged, or was not saved on the coreset that this run was given."""
        check_count(state["batches_open"], "state['batches_open']")
        if state["phase"] not in get_args(Phase):
            raise StateError(f"state['phase'] must be one of {get_args(Phase)}, got {state['phase']!r}")
        if self.given is not None and (state["coreset"] is None or load_coreset(state["coreset"]) != self.given):
            raise StateError("the state was not saved on the coreset that attach(coreset=...) was given now")
        if (state["proxy"] is None) != (self.proxy is None):
            raise StateError("the state was saved by a run of another policy, with or without a proxy")
        if (state["recording"] is None) != (self.recording is None):
            raise StateError("the state was saved by a run of another policy, which records or does not")
        if self.recording is not None:
            self.recording.check_state(state["recording"], self._recorded, self.swap.num_rows)
        tracked = self.config.tracks_throughout and self.given is None
        if state["phase"] == "scoring" or (state["phase"] == "pruned" and tracked):
            self.scoring.check_state(state["scoring"])
        else:
            check_layout(state["scoring"], None, "state['scoring']")

    def load_state_dict(self, state: Mapping[str, Any], *, mid_epoch: bool, base_resumes: bool) -> int:
        """Go on from a state that was checked; how many batches of the next pass its loop may skip."""
        phase, skips = state["phase"], 0
        self.awaits_state = False
        if self.proxy is not None:
            self.proxy.load_state_dict(state["proxy"])
        if self.recording is not None:
            self.recording.load_state_dict(state["recording"], self._recorded)
            self.folder.schedule = None
        if phase == "scoring":
            skips = state["batches_open"]
            self.scoring.load_state_dict(state["scoring"], batches_open=skips)
            if base_resumes:
                self.scoring.check_start(skipped=True)
            self.swap.go_to(self.scoring.progress.ended)
        if phase in ("scoring", "scored"):
            self.pruned.forget()
            self.now = phase
        elif phase == "pruned":
            fixed = self.given is not None
            skips = self.pruned.resume(state["coreset"], state["sampler"], mid_epoch=mid_epoch, fixed=fixed)
            self._enter_pruned()
            if self.tracks_draws:
                self.scoring.load_state_dict(state["scoring"], batches_open=0, drawn=True)
                if not (self.swap.rows_per_step or self.pruned.at_the_end):  # a stream begins its epoch again
                    self.scoring.restart_epoch()
                    if self.recording is not None:
                        self.recording.restart_epoch()
        return skips

    @property
    def _recorded(self) -> Epochs:
        """The epochs in the file."""
        assert self.recording is not None
        found = self.folder.schedule
        return self.recording.epochs if found is None else found.epochs


def _how(coreset: Coreset) -> str:
    options, spare = coreset.options, coreset.selection.get("superfluous")
    if spare is not None:
        return f"{spare} are superfluous by {options.get('by')}"
    if (decisions := coreset.selection.get("decisions")) is not None:
        return f"{coreset.selection.get('dropped')} were dropped by {decisions}"
    if (rates := coreset.selection.get("noise_rate")) is not None:
        wrong, (rate, low, high) = coreset.selection["wrong"], rates
        return f"{wrong} labels are likely wrong; about {rate:.1%} are, {low:.1%} to {high:.1%}"
    by = "" if coreset.selection.get("threshold", 0) is None else f" by {options.get('by', 'its maker')}"
    return f"{options.get('method', 'a given coreset')}{by}"
