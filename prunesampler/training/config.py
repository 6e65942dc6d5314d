"""What one attached run is to do: its options, checked in one place before it begins."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

import numpy as np

from prunesampler.errors import ArgumentError, UnsupportedError, check_choice, check_int
from prunesampler.sampling.block_shuffle import BlockShuffle
from prunesampler.scores.dynamics import WINDOW
from prunesampler.scores.registry import SCORES
from prunesampler.selection.select import Selection
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.parquet import content_digest
from prunesampler.tracking.ranks import Group
from prunesampler.tracking.totals import Reduction
from prunesampler.training.policies.function import FunctionPolicy
from prunesampler.training.policies.policy import EpochLength, Policy
from prunesampler.training.policies.prune_once import PruneOnce

if TYPE_CHECKING:
    from prunesampler.selection.registry import Method

_SHORT_FORM = {"keep": 0.5, "score_epochs": 10, "epoch_length": "kept"}  # the defaults of attach


class SelectionOptions(TypedDict, total=False):
    """The options of :func:`prunesampler.select` that :func:`prunesampler.attach` hands on."""

    by: str
    method: Method
    offset: float | int | None
    class_balanced: bool
    min_per_class: int | None
    unscored: Literal["keep", "drop"]
    threshold: float | None
    features: Any
    method_options: Mapping[str, Any]


def policy_of(
    policy: Any,
    selection: Selection | None,
    *,
    keep: float | int | Literal["auto", "clean"] | None,
    score_epochs: int,
    epoch_length: EpochLength,
    seed: int,
    scores: Sequence[str] | None,
    options: SelectionOptions,
) -> Policy:
    """The policy that the arguments of :func:`prunesampler.attach` mean, in their long form or in their short one."""
    for name, value in options.items():
        if name not in SelectionOptions.__annotations__:
            names = ", ".join(SelectionOptions.__annotations__)
            raise ArgumentError(name, f"must be an option of attach, or of select: {names}", value)
    short = {"keep": keep, "score_epochs": score_epochs, "epoch_length": epoch_length}
    chosen = {name: value for name, value in short.items() if value != _SHORT_FORM[name]} | dict(options)
    if policy is not None and getattr(policy, "every_epoch", True):
        chosen.pop("epoch_length", None)
    if isinstance(policy, Policy):
        _refuse_beside("policy", chosen if selection is None else {"selection": selection, **chosen})
        if not dataclasses.is_dataclass(policy):
            raise ArgumentError("policy", "must be a dataclass, so that a state can hold its options", policy)
        return policy
    if callable(policy):
        reads = tuple(scores or ())
        chosen.pop("score_epochs", None)
        _refuse_beside("policy", chosen)
        given = score_epochs if score_epochs != _SHORT_FORM["score_epochs"] else min(1, len(reads))
        return FunctionPolicy(policy, reads, given)
    if policy is not None:
        raise ArgumentError("policy", "must be a prunesampler.Policy, or a function (epoch, table) → rows", policy)
    if selection is not None:
        chosen = {name: value for name, value in chosen.items() if name not in ("score_epochs", "epoch_length")}
        _refuse_beside("selection", chosen)
    elif keep is not None:
        selection = Selection(keep=keep, seed=seed, **options)
    elif options.get("threshold") is not None:
        raise ArgumentError("threshold", 'belongs to keep="auto" and keep="clean"', options["threshold"])
    return PruneOnce(selection, score_epochs, epoch_length)


def _refuse_beside(long: str, chosen: dict[str, Any]) -> None:
    for name, value in chosen.items():
        raise ArgumentError(name, f"must be left out where {long}= is given, which has options of its own", value)


@dataclass(frozen=True)
class RunConfig:
    """When to score, by what, and what is drawn.

    Attributes:
        policy: what is drawn before every epoch.
        scores: columns to track.
        reduction: of the scored epochs, as :class:`~prunesampler.ScoreTracker` has it.
        rescored: whether the scores come from a pass of their own at the end of the scored epochs.
        seed: of the draws, of the selection's ties and of the order.
        own_scores: whether a function of the user's scores, whose columns are not known yet.
        drawn_length: of the epochs of a policy that draws each of them.
    """

    policy: Policy
    scores: tuple[str, ...]
    reduction: Reduction
    rescored: bool
    seed: int
    own_scores: bool = False
    drawn_length: EpochLength = "kept"

    def __post_init__(self) -> None:
        check_int("seed", self.seed, 0, 2**64 - 1)
        check_choice("reduction", self.reduction, get_args(Reduction))
        if self.selection is not None:
            self._check_selection(self.selection)
        if self.policy.every_epoch and self.rescored:
            rule = f"must be None with {type(self.policy).__name__}, which draws a new set every epoch"
            raise ArgumentError("rescore", rule, "a loader")
        for name in () if self.own_scores else self.scores:
            if name not in SCORES or not SCORES[name].over_epochs:
                continue
            if self.rescored:
                raise ArgumentError(
                    "rescore", f"must be None with {name!r}, a score of all epochs together", "a loader"
                )
            if SCORES[name].window and self.score_epochs < WINDOW:
                rule = f"must be at least {WINDOW} with {name!r}, a mean over windows of so many epochs"
                raise ArgumentError("score_epochs", rule, self.score_epochs)
        missing = [name for name in self.policy.reads if name not in self.scores]
        if missing:
            raise ArgumentError("scores", f"must name {', '.join(missing)}, which the policy reads", self.scores)

    @property
    def score_epochs(self) -> int:
        """Passes over all rows before the first draw."""
        return int(self.policy.score_epochs)

    @property
    def selection(self) -> Selection | None:
        """How :class:`PruneOnce` selects; None where it only scores, and under any other policy."""
        return self.policy.selection if isinstance(self.policy, PruneOnce) else None

    @property
    def epoch_length(self) -> EpochLength:
        """Of pruned epochs: the drawn rows, or as many steps as the full set has."""
        return self.policy.epoch_length if isinstance(self.policy, PruneOnce) else self.drawn_length

    @property
    def scores_only(self) -> bool:
        """Whether nothing is ever drawn."""
        return isinstance(self.policy, PruneOnce) and self.policy.selection is None

    @property
    def tracks_throughout(self) -> bool:
        """Whether the drawn rows are scored too, for the next draw."""
        return self.policy.every_epoch and bool(self.scores)

    def _check_selection(self, selection: Selection) -> None:
        """Whether what is selected by is tracked, and labels are there where classes matter."""
        for name in ("class_balanced", "min_per_class"):
            if getattr(selection, name) and self.own_scores:
                value = getattr(selection, name)
                raise ArgumentError(name, "must be left out where score_fn= scores: it gives no labels", value)
        if selection.removes_superfluous:
            self._check_auto(selection.by)
        elif selection.keep == "clean" and self.own_scores:
            rule = 'must be None with keep="clean", which reads what the model says of each class'
            raise ArgumentError("score_fn", rule, "a function")
        elif selection.reads_scores and not self.own_scores and selection.by not in self.scores:
            raise ArgumentError("by", f"must be one of the tracked scores, {self.scores}", selection.by)
        for name in () if self.own_scores else selection.other_scores:
            if name not in self.scores:
                raise ArgumentError("method_options", f"must name tracked scores, {self.scores}", name)

    def _check_auto(self, by: str) -> None:
        """Whether the scores will hold what ``keep="auto"`` reads: two halves and forgetting."""
        if self.own_scores:
            raise ArgumentError("score_fn", 'must be None with keep="auto", which reads scores of ours', "a function")
        if self.rescored:
            raise ArgumentError("rescore", 'must be None with keep="auto": one pass has no halves to compare', True)
        if self.score_epochs < 2:
            rule = 'must be at least 2 with keep="auto", which compares halves of them'
            raise ArgumentError("score_epochs", rule, self.score_epochs)
        if self.reduction != "mean":
            raise ArgumentError("reduction", 'must be "mean" with keep="auto", which compares halves', self.reduction)
        if "forgetting" not in self.scores:
            raise ArgumentError("scores", 'must name "forgetting" too with keep="auto"', self.scores)
        candidates = [name for name in self.scores if name in SCORES and SCORES[name].direction == "higher"]
        if by not in candidates:
            rule = f'must with keep="auto" be a tracked score that is higher for harder rows, one of {candidates}'
            raise ArgumentError("by", rule, by)

    def scoring(self) -> dict[str, Any]:
        """What decides the scores: a run may only go on under the same."""
        return {
            "score_epochs": self.score_epochs,
            "scores": list(self.scores),
            "reduction": self.reduction,
            "rescored": self.rescored,
        }

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain Python."""
        policy = self.policy.to_dict()
        once = isinstance(self.policy, PruneOnce)
        options = policy if once else {"policy": policy, "epoch_length": self.drawn_length}
        return {**self.scoring(), **options, "seed": self.seed}


def check_ranks_agree(
    group: Group, config: RunConfig, swap: Any, *, fingerprint: str | None, coreset: Coreset | None
) -> None:
    """Refuse ranks that want different things, have different datasets, or draw their rows apart from one another.

    A collective; all ranks raise together.
    """
    mine = {**config.to_dict(), "len(loader.dataset)": swap.num_rows, "fingerprint": fingerprint}
    if "selection" in mine:
        mine.update(mine.pop("selection") or {"keep": None})
    mine["coreset"] = None if coreset is None else coreset.digest
    everyone = group.exchange(({name: _sendable(value) for name, value in mine.items()}, swap.agreement()))
    ranks = [rank for rank, _ in everyone]
    for name in ranks[0]:
        values = [rank.get(name) for rank in ranks]
        if all(value == values[0] for value in values):
            continue
        if name == "fingerprint":
            raise UnsupportedError(
                f"the ranks have different datasets, by their fingerprints {values}: give every rank the whole "
                "dataset, and a DistributedSampler to split it; where only its paths differ, give fingerprint="
            )
        raise ArgumentError(name, "must be the same on every rank", values)
    swap.check_ranks([agreement for _, agreement in everyone])


def comparable(value: Any) -> Any:
    """A value as two runs, or two ranks, are compared by it: an array by its digest, a function by its name."""
    if isinstance(value, BlockShuffle):
        return str(value)
    if isinstance(value, np.ndarray):
        return content_digest({}, {"values": value})
    if callable(value):
        return getattr(value, "__module__", None), getattr(value, "__qualname__", type(value).__qualname__)
    return value


def _sendable(value: Any) -> Any:
    """The value, or where another rank could not read it (a function of a policy's options, say) its type."""
    try:
        pickle.dumps(value)
    except Exception:
        return f"a {type(value).__name__}"
    return value
