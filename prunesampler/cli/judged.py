"""What ``prunesampler inspect --keep`` prints."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from prunesampler.analysis.advice import LOST, NOISY
from prunesampler.analysis.cost import Cost
from prunesampler.analysis.format import number, percent, printable
from prunesampler.analysis.judgement import Judgement
from prunesampler.cli.formatting import plain_table

__all__ = ["judgement_text"]

_CLASSES = 3


def judgement_text(judgement: Judgement) -> Iterator[str | Text | Table]:
    """The figures first, the advice last."""
    yield f"judgement: {judgement.method} by {printable(judgement.by)}"
    yield _reliability(judgement)
    yield Text(_costs(judgement))
    yield ""
    yield _cases(judgement)
    yield ""
    if any(case.classes for case in judgement.cases):
        yield from _classes(judgement)
        yield ""
    yield "hardest rows"
    yield _hardest(judgement)
    for case in judgement.cases:
        yield ""
        yield Text(f"keep {case.keep}: {case.advice}")
        if case.gone:
            yield from case.control


def _reliability(judgement: Judgement) -> str:
    found = judgement.reliability
    if found is None:
        return "reliability: unknown, the score was measured once"
    measured = "odd and even scoring epochs of one run" if found.between == "halves" else "the runs, two by two,"
    noisy = " (noisy)" if found.reliability < NOISY else ""
    return f"reliability: {found.reliability:.2f}{noisy}; {measured} correlate by {found.correlation:.2f} (Spearman)"


def _cases(judgement: Judgement) -> Table:
    costs = [case.cost for case in judgement.cases if case.cost is not None]
    headings = ["keep", "rows that\nwould go", "learned\nfor good", "super-\nfluous"]
    headings += ["breaks even\nin epoch"] if costs else []
    headings += ["cost, full\nepochs"] if costs and costs[0].epochs is not None else []
    headings += ["hours\nsaved"] if costs and costs[0].hours_saved is not None else []
    rows = []
    for case in judgement.cases:
        row = [str(case.keep), f"{case.gone:,}", _share(case.learned_for_good), _share(case.superfluous)]
        if case.cost is not None:
            row += [_break_even(case.cost), *(f"{each or 0:.3g}" for each in (case.cost.total, case.cost.hours_saved))]
        rows.append(row[: len(headings)])
    whole = ["of all", "", _share(judgement.learned_for_good), _share(judgement.superfluous)]
    return plain_table(headings, [*rows, whole])


def _costs(judgement: Judgement) -> str:
    scoring, cost = judgement.scoring, judgement.cases[0].cost
    if scoring is None or cost is None:
        return "scoring: of unknown length; --score-epochs N gives it"
    parts = [f"{scoring.inside} epochs of the run, at no extra cost"] if scoring.inside else []
    parts += [f"{scoring.extra:.3g} full epochs beside it"] if scoring.extra else []
    if cost.epochs is None:
        after = "--epochs N and --epoch-seconds T tell what is saved"
    elif cost.hours_full is None:
        after = f"a run of {cost.epochs} epochs, whose hours --epoch-seconds T tells"
    else:
        after = f"a run of {cost.epochs} epochs, {cost.hours_full:.3g} hours; of what is saved, scoring is taken off"
    return f"scoring: {' and '.join(parts) or 'at no cost'}; {after}"


def _classes(judgement: Judgement) -> Iterator[str | Table]:
    rows = []
    for case in judgement.cases:
        for each in (case.classes or ())[:_CLASSES]:
            name = "none" if each.label is None else str(each.label)
            flag = "*" if each.ratio < LOST else ""
            counts = [f"{each.rows:,}", f"{each.kept:,}", percent(each.share)]
            rows.append([str(case.keep), name, *counts, f"{each.ratio:.2f}{flag}"])
    flagged = any(row[-1].endswith("*") for row in rows)
    yield "classes that lose most" + (" (* keeps less than half of the mean)" if flagged else "")
    yield plain_table(["keep", "class", "rows", "kept", "share", "of the mean"], rows)


def _hardest(judgement: Judgement) -> Table:
    rows = [
        [
            str(each.row),
            "–" if each.key is None else printable(each.key),
            "–" if each.label is None else str(each.label),
            number(each.score),
            number(each.forgetting),
        ]
        for each in judgement.hardest
    ]
    return plain_table(["row", "key", "label", judgement.by, "forgotten"], rows, left=(1,))


def _break_even(cost: Cost) -> str:
    never = cost.break_even is None or (cost.epochs is not None and cost.break_even > cost.epochs)
    return "never" if never else str(cost.break_even)


def _share(share: float | None) -> str:
    return "–" if share is None else percent(share)
