"""The options and files that several commands have in common, each read in one place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from prunesampler.errors import ArgumentError, StateError

if TYPE_CHECKING:  # a command imports what it works with when it runs: its help does not wait for it
    from prunesampler.tables.score_table import Coreset, ScoreTable

Keep = float | int | Literal["auto", "clean"]


class Engine(str, Enum):
    """Where a command does its work."""

    local = "local"
    ray = "ray"


@contextmanager
def engine_for(engine: Engine, *paths: Path) -> Iterator[tuple[Any, list[Path]]]:
    """What maps a function over parts of the work, and the paths by which it finds the files."""
    from prunesampler.selection.engine import RayEngine, Threads

    if engine is Engine.ray:
        yield RayEngine().map, [path.absolute() for path in paths]
        return
    with Threads() as threads:
        yield threads.map, list(paths)


EngineOption = Annotated[Engine, typer.Option("--engine", help="Work in this process, or on a Ray cluster.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the file.")]
Features = Annotated[Path | None, typer.Option(help="A .npy file: (N, d) features, a row of it for each sample.")]
Images = Annotated[
    Path | None, typer.Option(help="Folder of CIFAR-10, or of a folder of images a class; or the index of tar shards.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]
MethodOption = Annotated[
    str,
    typer.Option(
        "--method",
        help="stratified, top, bottom, window or random; by features herding, k_center, moderate, prototypes or "
        "deduplicate.",
    ),
]
MethodOptions = Annotated[list[str], typer.Option("--option", help="An option of the method, as name=value (JSON).")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The file to write.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed for ties and random draws.")]
Scores = Annotated[Path, typer.Argument(help="A file of scores.", show_default=False)]


def keep_option(text: str) -> Keep:
    """What ``--keep`` means: a fraction where the text has a point, else a number of rows, or a rule."""
    if text == "auto":
        return "auto"
    if text == "clean":
        return "clean"
    return number_option("keep", text, "must be a fraction in (0, 1], a number of rows, auto or clean")


def keeps_option(text: str) -> list[Keep]:
    """Values of ``--keep``, separated by commas."""
    return [keep_option(part.strip()) for part in text.split(",")]


def number_option(name: str, text: str, rule: str) -> float | int:
    """A number of rows where the text is digits alone, else a fraction."""
    try:
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise ArgumentError(name, rule, text) from None


def method_options(given: Sequence[str]) -> dict[str, Any]:
    """What ``name=value`` texts mean: each value as JSON, or where it is none as text."""
    found = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator:
            raise ArgumentError("option", "must be name=value", text)
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def load_file(path: Path) -> ScoreTable | Coreset:
    """Read a file of either kind."""
    from prunesampler.tables.parquet import kind_of
    from prunesampler.tables.score_table import Coreset, ScoreTable

    return Coreset.load(path) if kind_of(path) == "coreset" else ScoreTable.load(path)


def check_output(out: Path, inputs: Sequence[Path], force: bool) -> None:
    """Refuse a file that cannot, or should not, be written, before any work is done."""
    if out.is_dir():
        raise StateError(f"{out} is a folder: give a file as --out")
    if not out.parent.is_dir():
        raise StateError(f"{out} cannot be written: {out.parent} is not a folder")
    if not out.exists():
        return
    if any(path.exists() and path.samefile(out) for path in inputs):
        raise StateError(f"{out} is read by this command: give another --out")
    if not force:
        raise StateError(f"{out} exists already: give another --out, or --force to replace it")


def image_source(images: Path) -> Any:
    """A folder, or the samples of a shard index."""
    if not images.is_file():
        return images
    from prunesampler.shards.dataset import IndexedShards

    return IndexedShards(images)
