"""How figures are written as text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

_EIGHTHS = " ▁▂▃▄▅▆▇█"


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
