"""``prunesampler index`` and ``prunesampler repack``: tar shards."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from prunesampler._format import counted, printable
from prunesampler.cli.console import PlainTable, write, write_json
from prunesampler.cli.options import Engine, EngineOption, Json, Quiet, check_output
from prunesampler.errors import PruneSamplerWarning, check_bytes

_SHOWN = 3
AllowCommands = Annotated[bool, typer.Option("--allow-commands", help="Run pipe: URLs, in an index's file too.")]


def index(
    shards: Annotated[list[str], typer.Argument(help="Tar shards: files, globs, URLs, braces.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The index; one that exists is added to.")],
    label: Annotated[str, typer.Option(help="Extension of the file that holds the class; '' for none.")] = "cls",
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Start over: rows are numbered anew.")] = False,
    repeated_keys: Annotated[bool, typer.Option("--repeated-keys", help="Allow a key in several shards.")] = False,
    allow_commands: AllowCommands = False,
    workers: Annotated[int | None, typer.Option(help="Shards read at once.", show_default="2 a processor")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Give every sample of tar shards a row.

    The rows of shards that were indexed before do not change.
    """
    from prunesampler.shards.build import build_index
    from prunesampler.shards.index import ShardIndex
    from prunesampler.shards.urls import expand_urls, local_path

    given = expand_urls(shards)
    check_output(out, [Path(path) for url in given if (path := local_path(url)) is not None], force=True)
    older = ShardIndex.load(out, allow_commands=allow_commands) if out.exists() and not rebuild else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PruneSamplerWarning)  # the table below shows what they say
        built = build_index(
            given,
            label=label or None,
            index=older,
            repeated_keys=repeated_keys,
            allow_commands=allow_commands,
            workers=workers,
            progress=not quiet,
        )
    known = 0 if older is None else len(older.shards)
    labels = [] if built.labels is None else built.labels[built.labels >= 0].tolist()
    classes = len(set(labels))
    empty = [printable(record.url) for record in built.records[known:] if not record.rows]
    if json:
        if known < len(built.shards):
            built.save(out)
        found = {"shards": len(built.shards), "new_shards": len(built.shards) - known, "samples": len(built)}
        write_json({**found, "labels": len(labels), "classes": classes, "empty_shards": empty, "out": str(out)})
        return
    if known == len(built.shards):
        typer.echo(f"nothing new: {counted(len(built), 'sample')} in {counted(known, 'shard')}")
        return
    built.save(out)
    rows = []
    for name, records in (("known", built.records[:known]), ("new", built.records[known:])):
        if records:
            size = sum(max(0, record.size) for record in records)
            streamed = sum(not record.seekable for record in records)
            figures = (len(records), sum(record.rows for record in records), size / 1e6, streamed)
            rows.append([name, *(f"{figure:,.0f}" for figure in figures)])
    write([PlainTable(["shards", "number", "samples", "MB", "not seekable"], rows)])
    of = f", {counted(classes, 'class', 'classes')}" if labels else ""
    typer.echo(f"labels: {len(labels):,} of {len(built):,}{of}")
    if empty:
        more = f" and {len(empty) - _SHOWN} more" if len(empty) > _SHOWN else ""
        typer.echo(f"without a sample: {', '.join(empty[:_SHOWN])}{more}")
    typer.echo(f"{counted(len(built), 'row')}, written to {out}")


def repack(
    index: Annotated[Path, typer.Argument(help="The shards' index.", show_default=False)],
    coreset: Annotated[Path, typer.Argument(help="A file of a coreset.", show_default=False)],
    out: Annotated[str, typer.Argument(help="New shards, like 'out/{shard:06d}.tar'; or a URL.", show_default=False)],
    maxsize: Annotated[str, typer.Option(help="Maximum size of a new shard.")] = "1GB",
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Mix the samples of all shards.")] = False,
    seed: Annotated[int, typer.Option(help="Seed for the order.")] = 0,
    rename: Annotated[bool, typer.Option("--rename", help="Name samples by their old rows.")] = False,
    workers: Annotated[int | None, typer.Option(help="Shards written at once.", show_default="processors")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace shards that exist.")] = False,
    allow_commands: AllowCommands = False,
    json: Json = False,
    engine: EngineOption = Engine.local,
) -> None:
    """Copy the kept samples into new tar shards.

    An index is written beside them. Run it again to resume.
    """
    from prunesampler.shards.repack import repack as repack_shards

    options: dict[str, Any] = {"shuffle": shuffle, "seed": seed, "rename": rename, "workers": workers}
    options |= {"overwrite": overwrite, "allow_commands": allow_commands, "engine": engine.value}
    fresh = repack_shards(index, coreset, out, maxsize=check_bytes("maxsize", maxsize), **options)
    size = sum(shard.size for shard in fresh.records)
    if json:
        write_json({"samples": len(fresh), "shards": list(fresh.shards), "bytes": size})
        return
    typer.echo(f"{counted(len(fresh), 'sample')} in {counted(len(fresh.shards), 'shard')}, {size:,} bytes")
    typer.echo(f"written to {fresh.shards[0]}{' …' if len(fresh.shards) > 1 else ''}, with index.parquet beside")
