"""``prunesampler inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prunesampler.cli.console import write
from prunesampler.cli.options import Features, Json, MethodOption, keeps_option, load_file
from prunesampler.errors import ArgumentError


def inspect(
    file: Annotated[Path, typer.Argument(help="A file of scores, or of a coreset.", show_default=False)],
    keep: Annotated[str | None, typer.Option(help="Judge pruning to these, such as 0.7,0.5,300,auto.")] = None,
    by: Annotated[str | None, typer.Option(help="The score to select by. Default: el2n, or the first.")] = None,
    method: MethodOption = "stratified",
    features: Features = None,
    epochs: Annotated[int | None, typer.Option(help="Length of the whole run, to tell what is saved.")] = None,
    epoch_seconds: Annotated[float | None, typer.Option(help="Seconds of an epoch over all rows.")] = None,
    score_epochs: Annotated[int | None, typer.Option(help="Scoring epochs, where the file does not say.")] = None,
    scores: Annotated[Path | None, typer.Option(help="Of a coreset. Default: scores.parquet beside it.")] = None,
    json: Json = False,
) -> None:
    """Show what a file of scores, or of a coreset, holds.

    With --keep, judge whether the scores speak for pruning.
    """
    from prunesampler.analysis.advice import judge
    from prunesampler.cli import inspect_text as text
    from prunesampler.tables.score_table import ScoreTable

    found = load_file(file)
    options: dict[str, Any] = {"by": by, "epochs": epochs, "epoch_seconds": epoch_seconds, "score_epochs": score_epochs}
    shown: Any
    if isinstance(found, ScoreTable):
        _refuse({"scores": scores}, "belongs to a coreset, and this is a file of scores")
        judgement = None
        if keep is None:
            _refuse(options, "needs keep, what is to be judged")
        else:
            judgement = judge(found, keeps_option(keep), method=method, features=features, path=str(file), **options)
        shown = (text.scores_json if json else text.scores_text)(found, file, judgement)
    else:
        _refuse({"keep": keep, **options}, "belongs to a file of scores, and this is a coreset")
        table, note = text.scores_of(found, file, scores)
        shown = (text.coreset_json if json else text.coreset_text)(found, file, table, note)
    if isinstance(shown, str):
        typer.echo(shown)
    else:
        write(shown)


def _refuse(options: dict[str, Any], rule: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise ArgumentError(name, rule, str(value))
