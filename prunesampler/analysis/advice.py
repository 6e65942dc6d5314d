"""Whether to prune, and how much: the evidence in a table of scores, a verdict, and the run that would settle it."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from prunesampler._format import number, percent
from prunesampler.analysis.cost import Cost, Scoring, cost, scoring_of
from prunesampler.analysis.statistics import Reliability, Survival, default_score, ranked, reliability_of, survival
from prunesampler.errors import ArgumentError, PruneSamplerWarning
from prunesampler.selection.registry import Method, name_of
from prunesampler.selection.select import Selection
from prunesampler.selection.superfluous import learned_for_good, superfluous
from prunesampler.tables.score_table import ScoreTable

UNSETTLED = 0.2
"""Where more than this share of the removed rows is not learned for good, pruning is likely to cost accuracy."""
FEW = 0.1
"""Where at most this share of them does not look superfluous, it is unlikely to."""
NOISY = 0.7
"""Scores of a lower reliability are called noisy (Nunnally, Psychometric Theory, second edition, 1978, page 245)."""
LOST = 0.5
"""A class is flagged whose kept share is below this fraction of the average."""

Verdict = Literal["nothing goes", "unlikely to cost", "may cost", "likely to cost", "unknown"]

MEASURED: dict[Verdict, str] = {
    "likely to cost": (
        "In ten epochs of CIFAR-10 at keep 0.5, with 38 % of the removed rows not learned for good, pruning lost 1.0 "
        "point against all the data at equal cost."
    ),
    "unlikely to cost": (
        "In ten epochs of CIFAR-10, leaving out the 5 % that looked superfluous gained 0.4 points at equal steps with "
        "one seed, and lost 0.7 points where a run of its own was spent on the scores."
    ),
}
"""What came of it where these signs were seen (benchmarks/results/cifar10-small); nothing is measured of the others."""

_CLOSE = 0.01
_HARDEST = 10
_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Evidence:
    """Shares of rows, None where the table does not tell.

    Attributes:
        gone: share of all rows that would be removed.
        good, good_gone: share that is learned for good, of all rows and of the removed ones.
        superfluous, superfluous_gone: share that is superfluous, likewise.
    """

    gone: float
    good: float | None
    good_gone: float | None
    superfluous: float | None
    superfluous_gone: float | None


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
    """What pruning to one keep would do.

    Attributes:
        keep: as it was asked for.
        kept, gone: numbers of rows.
        learned_for_good: share of the removed rows that were learned and never forgotten; None if unknown.
        superfluous: share of the removed rows that ``keep="auto"`` would remove too; None if unknown.
        cost: None where the table does not say how it was scored.
        classes: those with the lowest share of kept rows first; None where the table has no labels.
        verdict: in a few words.
        advice: in a few sentences.
        control: a command and a line of Python, see :func:`control`.
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
        learned_for_good, superfluous: as in :class:`Case`, of all rows.
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
    features: Any = None,
) -> Judgement:
    """What a table says for and against pruning to each of ``keeps``, selected ``by`` a score (EL2N, or the first).

    ``path`` is the table's, for the commands to copy; ``features`` are those that :func:`prunesampler.select` is given;
    for the other options see :mod:`prunesampler.analysis.cost`.
    """
    by = default_score(table, by)
    scoring, reliability = scoring_of(table, by, score_epochs), reliability_of(table, by)
    cost(scoring or Scoring(0, 0), 1, epochs, epoch_seconds)  # refuses what is out of range before any work
    if scoring is None and epochs is not None:
        raise ArgumentError("score_epochs", "must be given: the table does not say how long scoring took", None)
    good, spare = _learned_for_good(table), _superfluous(table)
    inside = 0 if scoring is None else scoring.inside
    cases = []
    for keep in keeps:
        kept = _kept(table, keep, by, method, features)
        price = None if scoring is None else cost(scoring, float(kept.mean()), epochs, epoch_seconds)
        gone = ~kept
        evidence = Evidence(float(gone.mean()), _share(good), _share(good, gone), _share(spare), _share(spare, gone))
        classes = None if table.labels is None else sorted(survival(table.labels, kept), key=lambda each: each.ratio)
        cases.append(
            Case(
                keep=keep,
                kept=int(kept.sum()),
                gone=int(gone.sum()),
                learned_for_good=evidence.good_gone,
                superfluous=evidence.superfluous_gone,
                cost=price,
                classes=None if classes is None else tuple(classes),
                verdict=verdict(evidence),
                advice=advice(evidence, reliability, price),
                control=control(keep if isinstance(keep, int | float) else max(2, int(kept.sum())), path, inside),
            )
        )
    hardest = _hardest(table, by)
    return Judgement(by, name_of(method), scoring, _share(good), _share(spare), reliability, hardest, tuple(cases))


def verdict(evidence: Evidence) -> Verdict:
    """What pruning would do to accuracy, judged by the rows that it removes.

    Rows that are merely learned for good never make it harmless: after a few epochs few had the chance to be forgotten.
    """
    if evidence.gone == 0:
        return "nothing goes"
    if evidence.good_gone is None:
        return "unknown"
    if 1 - evidence.good_gone > UNSETTLED:
        return "likely to cost"
    harmless = evidence.superfluous_gone is not None and 1 - evidence.superfluous_gone <= FEW
    return "unlikely to cost" if harmless else "may cost"


def advice(evidence: Evidence, reliability: Reliability | None, cost: Cost | None) -> str:
    """The verdict with its reason, and what to do; never a promise that pruning gains anything."""
    found = verdict(evidence)
    if found == "nothing goes":
        return "No row would be removed."
    sentences = [_reason(found, evidence)]
    if found != "unlikely to cost":
        sentences.append("Run the control below, or prunesampler compare.")
        if evidence.superfluous is not None and evidence.superfluous >= 0.01:
            sentences.append(f'keep="auto" removes only the {percent(evidence.superfluous)} that look superfluous.')
    if reliability is not None and reliability.reliability < NOISY:
        noise = f"The scores are noisy (reliability {reliability.reliability:.2f})"
        sentences.append(f"{noise}: score more epochs, or merge several runs.")
    sentences += [MEASURED[found]] if found in MEASURED else []
    shorter = "shorter on all the data"
    if cost is not None and cost.total is not None:
        shorter = f"on all the data for {cost.total:.3g} epochs"
    return " ".join([*sentences, f"At equal cost, training {shorter} is the baseline to beat."])


def _reason(found: Verdict, evidence: Evidence) -> str:
    gone = percent(evidence.gone)
    if found == "unknown" or evidence.good is None or evidence.good_gone is None:
        return "Without forgetting events it is unknown how many rows are learned for good."
    if found == "likely to cost" and evidence.good < evidence.gone - _CLOSE:
        good = percent(evidence.good)
        return f"Only {good} of the rows are learned for good, and {gone} would be removed: likely to cost accuracy."
    if found == "likely to cost":
        return f"{percent(1 - evidence.good_gone)} of the removed rows are not learned for good: {found} accuracy."
    if evidence.superfluous is None or evidence.superfluous_gone is None:
        return (
            f"{percent(evidence.good_gone)} of the removed rows are learned for good. Whether their scores are low "
            "and stable too takes EL2N of two epochs or more: may cost accuracy."
        )
    if found == "may cost":
        return (
            f"{percent(evidence.good_gone)} of the removed rows are learned for good, but only "
            f"{percent(evidence.superfluous_gone)} look superfluous (low and stable scores too): may cost accuracy."
        )
    superfluous = percent(evidence.superfluous)
    return f"{superfluous} of the rows look superfluous, and {gone} would be removed: unlikely to cost accuracy."


def control(keep: float, scores: str, inside: int) -> tuple[str, str]:
    """A command that writes a random coreset of the same size, and a line of Python that trains on such a one.

    ``inside`` is the number of scoring epochs of the pruned run; 0 where it is pruned from the start.
    """
    command = f"prunesampler select {shlex.quote(scores)} -o random.parquet --keep {keep} --method random --seed 0"
    options = f'keep={keep}, score_epochs={inside}, method="random"' if inside else 'coreset="random.parquet"'
    return command, f"loader = ps.attach(loader, model, {options})"


def _kept(table: ScoreTable, keep: Any, by: str, method: Method, features: Any) -> _Mask:
    rule = isinstance(keep, str)
    selection = Selection(keep, by) if rule else Selection(keep, by, method, features=features)
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


def _hardest(table: ScoreTable, by: str) -> tuple[HardRow, ...]:
    score, chosen = table.column(by), ranked(table, by)[:_HARDEST].tolist()
    nothing = [None] * len(chosen)
    keys = nothing if table.key_column is None else table.key_column.take(chosen).tolist()
    labels = nothing if table.labels is None else [None if n < 0 else n for n in table.labels[chosen].tolist()]
    forgetting: Sequence[float | None] = nothing
    if "forgetting" in table.directions:
        forgetting = [None if np.isnan(n) else n for n in table.column("forgetting")[chosen].tolist()]
    return tuple(map(HardRow, table.rows[chosen].tolist(), keys, labels, score[chosen].tolist(), forgetting))


def hardest_cells(judgement: Judgement, key: Callable[[object], str], label: Callable[[int], str]) -> list[list[str]]:
    """Row, key, label, score and forgetting of each of the hardest rows, as text; "–" for what is unknown."""
    return [
        [
            str(each.row),
            "–" if each.key is None else key(each.key),
            "–" if each.label is None else label(each.label),
            number(each.score),
            number(each.forgetting),
        ]
        for each in judgement.hardest
    ]
