"""What one attached run is to do, checked before it begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from prunesampler.errors import ArgumentError
from prunesampler.scores.logits import SCORES
from prunesampler.selection.select import Selection

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """When to score, by what, and how to select.

    Attributes:
        score_epochs: passes over the loader that are scored, at least 1.
        scores: columns to track.
        reduction: ``"mean"`` over the scoring epochs, or the ``"last"`` one alone.
        rescored: whether the scores come from a pass of their own at the end of the scoring epochs.
        selection: how to select; None scores only.
        epoch_length: of the pruned epochs: the ``"kept"`` rows, or as many steps as the ``"full"`` set has.
        seed: of the selection's ties and of the pruned epochs' order.

    Raises:
        ArgumentError: an attribute breaks its rule, or the scores will lack what ``keep="auto"`` reads.
    """

    score_epochs: int
    scores: tuple[str, ...]
    reduction: Literal["mean", "last"]
    rescored: bool
    selection: Selection | None
    epoch_length: Literal["kept", "full"]
    seed: int

    def __post_init__(self) -> None:
        if isinstance(self.score_epochs, bool) or not isinstance(self.score_epochs, int) or self.score_epochs < 1:
            raise ArgumentError("score_epochs", "must be an int >= 1", self.score_epochs)
        if self.epoch_length not in ("kept", "full"):
            raise ArgumentError("epoch_length", 'must be "kept" or "full"', self.epoch_length)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ArgumentError("seed", "must be an int >= 0", self.seed)
        if self.selection is not None and self.selection.keep == "auto":
            self._check_auto(self.selection.by)

    def _check_auto(self, by: str) -> None:
        """Whether the scores will hold what ``keep="auto"`` reads: two halves and forgetting."""
        if self.rescored:
            raise ArgumentError("rescore", 'must be None with keep="auto": one pass has no halves to compare', True)
        if self.score_epochs < 2:
            raise ArgumentError(
                "score_epochs", 'must be at least 2 with keep="auto", which compares halves of them', self.score_epochs
            )
        if self.reduction != "mean":
            raise ArgumentError("reduction", 'must be "mean" with keep="auto", which compares halves', self.reduction)
        if "forgetting" not in self.scores:
            raise ArgumentError("scores", 'must name "forgetting" too with keep="auto"', self.scores)
        candidates = [name for name in self.scores if name in SCORES and SCORES[name].direction == "higher"]
        if by not in candidates:
            rule = f'must with keep="auto" be tracked, averaged, and higher where harder, one of {candidates}'
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
        selection = None if self.selection is None else self.selection.to_dict()
        return {**self.scoring(), "selection": selection, "epoch_length": self.epoch_length, "seed": self.seed}
