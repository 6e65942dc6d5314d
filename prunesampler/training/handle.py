"""The handle of an attached loader: what a user reads, asks for and saves."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from typing import Any, cast

from torch import Tensor
from torch.utils.data import Sampler

from prunesampler._format import Shown, brief
from prunesampler._logging import log
from prunesampler.errors import PruneSamplerWarning, StateError, check_int
from prunesampler.tables.fingerprint import matches
from prunesampler.tables.metrics import table_metrics
from prunesampler.tables.score_table import Coreset, ScoreTable
from prunesampler.tracking.tracker import ScoreTracker
from prunesampler.training.checkpoint import check_moment, check_state
from prunesampler.training.phases import Phase
from prunesampler.training.run import Run

_VERSION = 6


class Pruning(Shown):
    """What ``loader.pruning`` is: made by :func:`prunesampler.attach`, not by hand."""

    def __init__(self, run: Run, *, fingerprint: str | None) -> None:
        self._run, self._phases, self._fingerprint = run, run.phases, fingerprint

    def _facts(self) -> dict[str, Any]:
        phases, coreset = self._phases, self.coreset
        facts: dict[str, Any] = {"phase": phases.now}
        if phases.now == "scoring":
            facts["epochs"] = phases.progress
        elif coreset is not None:
            facts["kept"] = f"{len(coreset):,} of {phases.swap.num_eligible:,} rows"
            facts["epoch"] = getattr(self.sampler, "epoch", None)
        return facts | {"policy": brief(phases.config.policy), "save_dir": phases.folder.path}

    @property
    def run(self) -> Run:
        """Internal: what the handle is of."""
        return self._run

    @property
    def phase(self) -> Phase:
        """``"scoring"``, then ``"pruned"`` (or ``"scored"`` under ``keep=None``); ``"detached"`` at the end."""
        return self._phases.now

    @property
    def coreset(self) -> Coreset | None:
        """The rows that the present pass reads, or the next one; None until they are selected or drawn."""
        return self._phases.pruned.coreset

    @property
    def sampler(self) -> Sampler[int]:
        """What orders the loader now: its own sampler, then a :class:`PrunedSampler`."""
        return self._phases.pruned.sampler

    @property
    def tracker(self) -> ScoreTracker | None:
        """The online scores so far; :meth:`ScoreTracker.record` adds columns of one's own."""
        return self._phases.scoring.tracker

    @property
    def table(self) -> ScoreTable | None:
        """The scores; None until the scoring epochs are over, and on ranks above 0."""
        return None if self._phases.now == "scoring" else self._phases.folder.table

    def total_steps(self, epochs: int) -> int:
        """Batches that this rank's loader hands out over a whole run, scoring epochs included.

        Under ``resume=True`` the scoring epochs of the run that is resumed count too. A new run on its coreset has
        none: give :func:`prunesampler.attach` that ``coreset=`` instead. Under a policy whose draws depend on the
        scores (``InfoBatch`` without a budget) it is the expectation, and a warning says so.

        Args:
            epochs: passes over the loader, >= 0.

        Raises:
            ArgumentError: epochs is not an int >= 0.
            StateError: under ``keep="auto"`` or ``"clean"`` with ``epoch_length="kept"``, while the rows are not
                selected yet.
        """
        epochs = check_int("epochs", epochs)
        now: int | None = self._phases.swap.batches()
        if now is None:
            raise StateError("this loader does not say how many batches one pass hands out: count a pass")
        full = min(epochs, self._phases.scored_epochs)
        pruned, later = self._phases.pruned, range(full, epochs)
        known = [pruned.batches(epoch) for epoch in later]
        steps = [pruned.batches(epoch, expected=True) for epoch in later] if None in known else known
        if None in steps:
            raise StateError(
                'how many rows will be drawn is not known yet (with keep="auto" or "clean" once they are selected): '
                'ask again then, or give attach epoch_length="full", which keeps the number of steps'
            )
        if self.phase == "scoring" and 0 < epochs <= full and not self._phases.config.scores_only:
            log.warning("total_steps(%d): all of these are scoring epochs, and no epoch is pruned", epochs)
        total = full * now + sum(cast("list[int]", steps))
        if None in known:
            message = f"total_steps({epochs}) is about {total}: how many rows an epoch draws depends on scores to come"
            warnings.warn(message, PruneSamplerWarning, stacklevel=2)
        return total

    def metrics(self) -> dict[str, float]:
        """Figures of the run as it stands, for a logger; ask once an epoch, as quantiles take a sort of all scores.

        ``cost``: rows trained on so far, in passes over all data (a pruned pass counts when it begins; what a pass over
        ``rescore=`` and a proxy compute is not in it). ``kept``: the share of the eligible rows that is drawn now.

        The others come from the scores that are merged, on rank 0: of each score the 10th, 50th and 90th percentile
        (``"el2n/p50"``) and, after two epochs, ``"el2n/split_half"``, how far odd and even epochs rank rows alike
        (Spearman; 1: no noise); ``learned``, the share of the rows that were classified correctly at least once;
        ``forgetting_rate``, forgetting events per presentation.
        """
        phases, coreset = self._phases, self.coreset
        progress, eligible = phases.scoring.progress, phases.swap.num_eligible
        cost = progress.rows / progress.rows_per_pass if progress.rows_per_pass else float(progress.ended)
        if phases.now == "pruned" and not phases.tracks_draws:
            begun = getattr(self.sampler, "epoch", 0) - phases.scored_epochs * phases.config.policy.every_epoch
            cost += begun * phases.pruned.draws / eligible
        found = {"cost": cost, "kept": 1.0 if coreset is None else len(coreset) / eligible}
        tracker, table = self.tracker, self.table
        if tracker is not None and tracker.has_scores and (phases.tracks_draws or phases.now == "scoring"):
            table = tracker.table()
        return found if table is None else found | table_metrics(table)

    def observe(self, logits: Tensor, inputs: Any = None) -> None:
        """Give the logits of the batch that waits, where no forward hook can see them.

        Args:
            logits: (B, classes), in the order of the batch; any device.
            inputs: the batch's inputs as the loader gave them, needed where several batches wait.

        Raises:
            BindingError: no batch waits, or it cannot be told which.
        """
        self._run.observe(logits, inputs)

    def paused(self) -> AbstractContextManager[None]:
        """Within this context batches and forwards are not followed, and no set is switched."""
        return self._run.pausing()

    def finish(self) -> Coreset | None:
        """End the scoring now, select and write; the next pass is pruned. On all ranks, where there are several.

        Returns:
            The coreset; None under ``keep=None``.

        Raises:
            StateError: nothing has been scored yet.
        """
        self._run.finish()
        return self.coreset

    def follow(self, rest: Any, *, skipped: int) -> None:
        """Follow another loader through the rest of one pass: a framework's, made to leave out its first batches.

        Args:
            rest: made from the attached loader's dataset, batch sampler and collate function; read next, and once.
            skipped: batches that it leaves out.
        """
        self._run.follow_rest(vars(rest).get("base_dataloader", rest), skipped)

    def begin_pass(self) -> None:
        """Switch the set, where it is due, ahead of ``iter(loader)``; for frameworks that look at the loader first.

        Raises:
            BindingError, WriteError, RankError: as ``iter(loader)`` does.
        """
        self._run.before_pass()

    def end_pass(self) -> None:
        """End the pass that was trained on, and the scoring where it is due; on all ranks.

        For loops that count batches and so never ask an iterator for more than there are: where one rank alone
        switches its set at the next ``iter(loader)`` by itself, several need to meet.

        Raises:
            BindingError: a whole pass went by, and no logits came.
        """
        self._run.end_pass()

    def detach(self) -> None:
        """Leave the loader as it was before :func:`prunesampler.attach`, its own sampler included."""
        self._run.detach()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a restart needs, as tensors and plain Python; of this rank alone, without communication.

        Save it beside the model that it belongs to, and load it with ``torch.load(..., weights_only=True)``.
        """
        return {
            "version": _VERSION,
            "plan": self._phases.config.to_dict(),
            "num_rows": self._phases.swap.num_rows,
            "fingerprint": self._fingerprint,
            **self._run.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], *, mid_epoch: bool = True, base_resumes: bool = False) -> None:
        """Go on where :meth:`state_dict` was taken; before the first pass, and on all ranks together.

        Any number of ranks may go on. Give each the state that it saved itself, or all of them rank 0's. The rest of
        a pruned epoch is split anew. A scoring epoch starts again where a rank lacks what it had scored of it;
        under a policy that reads scores the epoch goes on, and what it had read keeps the scores of earlier epochs.

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
            self._phases.group.exchange(None)  # the others must not wait
            raise
        check_moment(state, self._phases.group)
        self._run.load_state_dict(state, mid_epoch=mid_epoch, base_resumes=base_resumes)

    def _check_state(self, state: dict[str, Any]) -> None:
        own = self.state_dict()
        check_state(state, set(own), {name: own[name] for name in ("version", "plan", "num_rows")})
        if not matches(state["fingerprint"], self._fingerprint):
            raise StateError(
                f"the state was saved on a dataset with fingerprint {state['fingerprint']}, and this one has "
                f"{self._fingerprint}"
            )
        self._phases.check_state(state)
