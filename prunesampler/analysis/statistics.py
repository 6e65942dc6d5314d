"""What is in a table of scores: counts, distributions, classes, and how reliable a score is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from prunesampler.errors import ArgumentError, MismatchError, did_you_mean
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.score_table import ScoreTable

PERCENTILES = (1, 10, 25, 50, 75, 90, 99)
_BINS = 64
_Array = npt.NDArray[Any]
_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Distribution:
    """How one score is distributed.

    Attributes:
        name: of the score.
        harder: ``"higher"`` or ``"lower"``.
        scored, unscored: rows with and without a value; infinite values (never learned) count as scored.
        infinite: rows whose value is infinite.
        mean, low, high: of the finite values; None where there are none.
        quantiles: ``"p50"`` → the smallest value that is not below 50 % of the values; empty where there are none.
        edges: (B + 1,) limits of the histogram's bins, of equal width; the last bin includes its upper limit.
        counts: (B,) finite values in each bin.
    """

    name: str
    harder: str
    scored: int
    unscored: int
    infinite: int
    mean: float | None
    low: float | None
    high: float | None
    quantiles: dict[str, float]
    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class ClassScores:
    """One class: its label (None: rows without one), rows, share of all rows, and score → mean of finite values."""

    label: int | None
    rows: int
    share: float
    means: dict[str, float | None]

    def easiness(self, score: str, direction: str) -> float:
        """What orders classes by a mean score, the hardest first; infinite for a class without one."""
        mean = self.means[score]
        return math.inf if mean is None else mean if direction == "lower" else -mean


@dataclass(frozen=True)
class Survival:
    """How much of one class a selection keeps.

    Attributes:
        label: the class; None for rows without a label.
        rows, kept: how many could be selected, and how many were.
        share: ``kept / rows``.
        ratio: ``share`` divided by the kept share of all rows; below 1 the class loses more than the average.
    """

    label: int | None
    rows: int
    kept: int
    share: float
    ratio: float


@dataclass(frozen=True)
class Figures:
    """The statistics of a table.

    Attributes:
        rows, num_rows: of the table, and of the dataset.
        presentations: summed over all rows; None where they were not counted.
        seen: rows that were presented at least once; None likewise.
        learned: share of the rows with a forgetting score that were classified correctly at least once.
        never_forgotten: share of them that were learned and have no forgetting event.
        never_learned: share of them that were never classified correctly.
        scores: a distribution each, forgetting included.
        classes: by label; None where the table has no labels.
    """

    rows: int
    num_rows: int
    presentations: int | None
    seen: int | None
    learned: float | None
    never_forgotten: float | None
    never_learned: float | None
    scores: tuple[Distribution, ...]
    classes: tuple[ClassScores, ...] | None


@dataclass(frozen=True)
class Reliability:
    """How well two measurements of one score agree, and so how well their mean would agree with another such mean.

    Attributes:
        between: ``"halves"``, the odd and the even scoring epochs of one run (their weights have much in common:
            another run agrees less), or ``"runs"``, the tables that were merged.
        correlation: Spearman's, between two of them.
        reliability: of the mean, see :func:`spearman_brown`.
    """

    between: Literal["halves", "runs"]
    correlation: float
    reliability: float


def figures(table: ScoreTable) -> Figures:
    """All statistics of a table."""
    names, presented = score_names(table), table.presentations
    learned = never_forgotten = never_learned = None
    if table.forgetting_events is not None and table.learned is not None:
        events = table.column("forgetting")
        events = events[~np.isnan(events)]
        if len(events):
            never_learned, never_forgotten = float(np.isinf(events).mean()), float((events == 0).mean())
            learned = 1 - never_learned
    return Figures(
        rows=len(table),
        num_rows=table.num_rows,
        presentations=None if presented is None else int(presented.sum(dtype=np.int64)),
        seen=None if presented is None else int(np.count_nonzero(presented)),
        learned=learned,
        never_forgotten=never_forgotten,
        never_learned=never_learned,
        scores=tuple(distribution(table, name) for name in names),
        classes=class_scores(table, names),
    )


def score_names(table: ScoreTable) -> list[str]:
    """The scores that rows can be ranked by, in the table's order; the spread of a score is not one."""
    return [name for name in table.directions if "spread_of" not in protocol_of(table, name)]


def protocol_of(table: ScoreTable, name: str) -> dict[str, Any]:
    """How a score was measured; empty where the table does not say."""
    protocol = table.protocols.get(name)
    return protocol if isinstance(protocol, dict) else {}


def default_score(table: ScoreTable, by: str | None = None) -> str:
    """The score to rank by: ``by``, or EL2N, or the first one; ArgumentError where no row has it."""
    names = score_names(table)
    if by is None:
        by = "el2n" if "el2n" in names else names[0]
    if by not in names:
        raise ArgumentError("by", f"must be a score of the table, one of {names}", by, did_you_mean(by, names))
    if np.isnan(table.column(by)).all():
        raise ArgumentError("by", "must be a score that at least one row has", by)
    return by


def ranked(table: ScoreTable, name: str) -> npt.NDArray[np.int64]:
    """The positions in the table of the rows that have the score, hardest first; equal ones by row."""
    score = table.column(name)
    order = np.argsort(score if table.directions[name] == "lower" else -score, kind="stable")  # NaN comes last
    return order[: len(score) - np.count_nonzero(np.isnan(score))]


def distribution(table: ScoreTable, name: str, among: _Mask | None = None) -> Distribution:
    """How the score ``name`` is distributed over all rows, or over those of a (len(table),) mask."""
    values = table.column(name) if among is None else table.column(name)[among]
    scored = values[~np.isnan(values)]
    finite = scored[np.isfinite(scored)]
    quantiles: dict[str, float] = {}
    if len(scored):  # not interpolated, which would make NaN between infinite values
        found = np.quantile(scored, [percent / 100 for percent in PERCENTILES], method="inverted_cdf")
        quantiles = {f"p{percent}": float(value) for percent, value in zip(PERCENTILES, found, strict=True)}
    edges = _edges(finite)
    mean = low = high = None
    if len(finite):
        mean, low, high = float(finite.mean(dtype=np.float64)), float(finite.min()), float(finite.max())
    return Distribution(
        name=name,
        harder=table.directions[name],
        scored=len(scored),
        unscored=len(values) - len(scored),
        infinite=len(scored) - len(finite),
        mean=mean,
        low=low,
        high=high,
        quantiles=quantiles,
        edges=tuple(edges.tolist()),
        counts=tuple(np.histogram(finite, edges)[0].tolist()) if len(finite) else (),
    )


def _edges(finite: _Array) -> npt.NDArray[np.float64]:
    """Of at most 64 bins; integers get bins of whole width around them."""
    if not len(finite):
        return np.empty(0)
    low, high = float(finite.min()), float(finite.max())
    if low.is_integer() and (finite == np.floor(finite)).all():
        width = (high - low) // _BINS + 1
        return low - 0.5 + width * np.arange((high - low) // width + 2)
    return np.linspace(low, high, (_BINS if high > low else 1) + 1)


def class_scores(table: ScoreTable, names: Iterable[str]) -> tuple[ClassScores, ...] | None:
    """The mean scores of each class, by label, rows without one last; None where the table has no labels."""
    if table.labels is None:
        return None
    labels, codes, rows = _classes(table.labels)
    means = {}
    for name in names:
        values = table.column(name).astype(np.float64)
        finite = np.isfinite(values)
        counts = np.bincount(codes[finite], minlength=len(labels))
        sums = np.bincount(codes[finite], values[finite], minlength=len(labels))
        means[name] = [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]
    return tuple(
        ClassScores(label, count, count / len(table), {name: values[i] for name, values in means.items()})
        for i, (label, count) in enumerate(zip(labels, rows.tolist(), strict=True))
    )


def survival(labels: npt.ArrayLike, kept: npt.ArrayLike) -> tuple[Survival, ...]:
    """How much of each class is kept, by label, rows without one last: (N,) labels, −1 for none, and (N,) bools."""
    mask = np.asarray(kept, np.bool_)
    names, codes, rows = _classes(np.asarray(labels))
    survivors = np.bincount(codes[mask], minlength=len(names))
    mean = mask.mean()
    return tuple(
        Survival(name, int(n), int(k), float(k / n), float(k / n / mean))
        for name, n, k in zip(names, rows, survivors, strict=True)
    )


def kept_in(coreset: Coreset, table: ScoreTable) -> _Mask:
    """Which rows of the table a coreset keeps: (len(table),) bools, in the order of ``table.rows``."""
    of_these = coreset.scores_digest in (None, table.digest) and coreset.num_rows == table.num_rows
    if not of_these or not np.isin(coreset.rows, table.rows, assume_unique=True).all():
        raise MismatchError("the coreset was not selected from these scores")
    return np.isin(table.rows, coreset.rows, assume_unique=True)


def _classes(labels: _Array) -> tuple[list[int | None], _Array, _Array]:
    """The labels, each row's index among them, and their counts; None, for rows without a label, comes last."""
    values, codes, rows = np.unique(labels, return_inverse=True, return_counts=True)
    names: list[int | None] = values.tolist()
    if names[0] == -1:
        names = [*names[1:], None]
        codes = np.where(codes == 0, len(names), codes) - 1
        rows = np.roll(rows, -1)
    return names, codes, rows


def reliability_of(table: ScoreTable, name: str) -> Reliability | None:
    """What the table says about its score ``name``; None where it was measured once."""
    protocol, merged = protocol_of(table, name), table.provenance.get("merged_from")
    if isinstance(merged, list) and len(merged) > 1 and isinstance(found := protocol.get("between_runs"), float):
        return Reliability("runs", found, spearman_brown(found, len(merged)))
    if isinstance(found := protocol.get("split_half"), float):
        return Reliability("halves", found, spearman_brown(found, 2))
    return None


def spearman_brown(correlation: float, count: int) -> float:
    """The reliability of a mean of ``count`` measurements that correlate by r: n·r / (1 + (n − 1)·r), at least 0.

    For two this is 2r / (1 + r) (Spearman 1910 and Brown 1910, British Journal of Psychology 3).
    """
    return count * correlation / (1 + (count - 1) * correlation) if correlation > 0 else 0.0
