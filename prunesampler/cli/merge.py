"""``prunesampler merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prunesampler.analysis.format import printable
from prunesampler.analysis.statistics import score_names
from prunesampler.cli.options import Engine, EngineOption, Force, Out, check_output, engine_for
from prunesampler.tables.merge import merge_files

__all__ = ["merge"]


def merge(
    scores: Annotated[list[Path], typer.Argument(help="Files of scores, one a run.", show_default=False)],
    out: Out,
    force: Force = False,
    engine: EngineOption = Engine.local,
) -> None:
    """Average runs that measured the same dataset: the mean of scores, the sum of forgetting events."""
    check_output(out, scores, force)
    with engine_for(engine, *scores) as (run, paths):
        table: Any = merge_files(run, paths, out)
    typer.echo(f"merged {len(scores)} files, {len(table):,} rows of {table.num_rows:,}")
    for name in score_names(table):
        protocol = table.protocols[name]
        between = f", Spearman between files {protocol['between_runs']:.3f}" if "between_runs" in protocol else ""
        typer.echo(f"{printable(name)}: {protocol['runs']} runs{between}")
    typer.echo(f"written to {out}")
