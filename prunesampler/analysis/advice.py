"""What to make of the evidence, in a verdict and in plain sentences; and the run that would settle it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Literal

from prunesampler.analysis.cost import Cost
from prunesampler.analysis.format import percent
from prunesampler.analysis.reliability import Reliability

__all__ = ["FEW", "LOST", "NOISY", "UNSETTLED", "Evidence", "Verdict", "advice", "control", "verdict"]

UNSETTLED = 0.2
"""Where more than this share of the rows that would go are not learned for good, pruning is likely to cost accuracy."""
FEW = 0.1
"""Where at most this share of them do not look superfluous, it is unlikely to."""
NOISY = 0.7
"""Scores of a lower reliability are called noisy (Nunnally, Psychometric Theory, second edition, 1978, page 245)."""
LOST = 0.5
"""A class whose kept share is below this much of the mean one is flagged."""

Verdict = Literal["nothing goes", "unlikely to cost", "may cost", "likely to cost", "unknown"]

_CLOSE = 0.01


@dataclass(frozen=True)
class Evidence:
    """Shares of rows, None where the table does not tell.

    Attributes:
        gone: share of all rows that would go.
        good, good_gone: share that is learned for good, of all rows and of those that would go.
        spare, spare_gone: share that is superfluous, of all rows and of those that would go.
    """

    gone: float
    good: float | None
    good_gone: float | None
    spare: float | None
    spare_gone: float | None


def verdict(evidence: Evidence) -> Verdict:
    """In a few words what pruning would do to accuracy, judged by the rows that would go.

    Rows that are merely learned for good never make it harmless: after a few epochs few rows have had the chance to
    be forgotten, and a network that has not nearly fitted the data still needs the easy ones.

    >>> verdict(Evidence(gone=0.5, good=0.08, good_gone=0.1, spare=0.02, spare_gone=0.03))
    'likely to cost'
    """
    if evidence.gone == 0:
        return "nothing goes"
    if evidence.good_gone is None:
        return "unknown"
    if 1 - evidence.good_gone > UNSETTLED:
        return "likely to cost"
    harmless = evidence.spare_gone is not None and 1 - evidence.spare_gone <= FEW
    return "unlikely to cost" if harmless else "may cost"


def advice(evidence: Evidence, reliability: Reliability | None, cost: Cost | None) -> str:
    """The verdict with its reason, and what to do; never a promise that pruning gains anything.

    >>> advice(Evidence(gone=0.5, good=0.08, good_gone=0.1, spare=0.0, spare_gone=0.0), None, None)[:86]
    'Only 8 % of the rows are learned for good, and 50 % would go: likely to cost accuracy.'
    """
    found = verdict(evidence)
    if found == "nothing goes":
        return "No row would go."
    sentences = [_reason(found, evidence)]
    if found != "unlikely to cost":
        sentences.append("Run the control below.")
        if evidence.spare is not None and evidence.spare >= 0.01:
            sentences.append(f'keep="auto" removes just the {percent(evidence.spare)} that look superfluous.')
    if reliability is not None and reliability.reliability < NOISY:
        sentences.append(
            f"The scores are noisy (reliability {reliability.reliability:.2f}): score more epochs, or merge runs."
        )
    shorter = "shorter on all the data"
    if cost is not None and cost.total is not None:
        shorter = f"on all the data for {cost.total:.3g} epochs"
    return " ".join([*sentences, f"At equal cost, training {shorter} is the arm to beat."])


def _reason(found: Verdict, evidence: Evidence) -> str:
    gone = percent(evidence.gone)
    if found == "unknown" or evidence.good is None or evidence.good_gone is None:
        return "Without forgetting events nothing tells how many rows are learned for good."
    if found == "likely to cost" and evidence.good < evidence.gone - _CLOSE:
        good = percent(evidence.good)
        return f"Only {good} of the rows are learned for good, and {gone} would go: likely to cost accuracy."
    if found == "likely to cost":
        unsettled = percent(1 - evidence.good_gone)
        return f"{unsettled} of the rows that would go are not learned for good: likely to cost accuracy."
    if evidence.spare is None or evidence.spare_gone is None:
        return (
            f"{percent(evidence.good_gone)} of the rows that would go are learned for good, but whether their scores "
            "are low and stable too takes EL2N of two epochs or more: may cost accuracy."
        )
    if found == "may cost":
        return (
            f"{percent(evidence.good_gone)} of the rows that would go are learned for good, but "
            f"{percent(evidence.spare_gone)} of them look superfluous (low and stable scores too): may cost accuracy."
        )
    return f"{percent(evidence.spare)} of the rows look superfluous, and {gone} would go: unlikely to cost accuracy."


def control(keep: float, scores: str, inside: int) -> tuple[str, str]:
    """The run to compare with: a random set of the same size, under the same plan.

    Args:
        keep: fraction or number.
        scores: path of the table.
        inside: scoring epochs of the pruned run; 0 where it is pruned from the start.

    Returns:
        A command that writes the random coreset, and the line of Python that trains on such a one.

    >>> for line in control(0.5, "runs/a/scores.parquet", inside=10): print(line)
    prunesampler select runs/a/scores.parquet -o random.parquet --keep 0.5 --method random --seed 0
    loader = ps.attach(loader, model, keep=0.5, score_epochs=10, method="random")
    """
    command = f"prunesampler select {shlex.quote(scores)} -o random.parquet --keep {keep} --method random --seed 0"
    options = f'keep={keep}, score_epochs={inside}, method="random"' if inside else 'coreset="random.parquet"'
    return command, f"loader = ps.attach(loader, model, {options})"
