"""``prunesampler select``, ``merge`` and ``report``: what is made from files of scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prunesampler._format import counted, percent, printable
from prunesampler.cli.console import warnings_as_lines, write_json
from prunesampler.cli.options import (
    Engine,
    EngineOption,
    Features,
    Force,
    Images,
    Json,
    MethodOption,
    MethodOptions,
    Out,
    Scores,
    Seed,
    check_output,
    engine_for,
    image_source,
    keep_option,
    keeps_option,
    method_options,
    number_option,
)


def select(
    out: Out,
    keep: Annotated[
        str | None, typer.Option(help="Fraction in (0, 1], or number, of the rows to keep, auto or clean.")
    ] = None,
    scores: Annotated[Path | None, typer.Argument(help="A file of scores; none for features alone.")] = None,
    by: Annotated[str, typer.Option(help="The score.")] = "el2n",
    method: MethodOption = "stratified",
    offset: Annotated[str | None, typer.Option(help="Fraction in [0, 1), or number, of hardest rows to drop.")] = None,
    class_balanced: Annotated[bool, typer.Option("--class-balanced", help="The same share of each class.")] = False,
    min_per_class: Annotated[int | None, typer.Option(help="At least so many rows of each class.")] = None,
    seed: Seed = 0,
    unscored: Annotated[str, typer.Option(help="Rows without a score: keep or drop.")] = "keep",
    threshold: Annotated[
        float | None, typer.Option(help="With --keep auto a score, with clean a probability; to deduplicate a cosine.")
    ] = None,
    features: Features = None,
    option: MethodOptions = [],  # noqa: B006  # typer reads it
    force: Force = False,
    json: Json = False,
    engine: EngineOption = Engine.local,
) -> None:
    """Keep rows by their scores, their features or both.

    They are written as a coreset.
    """
    from prunesampler.selection.select import Selection, select_file
    from prunesampler.tables.coreset import summary_lines

    given: dict[str, Any] = {"by": by, "method": method, "min_per_class": min_per_class, "seed": seed}
    given |= {"class_balanced": class_balanced, "unscored": unscored, "threshold": threshold}
    if offset is not None:
        given["offset"] = number_option("offset", offset, "must be a fraction in [0, 1) or a number of rows")
    inputs = [path for path in (scores, features) if path is not None]
    check_output(out, inputs, force)
    kept: Any = None if keep is None else keep_option(keep)
    selection = Selection(kept, **given, features=features, method_options=method_options(option))
    classes: dict[int, tuple[int, int]] = {}
    with warnings_as_lines():
        if scores is None:
            coreset = selection()
            coreset.save(out)
            found = coreset.selection
        else:
            with engine_for(engine, scores) as (run, (path,)):
                found, classes = select_file(run, path, out, selection)
        selection.warn(found["eligible"])
    shares = {label: kept / rows for label, (rows, kept) in classes.items() if label >= 0}
    if json:
        write_json({**found, "kept_share_of_classes": shares, "out": str(out)})
        return
    for line in summary_lines(found, found["kept"], found["eligible"]):
        typer.echo(line)
    if shares:
        typer.echo(_class_shares(shares))
    typer.echo(f"written to {out}")


def _class_shares(shares: dict[int, float]) -> str:
    least, most = (extreme(shares, key=shares.__getitem__) for extreme in (min, max))
    spread = f"{percent(shares[least])} (class {least}) to {percent(shares[most])} (class {most})"
    return f"of {len(shares):,} classes: {spread} kept"


def merge(
    scores: Annotated[list[Path], typer.Argument(help="Files of scores, one a run.", show_default=False)],
    out: Out,
    force: Force = False,
    json: Json = False,
    engine: EngineOption = Engine.local,
) -> None:
    """Average several runs over the same dataset.

    Scores are averaged, forgetting events added up.
    """
    from prunesampler.analysis.statistics import score_names
    from prunesampler.tables.merge import merge_files

    check_output(out, scores, force)
    with engine_for(engine, *scores) as (run, paths):
        table: Any = merge_files(run, paths, out)
    runs = {
        name: {each: protocol[each] for each in ("runs", "between_runs") if each in (protocol := table.protocols[name])}
        for name in score_names(table)
    }
    if json:
        found = {"files": len(scores), "rows": len(table), "num_rows": table.num_rows, "scores": runs}
        write_json({**found, "out": str(out)})
        return
    for name, found in runs.items():
        measured = f"{printable(name)} is the mean of {found['runs']} runs"
        between = "between_runs" in found
        typer.echo(measured + (f", which correlate by {found['between_runs']:.3f} (Spearman)" if between else ""))
    every = "every row" if len(table) == table.num_rows else f"{len(table):,} of the {counted(table.num_rows, 'row')}"
    typer.echo(f"merged {len(scores)} files, with scores of {every} of the dataset, into {out}")


def report(
    scores: Scores,
    out: Out,
    coreset: Annotated[Path | None, typer.Option(help="A coreset selected from them, to show what it keeps.")] = None,
    images: Images = None,
    by: Annotated[str | None, typer.Option(help="The score to rank by. Default: el2n, or the first.")] = None,
    keep: Annotated[str, typer.Option(help="What to judge: fractions, numbers or auto.")] = "0.7,0.5,0.3",
    features: Features = None,
    force: Force = False,
) -> None:
    """Write one HTML page about scores.

    It shows their distributions, whether they speak for pruning, the hardest and the easiest rows, and with features
    pairs of similar ones.
    """
    from prunesampler.analysis.report.write import report as write_report

    check_output(out, [path for path in (scores, coreset) if path is not None], force)
    dataset = None if images is None else image_source(images)
    write_report(scores, dataset, out=out, coreset=coreset, by=by, keep=keeps_option(keep), features=features)
    typer.echo(f"written to {out}")
