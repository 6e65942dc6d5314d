"""``prunesampler report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunesampler.cli.options import Force, Out, Scores, check_output, keeps_option

__all__ = ["report"]


def report(
    scores: Scores,
    out: Out,
    coreset: Annotated[Path | None, typer.Option(help="A coreset selected from them, to show what it keeps.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of CIFAR-10, or of one folder of images for each class.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="The score to rank by. Default: el2n, or the first.")] = None,
    keep: Annotated[str, typer.Option(help="What to judge: fractions, numbers or auto.")] = "0.7,0.5,0.3",
    force: Force = False,
) -> None:
    """Write one HTML page about scores: distributions, whether they speak for pruning, the hardest and easiest rows."""
    from prunesampler.analysis.advice import judge
    from prunesampler.analysis.report.page import page, pictured
    from prunesampler.analysis.report.pictures import load_pictures
    from prunesampler.tables.atomic import atomic_write
    from prunesampler.tables.coreset import Coreset
    from prunesampler.tables.score_table import ScoreTable

    check_output(out, [path for path in (scores, coreset) if path is not None], force)
    table = ScoreTable.load(scores)
    selected = None if coreset is None else Coreset.load(coreset)
    judgement = judge(table, keeps_option(keep), by=by, path=str(scores))
    pictures = None
    if images is not None:
        rows = sorted({row for rows in pictured(table, judgement.by).values() for row in rows})
        pictures = load_pictures(images, table, rows)
    text = page(table, judgement, name=str(scores), coreset=selected, pictures=pictures)
    with atomic_write(out) as file:
        file.write(text.encode())
    typer.echo(f"written to {out}")
