"""What ``prunesampler inspect`` prints: what a file holds, and whether its scores speak for pruning."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.text import Text

from prunesampler._format import counted, number, percent, printable
from prunesampler.analysis.advice import LOST, NOISY, Judgement, hardest_cells
from prunesampler.analysis.audit import noticed
from prunesampler.analysis.format import as_json, histogram
from prunesampler.analysis.statistics import (
    PERCENTILES,
    ClassScores,
    Distribution,
    Figures,
    Survival,
    distribution,
    figures,
    kept_in,
    protocol_of,
    score_names,
    survival,
)
from prunesampler.cli.console import PlainTable
from prunesampler.errors import FileError
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.dataset_names import named_classes
from prunesampler.tables.score_table import ScoreTable

_C = TypeVar("_C")
_Parts = Iterator[str | Text | PlainTable]
_ALL_CLASSES = 12  # up to so many are all shown, else the first and last few
_EXTREMES = 5
_LOSING = 3
_SURVIVAL = ("rows", "kept", "share", "of the mean")


def scores_of(coreset: Coreset, file: Path, given: Path | None) -> tuple[ScoreTable | None, str]:
    """The scores that a coreset was selected from, and their path, or why they are not available."""
    path = file.with_name("scores.parquet") if given is None else given
    try:
        table = ScoreTable.load(path)
        kept_in(coreset, table)
    except (FileError, OSError) as error:
        if given is not None:
            raise
        return None, f"not available ({error}); give their file as --scores"
    return table, str(path)


def scores_text(table: ScoreTable, file: Path, judgement: Judgement | None) -> _Parts:
    """Lines and tables."""
    found = figures(table)
    named = sum(each.label is not None for each in found.classes or ())
    classes = f", {counted(named, 'class', 'classes')}" if named else ""
    yield f"{file}: scores of {found.rows:,} of {counted(found.num_rows, 'row')}{classes}"
    yield from _presented(found)
    yield ""
    if wrong := noticed(table, str(file)):
        yield Text(wrong[0])
        yield printable(wrong[1])
        yield ""
    yield _quantiles([(each.name, each) for each in found.scores])
    yield ""
    for each in found.scores:
        infinite = f"; {each.infinite:,} never learned (∞)" if each.infinite else ""
        yield f"{printable(each.name)}: {_protocol(protocol_of(table, each.name))}, {each.harder} is harder{infinite}"
        yield from histogram(each.counts, number(each.low), number(each.high))
        yield ""
    if found.classes is not None:
        yield from _class_scores(found.classes, found.scores, named_classes(table))
        yield ""
    yield from _provenance({"fingerprint": table.fingerprint, "digest": table.digest, **table.provenance})
    if judgement is not None:
        yield ""
        yield from judgement_text(judgement, named_classes(table))


def coreset_text(coreset: Coreset, file: Path, table: ScoreTable | None, note: str) -> _Parts:
    """``note`` says where the scores are, or why they are not available."""
    yield f"{file}: a coreset of {len(coreset):,} of {counted(coreset.num_rows, 'row')} ({percent(coreset.keep)})"
    if coreset.weights is not None:
        low, mean, high = coreset.weights.min(), coreset.weights.mean(dtype=float), coreset.weights.max()
        yield f"weights: {number(float(low))} to {number(float(high))}, mean {number(float(mean))}"
    yield f"scores: {note}"
    if table is not None:
        kept = kept_in(coreset, table)
        parts = [
            (f"{name}, {what}", distribution(table, name, among))
            for name in score_names(table)
            for what, among in (("kept", kept), ("gone", ~kept))
        ]
        yield ""
        yield _quantiles(parts)
        if table.labels is not None:
            yield ""
            classes, names = survival(table.labels, kept), named_classes(table)
            shown, title = _extremes(classes, lambda each: each.share, "kept share, lowest first")
            yield title
            yield PlainTable(["class", *_SURVIVAL], [_survivors(each, names) for each in shown], left=())
    yield ""
    whole = {"fingerprint": coreset.fingerprint, "digest": coreset.digest, "scores digest": coreset.scores_digest}
    yield from _provenance({**whole, "selection": coreset.selection})


def scores_json(table: ScoreTable, file: Path, judgement: Judgement | None) -> str:
    """The same figures, of all classes."""
    said = {"protocols": table.protocols, "provenance": table.provenance, "figures": dataclasses.asdict(figures(table))}
    judged = None if judgement is None else dataclasses.asdict(judgement)
    return _json("scores", table, file, **said, judgement=judged)


def coreset_json(coreset: Coreset, file: Path, table: ScoreTable | None, note: str) -> str:
    """The same figures, of all classes."""
    found: dict[str, Any] = {"kept": len(coreset), "num_rows": coreset.num_rows, "scores": note, "classes": None}
    if table is not None:
        kept = kept_in(coreset, table)
        if table.labels is not None:
            found["classes"] = [dataclasses.asdict(each) for each in survival(table.labels, kept)]
        for name, among in (("distributions_kept", kept), ("distributions_gone", ~kept)):
            found[name] = [dataclasses.asdict(distribution(table, score, among)) for score in score_names(table)]
    said = {"scores_digest": coreset.scores_digest, "selection": coreset.selection}
    return _json("coreset", coreset, file, **said, figures=found)


def _json(kind: str, found: ScoreTable | Coreset, file: Path, **more: Any) -> str:
    whole = {"file": str(file), "kind": kind, "fingerprint": found.fingerprint, "digest": found.digest}
    return as_json({**whole, **more})


def _presented(found: Figures) -> Iterator[str]:
    if found.presentations is not None and found.seen is not None:
        mean = found.presentations / found.rows
        yield f"{found.seen:,} of {counted(found.rows, 'row')} were presented, {mean:.3g} times on average"
    if found.learned is not None:
        known = f"learned {percent(found.learned)}, never forgotten {percent(found.never_forgotten)}"
        yield f"{known}, never learned {percent(found.never_learned)}"


def _quantiles(parts: Sequence[tuple[str, Distribution]]) -> PlainTable:
    rows = []
    for name, each in parts:
        quantiles = [number(each.quantiles.get(f"p{percentile}")) for percentile in PERCENTILES]
        rows.append([printable(name), f"{each.unscored:,}", *quantiles, number(each.mean)])
    return PlainTable(["score", "none", *(f"p{percentile}" for percentile in PERCENTILES), "mean"], rows)


def _protocol(protocol: Mapping[str, Any]) -> str:
    if not protocol:
        return "protocol unknown"
    words = [str(protocol[name]) for name in ("kind", "reduction") if name in protocol]
    counts = {noun: protocol.get(f"{noun}s") for noun in ("epoch", "run")}
    words += [counted(count, noun) for noun, count in counts.items() if isinstance(count, int)]
    return printable(", ".join(words))


def _class_scores(classes: Sequence[ClassScores], scores: Sequence[Distribution], called: Mapping[int, str]) -> _Parts:
    names, harder = [each.name for each in scores], scores[0].harder
    order = f"mean {printable(names[0])}, hardest first"
    shown, title = _extremes(classes, lambda each: each.easiness(names[0], harder), order)
    yield title
    rows = [
        [
            _label(each.label, called),
            f"{each.rows:,}",
            percent(each.share),
            *(number(each.means[name]) for name in names),
        ]
        for each in shown
    ]
    yield PlainTable(["class", "rows", "share", *map(printable, names)], rows, left=())


def _survivors(each: Survival, names: Mapping[int, str]) -> list[str]:
    return [_label(each.label, names), f"{each.rows:,}", f"{each.kept:,}", percent(each.share), f"{each.ratio:.2f}"]


def _extremes(classes: Sequence[_C], key: Callable[[_C], float], order: str) -> tuple[Sequence[_C], str]:
    """All classes by label where they are few, else the first and the last few by ``key``."""
    if len(classes) <= _ALL_CLASSES:
        return classes, "classes"
    ordered = sorted(classes, key=key)
    shown = [*ordered[:_EXTREMES], *ordered[-_EXTREMES:]]
    return shown, f"{len(shown)} of {len(classes):,} classes, the extremes by {order}"


def _label(label: int | None, names: Mapping[int, str]) -> str:
    return "none" if label is None else printable(names.get(label, label))


def _provenance(entries: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    if not indent:
        yield "provenance"
    for name, value in entries.items():
        start = f"{indent}  {printable(name)}:"
        if isinstance(value, dict) and value:
            yield start
            yield from _provenance(value, indent + "  ")
        else:
            shown = printable("none" if value is None else value if isinstance(value, str) else as_json(value))
            yield f"{start} {shown if len(shown) <= 100 else shown[:100] + '…'}"


def judgement_text(judgement: Judgement, names: Mapping[int, str] | None = None) -> _Parts:
    """The figures first, the advice last."""
    yield f"judgement: {judgement.method} by {printable(judgement.by)}"
    yield _reliability(judgement)
    yield Text(_costs(judgement))
    yield ""
    yield _cases(judgement)
    yield ""
    if any(case.classes for case in judgement.cases):
        yield from _losing_classes(judgement, names or {})
        yield ""
    yield "hardest rows"
    headings = ["row", "key", "label", judgement.by, "forgotten"]
    yield PlainTable(headings, hardest_cells(judgement, printable, lambda label: _label(label, names or {})), left=(1,))
    for case in judgement.cases:
        yield ""
        yield Text(f"keep {case.keep}: {case.advice}")
        if case.gone:
            yield from case.control


def _reliability(judgement: Judgement) -> str:
    found = judgement.reliability
    if found is None:
        return "reliability: unknown, the score was measured once"
    measured = "odd and even scoring epochs of one run" if found.between == "halves" else "pairs of runs"
    noisy = " (noisy)" if found.reliability < NOISY else ""
    return f"reliability: {found.reliability:.2f}{noisy}; {measured} correlate by {found.correlation:.2f} (Spearman)"


def _cases(judgement: Judgement) -> PlainTable:
    costs = [case.cost for case in judgement.cases if case.cost is not None]
    headings = ["keep", "rows\nremoved", "learned\nfor good", "super-\nfluous"]
    headings += ["breaks even\nin epoch"] if costs else []
    headings += ["cost, full\nepochs"] if costs and costs[0].epochs is not None else []
    headings += ["hours\nsaved"] if costs and costs[0].hours_saved is not None else []
    rows = []
    for case in judgement.cases:
        row = [str(case.keep), f"{case.gone:,}", percent(case.learned_for_good), percent(case.superfluous)]
        if case.cost is not None:
            first, whole = case.cost.break_even, case.cost.epochs
            never = first is None or (whole is not None and first > whole)
            row += ["never" if never else str(first)]
            row += [f"{each or 0:.3g}" for each in (case.cost.total, case.cost.hours_saved)]
        rows.append(row[: len(headings)])
    rows.append(["of all", "", percent(judgement.learned_for_good), percent(judgement.superfluous)])
    return PlainTable(headings, rows)


def _costs(judgement: Judgement) -> str:
    scoring, cost = judgement.scoring, judgement.cases[0].cost
    if scoring is None or cost is None:
        return "scoring: cost unknown; give the number of scoring epochs as --score-epochs"
    parts = [f"{scoring.inside} epochs of the run, at no extra cost"] if scoring.inside else []
    parts += [f"{scoring.extra:.3g} full epochs beside it"] if scoring.extra else []
    if cost.epochs is None:
        after = "--epochs N and --epoch-seconds T tell what is saved"
    elif cost.hours_full is None:
        after = f"a run of {cost.epochs} epochs; --epoch-seconds T tells its hours"
    else:
        after = f"a run of {cost.epochs} epochs, {cost.hours_full:.3g} hours; hours saved are net of scoring"
    return f"scoring: {' and '.join(parts) or 'at no cost'}; {after}"


def _losing_classes(judgement: Judgement, names: Mapping[int, str]) -> _Parts:
    rows = []
    for case in judgement.cases:
        for each in (case.classes or ())[:_LOSING]:
            *cells, ratio = _survivors(each, names)
            rows.append([str(case.keep), *cells, ratio + ("*" if each.ratio < LOST else "")])
    flagged = any(row[-1].endswith("*") for row in rows)
    yield "classes that lose most" + (" (* keeps less than half of the mean)" if flagged else "")
    yield PlainTable(["keep", "class", *_SURVIVAL], rows)
