"""What stands in a table of scores: counts, distributions, classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prunesampler.analysis.classes import ClassScores, class_scores
from prunesampler.errors import ArgumentError
from prunesampler.tables.score_table import ScoreTable

__all__ = [
    "PERCENTILES",
    "Distribution",
    "Figures",
    "by_default",
    "distribution",
    "figures",
    "protocol_of",
    "ranked",
    "score_names",
]

PERCENTILES = (1, 10, 25, 50, 75, 90, 99)
_BINS = 64
_Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Distribution:
    """How one score is distributed.

    Attributes:
        name: of the score.
        harder: ``"higher"`` or ``"lower"``.
        scored, unscored: rows with and without a value; infinite values (never learned) count as scored.
        infinite: rows whose value is infinite.
        mean: of the finite values; None where there are none.
        low, high: the least and the greatest finite value; None where there are none.
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
class Figures:
    """What stands in a table of scores.

    Attributes:
        rows: of the table.
        num_rows: of the dataset.
        presentations: of all rows in sum; None where they were not counted.
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


def figures(table: ScoreTable) -> Figures:
    """All of it.

    >>> table = ScoreTable({"el2n": [0.2, 0.4, float("nan")]}, labels=[0, 1, 1])
    >>> found = figures(table)
    >>> found.scores[0].unscored, [each.rows for each in found.classes]
    (1, [1, 2])
    """
    names, presented = score_names(table), table.presentations
    learned = never_forgotten = never_learned = None
    if table.forgetting_events is not None and table.learned is not None:
        events = table.column("forgetting")
        events = events[~np.isnan(events)]
        if len(events):
            never_learned = _share(np.isinf(events))
            learned = 1 - never_learned
            never_forgotten = _share(events == 0)
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
    """The scores that rows can be told apart by, in the table's order: a spread is none of its own.

    >>> score_names(ScoreTable({"el2n": [0.5], "el2n_spread": [0.1]}, protocols={"el2n_spread": {"spread_of": "el2n"}}))
    ['el2n']
    """
    return [name for name in table.directions if "spread_of" not in protocol_of(table, name)]


def by_default(table: ScoreTable, by: str | None = None) -> str:
    """The score to look at: ``by``, or EL2N, or the first one.

    Raises:
        ArgumentError: no such score, or no row has one.

    >>> by_default(ScoreTable({"loss": [0.5], "margin": [0.1]}))
    'loss'
    """
    names = score_names(table)
    if by is None:
        by = "el2n" if "el2n" in names else names[0]
    if by not in names:
        raise ArgumentError("by", f"must be a score of the table, one of {names}", by)
    if np.isnan(table.column(by)).all():
        raise ArgumentError("by", "must be a score that at least one row has", by)
    return by


def ranked(table: ScoreTable, name: str) -> npt.NDArray[np.int64]:
    """The places of the rows that have the score, hardest first; equal ones by row.

    >>> ranked(ScoreTable({"margin": [2.0, float("nan"), -1.0]}), "margin")
    array([2, 0])
    """
    score = table.column(name)
    order = np.argsort(score if table.directions[name] == "lower" else -score, kind="stable")  # NaN comes last
    return order[: len(score) - np.count_nonzero(np.isnan(score))]


def protocol_of(table: ScoreTable, name: str) -> dict[str, Any]:
    """How a score was measured; empty where the table does not say.

    >>> protocol_of(ScoreTable({"el2n": [0.5]}), "el2n")
    {}
    """
    protocol = table.protocols.get(name)
    return protocol if isinstance(protocol, dict) else {}


def distribution(table: ScoreTable, name: str, among: npt.NDArray[np.bool_] | None = None) -> Distribution:
    """How the score ``name`` is distributed over all rows, or ``among`` those of a (len(table),) mask.

    >>> table = ScoreTable({"el2n": [0.25, 0.5, 0.5, 1.0]})
    >>> found = distribution(table, "el2n")
    >>> found.mean, found.quantiles["p50"], sum(found.counts)
    (0.5625, 0.5, 4)
    """
    values = table.column(name) if among is None else table.column(name)[among]
    scored = values[~np.isnan(values)]
    finite = scored[np.isfinite(scored)]
    quantiles: dict[str, float] = {}
    if len(scored):  # not interpolated, which would make NaN between infinite values
        found = np.quantile(scored, [percent / 100 for percent in PERCENTILES], method="inverted_cdf")
        quantiles = {f"p{percent}": float(value) for percent, value in zip(PERCENTILES, found, strict=True)}
    edges = _edges(finite)
    return Distribution(
        name=name,
        harder=table.directions[name],
        scored=len(scored),
        unscored=len(values) - len(scored),
        infinite=len(scored) - len(finite),
        mean=float(finite.mean(dtype=np.float64)) if len(finite) else None,
        low=float(finite.min()) if len(finite) else None,
        high=float(finite.max()) if len(finite) else None,
        quantiles=quantiles,
        edges=tuple(edges.tolist()),
        counts=tuple(np.histogram(finite, edges)[0].tolist()) if len(finite) else (),
    )


def _edges(finite: _Array) -> npt.NDArray[np.float64]:
    """Of at most 64 bins; counts get bins of whole width around them."""
    if not len(finite):
        return np.empty(0)
    low, high = float(finite.min()), float(finite.max())
    if low.is_integer() and (finite == np.floor(finite)).all():
        width = (high - low) // _BINS + 1
        return low - 0.5 + width * np.arange((high - low) // width + 2)
    return np.linspace(low, high, (_BINS if high > low else 1) + 1)


def _share(mask: _Array) -> float:
    return float(mask.mean())
