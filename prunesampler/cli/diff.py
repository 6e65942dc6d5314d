"""``prunesampler diff``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from prunesampler._format import counted, number, percent, printable
from prunesampler.cli.console import PlainTable, write, write_json
from prunesampler.cli.options import Json, load_file
from prunesampler.errors import ArgumentError

_FIRST_ROWS = 10
_HEADINGS = ("score", "Spearman", "overlap,\nharder half", "mean\n|A − B|", "scored\nin both")


def diff(
    a: Annotated[Path, typer.Argument(help="A file of scores, or a coreset's.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="Another of the same kind.", show_default=False)],
    json: Json = False,
) -> None:
    """Show how far two files of scores, or two coresets, agree.

    Rows that were never learned are the hardest by forgetting, and are left out of its mean difference. Tied rows,
    of which forgetting has many, are ordered at random, which lowers the overlap of the harder halves.
    """
    from prunesampler.analysis.differences import coreset_differences, table_differences
    from prunesampler.tables.score_table import Coreset, ScoreTable

    first, second = load_file(a), load_file(b)
    if isinstance(first, ScoreTable) and isinstance(second, ScoreTable):
        found, lines = table_differences(first, second), _tables
    elif isinstance(first, Coreset) and isinstance(second, Coreset):
        found, lines = coreset_differences(first, second), _coresets
    else:
        raise ArgumentError("files", "must both hold scores, or both a coreset", f"{a} and {b}")
    if json:
        write_json({"a": str(a), "b": str(b), **found})
    else:
        write(lines(found))


def _tables(found: Mapping[str, Any]) -> Iterator[str | PlainTable]:
    yield printable(found["dataset"])
    for whose in "AB":
        if alone := found[f"only_in_{whose.lower()}"]:
            yield printable(f"only in {whose}: {', '.join(alone)}")
    rows = []
    for name, each in found["scores"].items():
        yield printable(f"{name}: {_difference('protocol', each['protocol'])}")
        overlap = "–" if each["overlap"] != each["overlap"] else percent(each["overlap"])
        figures = [number(each["spearman"]), overlap, number(each["mean_difference"]), f"{each['rows']:,}"]
        rows.append([printable(name), *figures])
    yield ""
    yield PlainTable(_HEADINGS, rows)


def _coresets(found: Mapping[str, Any]) -> Iterator[str]:
    yield printable(found["dataset"])
    yield printable(_difference("selection options", found["options"]))
    if found["same_scores"] is not None:
        yield f"selected from {'the same' if found['same_scores'] else 'different'} scores"
    (a, b), both = found["kept"], found["both"]
    yield f"kept: {counted(a, 'row')} in A, {b:,} in B, {both:,} in both (by chance {found['chance']:,.0f})"
    yield f"overlap: B keeps {percent(both / a)} of A's rows, A keeps {percent(both / b)} of B's"
    yield f"Jaccard: {found['jaccard']:.3f}"
    for whose in "AB":
        alone = found[f"only_in_{whose.lower()}"]
        shown = ", ".join(map(str, alone[:_FIRST_ROWS])) + (", …" if len(alone) > _FIRST_ROWS else "")
        yield f"only in {whose}: {counted(len(alone), 'row')}" + (f" ({shown})" if shown else "")


def _difference(what: str, differing: Mapping[str, Any]) -> str:
    told = "; ".join(f"{name} {a} in A, {b} in B" for name, (a, b) in differing.items())
    return f"different {what}: {told}" if told else f"same {what}"
