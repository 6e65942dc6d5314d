"""``prunesampler sweep``: where the window of a score starts, by the user's own training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prunesampler._format import printable
from prunesampler.cli.compare import Train, load_function
from prunesampler.cli.console import PlainTable, warnings_as_lines, write, write_json
from prunesampler.cli.options import Json, Scores, keep_option, number_option


def sweep(
    scores: Scores,
    train: Train,
    keep: Annotated[str, typer.Option(help="Fraction in (0, 1), or number, of the rows to keep.")] = "0.5",
    by: Annotated[str, typer.Option(help="The score.")] = "el2n",
    method: Annotated[str, typer.Option(help="window or stratified.")] = "window",
    offsets: Annotated[
        str, typer.Option(help="Fractions, or numbers, of hardest rows to drop.")
    ] = "0.0,0.05,0.1,0.2,0.3",
    seeds: Annotated[int, typer.Option(help="Repetitions, seeds 0, 1, …")] = 3,
    share: Annotated[
        float | None, typer.Option(help="How long to train, of the full training. Default: what is kept.")
    ] = None,
    save_dir: Annotated[Path | None, typer.Option(help="Folder of finished runs, not run again.")] = None,
    json: Json = False,
) -> None:
    """Choose by validation how many of the hardest rows to leave out, beside random rows.

    The function is ``train(rows, *, seed, share) -> float``. Exit code 1 unless the best offset beats random rows.
    """
    from prunesampler.analysis.sweep import sweep as sweep_offsets
    from prunesampler.tables.score_table import ScoreTable

    wanted: Any = [
        number_option("offsets", each.strip(), "must be fractions or numbers") for each in offsets.split(",")
    ]
    kept: Any = keep_option(keep)
    with warnings_as_lines():
        found = sweep_offsets(
            load_function(train),
            ScoreTable.load(scores),
            kept,
            by,
            method,
            offsets=wanted,
            seeds=seeds,
            share=share,
            save_dir=save_dir,
        )
    if json:
        trials = [vars(trial) for trial in found.trials]
        write_json({"pays": found.pays, "best": found.best, "gain": vars(found.gain), "trials": trials})
    else:
        write([PlainTable(found.columns, found.cells()), "", printable(found.sentence)])
    if not found.pays:
        raise typer.Exit(1)
