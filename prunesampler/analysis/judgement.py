"""Whether to prune, and how much: what a table of scores says for and against."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prunesampler.analysis.advice import Evidence, Verdict, advice, control, verdict
from prunesampler.analysis.classes import Survival, survival
from prunesampler.analysis.cost import Cost, Scoring, cost, scoring_of
from prunesampler.analysis.reliability import Reliability, reliability_of
from prunesampler.analysis.statistics import by_default, ranked
from prunesampler.errors import ArgumentError, PruneSamplerWarning
from prunesampler.selection.select import Method, Selection
from prunesampler.selection.superfluous import learned_for_good, superfluous
from prunesampler.tables.score_table import ScoreTable

__all__ = ["Case", "HardRow", "Judgement", "judge"]

_HARDEST = 10
_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class HardRow:
    """A row, its key and label where the table has them, its score, and its forgetting score (∞: never learned)."""

    row: int
    key: str | int | None
    label: int | None
    score: float
    forgetting: float | None


@dataclass(frozen=True)
class Case:
    """One keep, and what speaks for and against it.

    Attributes:
        keep: as it was asked for.
        kept, gone: numbers of rows.
        learned_for_good: share of the rows that would go that were learned and never forgotten; None if unknown.
        superfluous: share of the rows that would go that ``keep="auto"`` would remove too; None if unknown.
        cost: None where the table does not say how it was scored.
        classes: those with the lowest share of kept rows first; None where the table has no labels.
        verdict: in a few words.
        advice: in a few sentences.
        control: a command and a line of Python, see :func:`prunesampler.analysis.advice.control`.
    """

    keep: float | str
    kept: int
    gone: int
    learned_for_good: float | None
    superfluous: float | None
    cost: Cost | None
    classes: tuple[Survival, ...] | None
    verdict: Verdict
    advice: str
    control: tuple[str, str]


@dataclass(frozen=True)
class Judgement:
    """What a table of scores says about pruning.

    Attributes:
        by, method: how the rows to keep would be selected.
        scoring: what the scores cost; None where the table does not say.
        learned_for_good: share of all rows that were learned and never forgotten; None if unknown.
        superfluous: share of all rows that ``keep="auto"`` removes; None if unknown.
        reliability: of the score; None if unknown, as after one scoring epoch.
        hardest: the ten hardest rows, hardest first.
        cases: one for each keep.
    """

    by: str
    method: str
    scoring: Scoring | None
    learned_for_good: float | None
    superfluous: float | None
    reliability: Reliability | None
    hardest: tuple[HardRow, ...]
    cases: tuple[Case, ...]


def judge(
    table: ScoreTable,
    keeps: Sequence[float | str],
    *,
    by: str | None = None,
    method: Method = "stratified",
    epochs: int | None = None,
    epoch_seconds: float | None = None,
    score_epochs: int | None = None,
    path: str = "scores.parquet",
) -> Judgement:
    """What speaks for and against pruning to each of ``keeps``.

    Args:
        table: the scores.
        keeps: each as :func:`prunesampler.select` takes it.
        by: the score to select by; by default EL2N, or the first of the table.
        method: how to select.
        epochs, epoch_seconds: of the whole run, see :func:`prunesampler.analysis.cost.cost`.
        score_epochs: see :func:`prunesampler.analysis.cost.scoring_of`.
        path: of the table, for the commands to copy.

    Raises:
        ArgumentError: an option breaks its rule, or no row has the score.

    >>> table = ScoreTable({"el2n": [0.1, 0.2, 0.8, 0.9]}, forgetting_events=[0, 1, 3, 2], learned=[True] * 4)
    >>> case = judge(table, [0.5], method="top").cases[0]
    >>> case.gone, case.learned_for_good, case.verdict
    (2, 0.5, 'likely to cost')
    """
    by = by_default(table, by)
    scoring, reliability = scoring_of(table, by, score_epochs), reliability_of(table, by)
    cost(scoring or Scoring(0, 0), 1, epochs, epoch_seconds)  # refuses what is out of range before any work
    if scoring is None and epochs is not None:
        raise ArgumentError("score_epochs", "must be given: the table does not say how long scoring took", None)
    good, spare = _learned_for_good(table), _superfluous(table)
    cases = []
    for keep in keeps:
        kept = _kept(table, keep, by, method)
        price = None if scoring is None else cost(scoring, float(kept.mean()), epochs, epoch_seconds)
        evidence = Evidence(
            float((~kept).mean()), _share(good), _share(good, ~kept), _share(spare), _share(spare, ~kept)
        )
        size = keep if isinstance(keep, int | float) else max(2, int(kept.sum()))
        cases.append(
            Case(
                keep=keep,
                kept=int(kept.sum()),
                gone=int((~kept).sum()),
                learned_for_good=evidence.good_gone,
                superfluous=evidence.spare_gone,
                cost=price,
                classes=_losing(table, kept),
                verdict=verdict(evidence),
                advice=advice(evidence, reliability, price),
                control=control(size, path, 0 if scoring is None else scoring.inside),
            )
        )
    hardest = _hardest(table, by)
    return Judgement(by, method, scoring, _share(good), _share(spare), reliability, hardest, tuple(cases))


def _kept(table: ScoreTable, keep: Any, by: str, method: Method) -> _Mask:
    selection = Selection("auto", by) if keep == "auto" else Selection(keep, by, method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PruneSamplerWarning)  # that few rows have a score is among the figures
        coreset = selection(table)
    return np.isin(table.rows, coreset.rows, assume_unique=True)


def _learned_for_good(table: ScoreTable) -> _Mask | None:
    return None if table.forgetting_events is None or table.learned is None else learned_for_good(table)


def _superfluous(table: ScoreTable) -> _Mask | None:
    """By EL2N, whatever rows are selected by: the threshold is in its unit."""
    try:
        return superfluous(table)
    except ArgumentError:
        return None


def _share(mask: _Mask | None, among: _Mask | None = None) -> float | None:
    of = mask if mask is None or among is None else mask[among]
    return None if of is None or not len(of) else float(of.mean())


def _losing(table: ScoreTable, kept: _Mask) -> tuple[Survival, ...] | None:
    return None if table.labels is None else tuple(sorted(survival(table.labels, kept), key=lambda each: each.ratio))


def _hardest(table: ScoreTable, by: str) -> tuple[HardRow, ...]:
    score, chosen = table.column(by), ranked(table, by)[:_HARDEST].tolist()
    keys = [None] * len(chosen) if table.key_column is None else table.key_column.take(chosen).tolist()
    labels = [-1] * len(chosen) if table.labels is None else table.labels[chosen].tolist()
    forgetting = [float("nan")] * len(chosen)
    if "forgetting" in table.directions:
        forgetting = table.column("forgetting")[chosen].tolist()
    return tuple(
        HardRow(
            row=int(table.rows[place]),
            key=key,
            label=None if label < 0 else label,
            score=float(score[place]),
            forgetting=None if np.isnan(events) else events,
        )
        for place, key, label, events in zip(chosen, keys, labels, forgetting, strict=True)
    )
