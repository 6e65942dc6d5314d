"""How commands print."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import typer
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prunesampler.analysis.format import as_json
from prunesampler.errors import PruneSamplerWarning


@dataclass(frozen=True)
class PlainTable:
    """A table of cells taken literally, aligned to the right except for the ``left`` columns.

    A heading may have several lines. Where the terminal is too narrow, the columns that do not fit follow below,
    beside the first one again.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[int] = (0,)

    def fitted(self, width: int) -> Iterator[Table]:
        """Tables of at most ``width`` characters."""
        rows = [[*row, *[""] * (len(self.columns) - len(row))] for row in self.rows]
        cells = [[*heading.split("\n"), *(row[place] for row in rows)] for place, heading in enumerate(self.columns)]
        widths = [2 + max(map(cell_len, column)) for column in cells]  # and what rich puts between them
        first, rest = [0], list(range(1, len(widths)))
        while True:
            shown = list(first)
            while rest and (shown == first or sum(widths[place] for place in [*shown, rest[0]]) <= width):
                shown.append(rest.pop(0))
            table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
            for place in shown:
                justify: Any = "left" if place in self.left else "right"
                table.add_column(self.columns[place], justify=justify, overflow="fold")
            for row in rows:
                table.add_row(*(Text(row[place]) for place in shown))
            yield table
            if not rest:
                return


def write(parts: Iterable[str | Text | PlainTable]) -> None:
    """Print tables; texts, wrapped at the terminal's width; and strings, each on a line of its own to copy."""
    console = Console(highlight=False, markup=False)
    for part in parts:
        for each in part.fitted(console.width) if isinstance(part, PlainTable) else [part]:
            with console.capture() as captured:
                console.print(each, soft_wrap=isinstance(each, str))
            typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def write_json(figures: dict[str, Any]) -> None:
    """Print figures for a program to read: one line of JSON; NaN is null, infinities are strings."""
    typer.echo(as_json(figures))


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print the library's warnings on stderr, one a line, once the work has succeeded."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PruneSamplerWarning)
        yield
    for warning in caught:
        typer.echo(f"prunesampler: {warning.message}", err=True)
