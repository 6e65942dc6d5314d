"""``prunesampler repack``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from prunesampler.cli.options import Engine
from prunesampler.errors import ArgumentError

__all__ = ["byte_count", "repack"]

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_BINARY = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def byte_count(text: str) -> int:
    """A size in bytes: a number, with a unit or without.

    Raises:
        ArgumentError: anything else, or less than a byte.

    >>> byte_count("1GB"), byte_count("1.5 MiB"), byte_count("300")
    (1000000000, 1572864, 300)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([kmgt]?)b?|([kmgt])ib)", text.strip().lower())
    count = int(float(found[1]) * (_BINARY[found[3]] if found[3] else _UNITS[found[2]])) if found else 0
    if count < 1:
        raise ArgumentError("maxsize", "must be a number of bytes such as 1GB, 512MiB or 300000", text)
    return count


def repack(
    index: Annotated[Path, typer.Argument(help="The shards' index.", show_default=False)],
    coreset: Annotated[Path, typer.Argument(help="A file of a coreset.", show_default=False)],
    out: Annotated[str, typer.Argument(help="New shards, like 'out/{shard:06d}.tar'; or a URL.", show_default=False)],
    maxsize: Annotated[str, typer.Option(help="Bytes of a new shard, at most.")] = "1GB",
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Mix the samples of all shards.")] = False,
    seed: Annotated[int, typer.Option(help="Of the order.")] = 0,
    rename: Annotated[bool, typer.Option("--rename", help="Name samples by their old rows.")] = False,
    workers: Annotated[int | None, typer.Option(help="Shards written at once.", show_default="processors")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace shards that are there.")] = False,
    engine: Annotated[Engine, typer.Option(help="Work in this process, or on a Ray cluster.")] = Engine.local,
) -> None:
    """Copy the kept samples into new tar shards, with an index beside them; repeat it to go on where it stopped."""
    from prunesampler.shards.repack import repack as repack_shards

    fresh = repack_shards(
        index,
        coreset,
        out,
        maxsize=byte_count(maxsize),
        shuffle=shuffle,
        seed=seed,
        rename=rename,
        workers=workers,
        overwrite=overwrite,
        engine=engine.value,
    )
    size = sum(shard.size for shard in fresh.records)
    typer.echo(f"{len(fresh):,} samples in {len(fresh.shards):,} shards, {size:,} bytes")
    typer.echo(f"written to {fresh.shards[0]}{' …' if len(fresh.shards) > 1 else ''}, with index.parquet beside")
