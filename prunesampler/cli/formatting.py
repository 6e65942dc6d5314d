"""How commands write tables and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["as_json", "plain_table", "write"]


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> Table:
    """A table whose numbers stand to the right.

    Args:
        columns: headings.
        rows: cells, taken as they are.
        left: columns of text.
    """
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


def as_json(value: Any) -> str:
    """JSON with six digits a float; NaN is null, infinities are strings that ``float`` reads.

    >>> as_json({"mean": 1 / 3, "p99": float("inf"), "p1": float("nan")})
    '{"mean": 0.333333, "p99": "inf", "p1": null}'
    """
    return json.dumps(_strict(value), ensure_ascii=False, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(value) if math.isinf(value) else float(f"{value:.6g}")
    return value
