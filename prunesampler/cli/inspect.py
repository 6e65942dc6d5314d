"""``prunesampler inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunesampler.cli.files import load_file
from prunesampler.cli.options import keep_option
from prunesampler.errors import ArgumentError, FileError

if TYPE_CHECKING:
    from prunesampler.analysis.judgement import Judgement
    from prunesampler.tables.score_table import Coreset, ScoreTable

__all__ = ["inspect"]


def inspect(
    file: Annotated[Path, typer.Argument(help="A file of scores, or a coreset's.", show_default=False)],
    keep: Annotated[
        str | None, typer.Option(help="Judge pruning to these fractions or numbers, or auto: 0.7,0.5,0.3.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="The score to select by. Default: el2n, or the first.")] = None,
    method: Annotated[str, typer.Option(help="stratified, top, bottom, window or random.")] = "stratified",
    epochs: Annotated[int | None, typer.Option(help="Length of the whole run, for what is saved.")] = None,
    epoch_seconds: Annotated[float | None, typer.Option(help="What an epoch over all rows takes.")] = None,
    score_epochs: Annotated[
        int | None, typer.Option(help="How long scoring took, where the file does not say.")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="The scores of a coreset. Default: scores.parquet beside it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Show what a file holds; with --keep, judge whether its scores speak for pruning."""
    from prunesampler.cli.formatting import write
    from prunesampler.cli.inspected import coreset_json, coreset_text, scores_json, scores_text
    from prunesampler.tables.score_table import ScoreTable

    found = load_file(file)
    judging: dict[str, Any] = {"keep": keep, "by": by, "epochs": epochs, "epoch_seconds": epoch_seconds}
    judging["score_epochs"] = score_epochs
    if isinstance(found, ScoreTable):
        _refuse({"scores": scores}, "belongs to a coreset, and this is a file of scores")
        judgement = _judged(found, file, method=method, **judging)
        shown = scores_json(found, file, judgement) if as_json else scores_text(found, file, judgement)
    else:
        _refuse(judging, "belongs to a file of scores, and this is a coreset")
        table, note = _scores_of(found, file, scores)
        shown = (coreset_json if as_json else coreset_text)(found, file, table, note)
    if isinstance(shown, str):
        typer.echo(shown)
    else:
        write(shown)


def _judged(table: ScoreTable, file: Path, keep: str | None, by: str | None, **options: Any) -> Judgement | None:
    from prunesampler.analysis.judgement import judge

    if keep is None:
        _refuse({**options, "by": by, "method": None}, "needs keep, what is to be judged")
        return None
    return judge(table, [keep_option(text.strip()) for text in keep.split(",")], by=by, path=str(file), **options)


def _refuse(options: dict[str, Any], rule: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise ArgumentError(name, rule, str(value))


def _scores_of(coreset: Coreset, file: Path, given: Path | None) -> tuple[ScoreTable | None, str]:
    """The scores that a coreset was selected from, and where they are, or why they are not at hand."""
    from prunesampler.analysis.classes import kept_in
    from prunesampler.tables.score_table import ScoreTable

    path = file.with_name("scores.parquet") if given is None else given
    try:
        table = ScoreTable.load(path)
        kept_in(coreset, table)
    except (FileError, OSError) as error:
        if given is not None:
            raise
        return None, f"not at hand ({error}); --scores FILE names them"
    return table, str(path)
