"""How numbers, names and figures are written as text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

_EIGHTHS = " ▁▂▃▄▅▆▇█"


def number(value: float | None) -> str:
    """Three digits or decimals, or all of a whole number; "∞" for an infinite value, "–" for none."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.3f}" if 0.001 <= abs(value) < 10 else f"{value:.3g}"


def percent(share: float | None) -> str:
    """A share, with as many decimals as it takes to tell it from none and from all; "–" for an unknown one."""
    if share is None:
        return "–"
    edge = min(share, 1 - share)
    decimals = 0 if edge >= 0.01 or edge <= 0 else 1 if edge >= 0.001 else 2
    return f"{100 * share:.{decimals}f} %"


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number and what it counts."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def printable(text: object) -> str:
    """Text from a file, with whatever could control a terminal escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def as_json(value: Any) -> str:
    """JSON with six digits a float; NaN is null, infinities are strings that ``float`` reads."""
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


def histogram(counts: Sequence[int], low: str, high: str, *, height: int = 4, width: int = 64) -> Iterator[str]:
    """Lines of block characters: a column for each count (at most ``width``), then the names of both ends.

    A count above 0 is always visible.
    """
    if not counts:
        return
    each = max(1, width // len(counts))
    highest = max(counts)
    eighths = [-(-count * 8 * height // highest) for count in counts]
    for line in range(height - 1, -1, -1):
        yield "".join(_EIGHTHS[min(8, max(0, full - 8 * line))] * each for full in eighths).rstrip()
    yield low + high.rjust(max(len(high) + 1, each * len(counts) - len(low)))
