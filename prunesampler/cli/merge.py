"""``prunesampler merge``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from prunesampler.analysis.format import printable
from prunesampler.analysis.statistics import score_names
from prunesampler.cli.options import Engine, EngineOption, Force, Out, check_output
from prunesampler.selection.engine import RayEngine, Threads
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
    with Threads() if engine is Engine.local else nullcontext(RayEngine()) as worker:
        paths = scores if engine is Engine.local else [path.absolute() for path in scores]
        table: Any = merge_files(worker.map, paths, out)
    typer.echo(f"merged {len(scores)} files, {len(table):,} rows of {table.num_rows:,}")
    for name in score_names(table):
        protocol = table.protocols[name]
        between = f", Spearman between files {protocol['between_runs']:.3f}" if "between_runs" in protocol else ""
        typer.echo(f"{printable(name)}: {protocol['runs']} runs{between}")
    typer.echo(f"written to {out}")
