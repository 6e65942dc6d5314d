"""``prunesampler duplicates``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunesampler._format import percent
from prunesampler.cli.console import PlainTable, write, write_json
from prunesampler.cli.options import Json, Seed


def duplicates(
    features: Annotated[Path, typer.Argument(help="A .npy file: (N, d) features.", show_default=False)],
    similarity: Annotated[str, typer.Option(help="Cosines, separated by commas.")] = "0.99,0.98,0.95,0.9,0.85,0.8",
    examples: Annotated[int, typer.Option(help="Pairs of rows to show of each.")] = 4,
    sample: Annotated[int, typer.Option(help="Random rows to find the nearest neighbour of.")] = 10_000,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Show how many rows have near duplicates at several similarities, and pairs of them.

    Look at the pairs, and take the lowest similarity whose pairs are still duplicates as the threshold of
    'prunesampler select --method deduplicate'. 'report --features --images' shows their images.
    """
    from prunesampler.errors import ArgumentError
    from prunesampler.selection.near_duplicates import similar_pairs

    try:
        wanted = [float(each) for each in similarity.split(",")]
    except ValueError:
        raise ArgumentError("similarity", "must be numbers, separated by commas", similarity) from None
    found = similar_pairs(features, wanted, examples=examples, sample=sample, seed=seed)
    if json:
        write_json({"similarities": [each._asdict() for each in found]})
        return
    rows = [
        [f"{each.similarity:g}", percent(each.share), "  ".join(f"{a}–{b} ({at:.3f})" for a, b, at in each.pairs)]
        for each in found
    ]
    write(
        [
            PlainTable(
                ("similarity\nabove", "rows with such\na neighbour", "pairs of rows, the least similar ones"),
                rows,
                (0, 2),
            )
        ]
    )
