"""How far a score can be trusted to rank the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prunesampler.analysis.statistics import protocol_of
from prunesampler.tables.score_table import ScoreTable

__all__ = ["Reliability", "reliability_of", "spearman_brown"]


@dataclass(frozen=True)
class Reliability:
    """How well two measurements of one score agree, and so how well their mean would agree with another such mean.

    Attributes:
        between: ``"halves"``, the odd and the even scoring epochs of one run, whose weights have much in common, so
            that another run agrees less; or ``"runs"``, the tables that were merged.
        correlation: Spearman's, between two of them.
        reliability: of the mean, see :func:`spearman_brown`.
    """

    between: Literal["halves", "runs"]
    correlation: float
    reliability: float


def reliability_of(table: ScoreTable, name: str) -> Reliability | None:
    """What the table says of its score ``name``; None where it was measured once.

    >>> table = ScoreTable({"el2n": [0.5, 1.0]}, protocols={"el2n": {"epochs": 4, "split_half": 0.5}})
    >>> reliability_of(table, "el2n")
    Reliability(between='halves', correlation=0.5, reliability=0.6666666666666666)
    """
    protocol, merged = protocol_of(table, name), table.provenance.get("merged_from")
    if isinstance(merged, list) and isinstance(found := protocol.get("between_runs"), float):
        return Reliability("runs", found, spearman_brown(found, len(merged)))
    if isinstance(found := protocol.get("split_half"), float):
        return Reliability("halves", found, spearman_brown(found, 2))
    return None


def spearman_brown(correlation: float, count: int) -> float:
    """The reliability of a mean of ``count`` measurements that correlate by r: n·r / (1 + (n − 1)·r).

    For two this is 2r / (1 + r) (Spearman 1910 and Brown 1910, British Journal of Psychology 3). 0 where r is not
    positive.

    >>> spearman_brown(0.5, 3), spearman_brown(-0.2, 2)
    (0.75, 0.0)
    """
    return count * correlation / (1 + (count - 1) * correlation) if correlation > 0 else 0.0
