"""What a run that prunes costs, in full epochs: passes of training over all the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunesampler.analysis.statistics import protocol_of
from prunesampler.errors import ArgumentError, check_int
from prunesampler.tables.score_table import ScoreTable

FORWARD = 1 / 3
"""A pass in eval mode, of a pass of training: going backward takes about twice the arithmetic of going forward."""


@dataclass(frozen=True)
class Scoring:
    """What the scores of one table cost.

    Attributes:
        inside: epochs of the pruned run itself that are scored, and so train on all rows.
        extra: full epochs spent beside that run, or in a pass of their own.
    """

    inside: int
    extra: float


@dataclass(frozen=True)
class Cost:
    """What pruning saves; None where the length of the run, or of its epochs, is not known.

    Attributes:
        scoring: what the scores cost.
        break_even: the first epoch, counted from 1, at whose end the pruned run has cost less than a full one; None if
            none is. A cost of s beside the run takes s / (1 − kept) pruned epochs to recover.
        epochs: of the whole run, scoring epochs included.
        total: the whole cost in full epochs: how long "full data, shorter" may train at equal cost.
        hours_full: of the run without pruning.
        hours_saved: of these, net of the cost of scoring; negative where that is never recovered.
    """

    scoring: Scoring
    break_even: int | None
    epochs: int | None
    total: float | None
    hours_full: float | None
    hours_saved: float | None


def cost(scoring: Scoring, kept: float, epochs: int | None = None, epoch_seconds: float | None = None) -> Cost:
    """What a run saves whose pruned epochs train on the share ``kept``, in (0, 1], of the rows."""
    if epochs is not None and epochs <= scoring.inside:
        raise ArgumentError("epochs", f"must be an int above {scoring.inside}, the scoring epochs of the run", epochs)
    if epoch_seconds is not None and epochs is None:
        raise ArgumentError("epoch_seconds", "needs epochs, the length of the whole run", epoch_seconds)
    if epoch_seconds is not None and not 0 < epoch_seconds < math.inf:
        raise ArgumentError("epoch_seconds", "must be a float > 0", epoch_seconds)
    whole = hours_full = hours_saved = break_even = None
    if kept < 1:  # rounded, because 30 / (1 − 0.7) is not 100 in floats
        break_even = math.floor(round(scoring.inside + scoring.extra / (1 - kept), 9)) + 1
    if epochs is not None:
        whole = scoring.extra + scoring.inside + kept * (epochs - scoring.inside)
        if epoch_seconds is not None:
            hours_full = epochs * epoch_seconds / 3600
            hours_saved = (epochs - whole) * epoch_seconds / 3600
    return Cost(scoring, break_even, epochs, whole, hours_full, hours_saved)


def scoring_of(table: ScoreTable, by: str, score_epochs: int | None = None) -> Scoring | None:
    """What scoring cost, by the table's provenance; None where it does not say.

    - Online, one run: the scored epochs are training epochs of the run that is pruned, and cost nothing more.
    - Rescored at the end of an attached run's scoring epochs: these, and a third of an epoch for the pass.
    - Rescored with a model of its own: a third of an epoch, and ``score_epochs`` for the training of that model.
    - Several runs averaged, or scores carried over to another dataset: all of them were trained beside the run that
      is pruned.
    """
    if score_epochs is not None:
        check_int("score_epochs", score_epochs, 1)
    protocol = protocol_of(table, by)
    attached = _attached_epochs(table.provenance)
    rescored = protocol.get("kind") == "rescored"
    runs = _count(protocol.get("runs")) or 1
    epochs = score_epochs or attached or (0 if rescored else _count(protocol.get("epochs")))
    if epochs is None:
        return None
    extra = runs * FORWARD if rescored else 0.0
    beside = runs > 1 or "aligned_from" in table.provenance or (rescored and attached is None)
    return Scoring(0, runs * epochs + extra) if beside else Scoring(epochs, extra)


def _attached_epochs(provenance: Mapping[str, Any]) -> int | None:
    """The ``score_epochs`` of the attached run that a table, or the first of those merged into it, comes from."""
    merged = provenance.get("merged_from")
    if isinstance(merged, list) and merged and isinstance(merged[0], dict):
        first = merged[0].get("provenance")
        return _attached_epochs(first) if isinstance(first, dict) else None
    scoring = provenance.get("scoring")
    return _count(scoring.get("score_epochs")) if isinstance(scoring, dict) else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
