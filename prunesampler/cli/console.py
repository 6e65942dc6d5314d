"""How commands print."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prunesampler.errors import PruneSamplerWarning


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> Table:
    """A table of cells taken literally, aligned to the right except for the ``left`` columns."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for place, heading in enumerate(columns):
        table.add_column(heading, justify="left" if place in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def write(parts: Iterable[str | Text | Table]) -> None:
    """Print tables; texts, wrapped at the terminal's width; and strings, each on a line of its own to copy."""
    console = Console(highlight=False, markup=False)
    for part in parts:
        with console.capture() as captured:
            console.print(part, soft_wrap=isinstance(part, str))
        typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print the library's warnings on stderr, one a line, once the work has succeeded."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PruneSamplerWarning)
        yield
    for warning in caught:
        typer.echo(f"prunesampler: {warning.message}", err=True)
