"""What ``prunesampler inspect`` prints."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Table
from rich.text import Text

from prunesampler.analysis.classes import ClassScores, Survival, kept_in, survival_of
from prunesampler.analysis.format import counted, number, percent, printable
from prunesampler.analysis.judgement import Judgement
from prunesampler.analysis.statistics import (
    PERCENTILES,
    Distribution,
    Figures,
    distribution,
    figures,
    protocol_of,
    score_names,
)
from prunesampler.cli.formatting import as_json, plain_table
from prunesampler.cli.histogram import histogram
from prunesampler.cli.judged import judgement_text
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.score_table import ScoreTable

__all__ = ["coreset_json", "coreset_text", "scores_json", "scores_text"]

_C = TypeVar("_C")
_ALL_CLASSES = 12
_EXTREMES = 5


def scores_text(table: ScoreTable, file: Path, judgement: Judgement | None) -> Iterator[str | Text | Table]:
    """Tables and lines."""
    found = figures(table)
    named = sum(each.label is not None for each in found.classes or ())
    classes = f", {counted(named, 'class', 'classes')}" if named else ""
    yield f"{file}: scores of {found.rows:,} of {counted(found.num_rows, 'row')}{classes}"
    yield from _presented(found)
    yield ""
    yield _quantiles([(each.name, each) for each in found.scores])
    yield ""
    for each in found.scores:
        infinite = f"; {each.infinite:,} never learned (∞)" if each.infinite else ""
        yield f"{printable(each.name)}: {_protocol(protocol_of(table, each.name))}, {each.harder} is harder{infinite}"
        yield from histogram(each.counts, number(each.low), number(each.high))
        yield ""
    if found.classes is not None:
        yield from _class_scores(found.classes, found.scores)
        yield ""
    yield from _provenance({"fingerprint": table.fingerprint, "digest": table.digest, **table.provenance})
    if judgement is not None:
        yield ""
        yield from judgement_text(judgement)


def coreset_text(coreset: Coreset, file: Path, table: ScoreTable | None, note: str) -> Iterator[str | Text | Table]:
    """Tables and lines; ``note`` says where the scores are, or why they are not at hand."""
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
        classes = survival_of(coreset, table)
        if classes is not None:
            yield ""
            yield from _survival(classes)
    yield ""
    whole = {"fingerprint": coreset.fingerprint, "digest": coreset.digest, "scores digest": coreset.scores_digest}
    yield from _provenance({**whole, "selection": coreset.selection})


def scores_json(table: ScoreTable, file: Path, judgement: Judgement | None) -> str:
    """The same figures, all classes among them."""
    said = {"protocols": table.protocols, "provenance": table.provenance}
    whole = {"file": str(file), "kind": "scores", "fingerprint": table.fingerprint, "digest": table.digest, **said}
    judged = None if judgement is None else dataclasses.asdict(judgement)
    return as_json({**whole, "figures": dataclasses.asdict(figures(table)), "judgement": judged})


def coreset_json(coreset: Coreset, file: Path, table: ScoreTable | None, note: str) -> str:
    """The same figures, all classes among them."""
    whole = {"file": str(file), "kind": "coreset", "fingerprint": coreset.fingerprint, "digest": coreset.digest}
    found: dict[str, Any] = {"kept": len(coreset), "num_rows": coreset.num_rows, "scores": note, "classes": None}
    if table is not None:
        kept, classes = kept_in(coreset, table), survival_of(coreset, table)
        found["classes"] = None if classes is None else [dataclasses.asdict(each) for each in classes]
        for name, among in (("distributions_kept", kept), ("distributions_gone", ~kept)):
            found[name] = [dataclasses.asdict(distribution(table, score, among)) for score in score_names(table)]
    said = {"scores_digest": coreset.scores_digest, "selection": coreset.selection}
    return as_json({**whole, **said, "figures": found})


def _presented(found: Figures) -> Iterator[str]:
    if found.presentations is not None and found.seen is not None:
        mean = found.presentations / found.rows
        yield f"{found.seen:,} of {counted(found.rows, 'row')} were presented, {mean:.3g} times on average"
    if found.learned is not None and found.never_forgotten is not None and found.never_learned is not None:
        yield (
            f"learned {percent(found.learned)}, never forgotten {percent(found.never_forgotten)}, "
            f"never learned {percent(found.never_learned)}"
        )


def _quantiles(parts: Sequence[tuple[str, Distribution]]) -> Table:
    rows = []
    for name, each in parts:
        quantiles = [number(each.quantiles.get(f"p{percentile}")) for percentile in PERCENTILES]
        rows.append([printable(name), f"{each.unscored:,}", *quantiles, number(each.mean)])
    return plain_table(["score", "none", *(f"p{percentile}" for percentile in PERCENTILES), "mean"], rows)


def _protocol(protocol: Mapping[str, Any]) -> str:
    if not protocol:
        return "protocol unknown"
    words = [str(protocol[name]) for name in ("kind", "reduction") if name in protocol]
    counts = {noun: protocol.get(f"{noun}s") for noun in ("epoch", "run")}
    words += [counted(count, noun) for noun, count in counts.items() if isinstance(count, int)]
    return printable(", ".join(words))


def _class_scores(classes: Sequence[ClassScores], scores: Sequence[Distribution]) -> Iterator[str | Table]:
    first = scores[0]
    sign = 1 if first.harder == "lower" else -1

    def hardness(each: ClassScores) -> float:
        mean = each.means[first.name]
        return math.inf if mean is None else sign * mean

    shown, title = _extremes(classes, hardness, f"mean {printable(first.name)}, hardest first")
    rows = []
    for each in shown:
        means = [number(each.means[score.name]) for score in scores]
        rows.append([_label(each.label), f"{each.rows:,}", percent(each.share), *means])
    yield title
    yield plain_table(["class", "rows", "share", *(printable(score.name) for score in scores)], rows, left=())


def _survival(classes: Sequence[Survival]) -> Iterator[str | Table]:
    shown, title = _extremes(classes, lambda each: each.share, "kept share, lowest first")
    rows = []
    for each in shown:
        counts = [f"{each.rows:,}", f"{each.kept:,}", percent(each.share)]
        rows.append([_label(each.label), *counts, f"{each.ratio:.2f}"])
    yield title
    yield plain_table(["class", "rows", "kept", "share", "of the mean"], rows, left=())


def _extremes(classes: Sequence[_C], key: Callable[[_C], float], order: str) -> tuple[Sequence[_C], str]:
    """All classes by label where they are few, else the first and the last few by ``key``."""
    if len(classes) <= _ALL_CLASSES:
        return classes, "classes"
    ordered = sorted(classes, key=key)
    shown = [*ordered[:_EXTREMES], *ordered[-_EXTREMES:]]
    return shown, f"{len(shown)} of {len(classes):,} classes, the extremes by {order}"


def _label(label: int | None) -> str:
    return "none" if label is None else str(label)


def _provenance(entries: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    if not indent:
        yield "provenance"
    for name, value in entries.items():
        start = f"{indent}  {printable(name)}:"
        if isinstance(value, dict) and value:
            yield start
            yield from _provenance(value, indent + "  ")
        else:
            shown = "none" if value is None else value if isinstance(value, str) else as_json(value)
            yield f"{start} {_short(printable(shown))}"


def _short(text: str, length: int = 100) -> str:
    return text if len(text) <= length else text[:length] + "…"
