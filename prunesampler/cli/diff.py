"""``prunesampler diff``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from prunesampler.analysis.format import number, printable
from prunesampler.analysis.statistics import protocol_of, score_names
from prunesampler.cli.console import plain_table, write
from prunesampler.cli.options import load_file
from prunesampler.errors import ArgumentError, MismatchError
from prunesampler.tables.agreement import overlap, spearman
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.merge import common_dataset
from prunesampler.tables.score_table import ScoreTable

_FIRST_ROWS = 10
_HEADINGS = ("score", "Spearman", "overlap, harder half", "mean |A − B|", "scored in both")
_KINDS = ("kind", "reduction", "epochs", "runs")


def diff(
    a: Annotated[Path, typer.Argument(help="A file of scores, or a coreset's.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="Another of the same kind.", show_default=False)],
) -> None:
    """Show how far two files of scores, or two coresets, agree.

    Rows that were never learned are the hardest by forgetting, and are left out of its mean difference. Tied rows,
    of which forgetting has many, are ordered at random, which lowers the overlap of the harder halves.
    """
    first, second = load_file(a), load_file(b)
    if isinstance(first, ScoreTable) and isinstance(second, ScoreTable):
        lines = [*_protocols(first, second), ""]
        tables = [plain_table(_HEADINGS, _scores(first, second))]
    elif isinstance(first, Coreset) and isinstance(second, Coreset):
        lines = [*_selections(first, second), *_rows(first, second)]
        tables = []
    else:
        raise ArgumentError("files", "must both hold scores, or both a coreset", f"{a} and {b}")
    write(map(printable, [_datasets(first, second), *lines]))
    write(tables)


def _datasets(first: ScoreTable | Coreset, second: ScoreTable | Coreset) -> str:
    try:
        common_dataset([first, second])
    except MismatchError as error:
        return f"{error}; rows are compared by number, and may not be the same samples"
    if first.fingerprint and second.fingerprint:
        return f"same dataset: {first.num_rows:,} rows, equal fingerprints"
    return f"perhaps the same dataset: {first.num_rows:,} rows in both, but not both files have a fingerprint"


def _protocols(first: ScoreTable, second: ScoreTable) -> Iterator[str]:
    names = score_names(first), score_names(second)
    for whose, mine, others in (("A", *names), ("B", *names[::-1])):
        if alone := [name for name in mine if name not in others]:
            yield f"only in {whose}: {', '.join(alone)}"
    for name in _shared(first, second):
        how = [
            {kind: protocol_of(table, name).get(kind) for kind in _KINDS} | {"harder": table.directions[name]}
            for table in (first, second)
        ]
        yield f"{name}: {_difference('protocol', *how)}"


def _selections(first: Coreset, second: Coreset) -> Iterator[str]:
    options = [coreset.options for coreset in (first, second)]
    yield _difference("selection options", *options)
    if first.scores_digest and second.scores_digest:
        yield f"selected from {'the same' if first.scores_digest == second.scores_digest else 'different'} scores"


def _difference(what: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    differing = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    told = "; ".join(f"{name} {first.get(name)} in A, {second.get(name)} in B" for name in differing)
    return f"different {what}: {told}" if told else f"same {what}"


def _rows(first: Coreset, second: Coreset) -> Iterator[str]:
    both = len(np.intersect1d(first.rows, second.rows, assume_unique=True))
    chance = len(first) * len(second) / max(first.num_rows, second.num_rows)
    yield f"kept: {len(first):,} rows in A, {len(second):,} in B, {both:,} in both (by chance {chance:,.0f})"
    yield f"overlap: B keeps {both / len(first):.1%} of A's rows, A keeps {both / len(second):.1%} of B's"
    yield f"Jaccard: {both / (len(first) + len(second) - both):.3f}"
    for whose, mine, other in (("A", first, second), ("B", second, first)):
        alone = np.setdiff1d(mine.rows, other.rows, assume_unique=True)
        shown = ", ".join(map(str, alone[:_FIRST_ROWS].tolist())) + (", …" if len(alone) > _FIRST_ROWS else "")
        yield f"only in {whose}: {len(alone):,} rows" + (f" ({shown})" if shown else "")


def _shared(first: ScoreTable, second: ScoreTable) -> list[str]:
    return [name for name in score_names(first) if name in score_names(second)]


def _scores(first: ScoreTable, second: ScoreTable) -> list[list[str]]:
    places = np.intersect1d(first.rows, second.rows, assume_unique=True, return_indices=True)[1:]
    lines = []
    for name in _shared(first, second):
        a, b = (table.column(name)[place] for table, place in zip((first, second), places, strict=True))
        hard_a, hard_b = (-x if t.directions[name] == "lower" else x for t, x in ((first, a), (second, b)))
        finite = np.isfinite(a) & np.isfinite(b)
        apart = np.abs(a[finite].astype(np.float64) - b[finite])
        same = overlap(hard_a, hard_b)
        figures = [number(spearman(hard_a, hard_b)), "–" if math.isnan(same) else f"{same:.1%}"]
        figures += [number(float(apart.mean()) if len(apart) else None)]
        lines.append([printable(name), *figures, f"{np.count_nonzero(~np.isnan(a) & ~np.isnan(b)):,}"])
    return lines
