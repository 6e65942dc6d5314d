"""``prunesampler audit``: likely wrong labels, as lines, a page of images, or a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunesampler.cli.console import PlainTable, write, write_json
from prunesampler.cli.options import Force, Images, Json, Scores, check_output, image_source
from prunesampler.errors import ArgumentError

if TYPE_CHECKING:
    from prunesampler.analysis.audit import LabelIssues

_KINDS = (".html", ".csv", ".parquet")
_PAIRS = 10


def audit(
    scores: Scores,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file to write: .html, .csv or .parquet.")] = None,
    images: Images = None,
    by: Annotated[str | None, typer.Option(help="The score to rank by. Default: el2n, or the first.")] = None,
    method: Annotated[str, typer.Option(help="disagreement or mixture.")] = "disagreement",
    threshold: Annotated[float, typer.Option(help="Probability of being wrong from which a row is flagged.")] = 0.5,
    limit: Annotated[int, typer.Option(help="At most so many suspects on a page.")] = 500,
    force: Force = False,
    json: Json = False,
) -> None:
    """Find likely wrong labels.

    A page shows them as images, with buttons to decide on each; what it exports, prunesampler.relabel applies.
    """
    from prunesampler.analysis.audit import audit as find
    from prunesampler.tables.score_table import ScoreTable

    if out is not None:
        if out.suffix.lower() not in _KINDS:
            raise ArgumentError("out", f"must end in one of {', '.join(_KINDS)}", str(out))
        check_output(out, [scores], force)
    if images is not None and (out is None or out.suffix.lower() != ".html"):
        raise ArgumentError("images", "belongs to a page: give --out issues.html", str(images))
    if limit < 1:
        raise ArgumentError("limit", "must be an int >= 1", limit)
    issues = find(ScoreTable.load(scores), method=method, by=by, threshold=threshold)
    if out is not None:
        _write(issues, out, scores, images, limit)
    if json:
        write_json(_figures(issues) | {"out": None if out is None else str(out)})
        return
    write(_lines(issues, scores, out))


def _write(issues: LabelIssues, out: Path, scores: Path, images: Path | None, limit: int) -> None:
    if out.suffix.lower() != ".html":
        issues.save(out)
        return
    from prunesampler.analysis.images import load_pictures
    from prunesampler.analysis.report.issues import issues_page
    from prunesampler.tables.atomic import atomic_write

    pictures = (
        None if images is None else load_pictures(image_source(images), issues.table, issues.rows[:limit].tolist())
    )
    with atomic_write(out) as file:
        file.write(issues_page(issues, name=str(scores), pictures=pictures, limit=limit).encode())


def _figures(issues: LabelIssues) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "noise_rate": asdict(issues.noise_rate),
        "flagged": len(issues),
        "rows": len(issues.table),
        "method": issues.method,
        "by": issues.by,
        "threshold": issues.threshold,
        "notes": list(issues.notes),
        "classes": [asdict(each) for each in issues.per_class],
        "confusions": [asdict(each) for each in issues.confusions],
    }


def _lines(issues: LabelIssues, scores: Path, out: Path | None) -> Iterator[Any]:
    from prunesampler._format import counted, percent, printable

    def name(label: int) -> str:
        return "?" if label < 0 else printable(issues.names.get(label, label))

    yield printable(f"{scores}: about {issues.noise_rate} of {counted(len(issues.table), 'label')} wrong")
    yield f"{len(issues):,} flagged, from a probability of {issues.threshold:g} on, by {printable(issues.by)}"
    yield from issues.notes
    if len(issues):
        yield ""
        pairs = [[name(each.label), name(each.suggested_label), f"{each.flagged:,}"] for each in issues.confusions]
        rest = len(pairs) - _PAIRS
        yield PlainTable(["given", "suggested", "flagged"], pairs[:_PAIRS], left=(0, 1))
        if rest > 0:
            yield f"and {counted(rest, 'other pair')}"
        yield ""
        worst = sorted(issues.per_class, key=lambda each: -each.rate)[:_PAIRS]
        cells = [[name(each.label), f"{each.rows:,}", f"{each.flagged:,}", percent(each.rate)] for each in worst]
        yield PlainTable(["class", "rows", "flagged", "wrong, about"], cells)
    if out is not None:
        yield f"written to {printable(out)}"
    elif len(issues):
        yield ""
        yield printable(f"to look at them: prunesampler audit {scores} --images FOLDER -o issues.html")
