"""Figures drawn with characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["histogram"]

_EIGHTHS = " ▁▂▃▄▅▆▇█"


def histogram(counts: Sequence[int], low: str, high: str, *, height: int = 4, width: int = 64) -> Iterator[str]:
    """Columns as high as the counts, and a line that names both ends; a count above 0 is always seen.

    Args:
        counts: (B,) one for each bin, at most ``width`` of them.
        low, high: what stands below the first and the last bin.
        height: lines that the highest count takes.
        width: characters, shared evenly by the bins.

    >>> for line in histogram([8, 4, 0, 1], "0", "1", height=2, width=8): print(line + "|")
    ██|
    ████  ▂▂|
    0      1|
    """
    if not counts:
        return
    each = max(1, width // len(counts))
    highest = max(counts)
    eighths = [-(-count * 8 * height // highest) for count in counts]
    for line in range(height - 1, -1, -1):
        yield "".join(_EIGHTHS[min(8, max(0, full - 8 * line))] * each for full in eighths).rstrip()
    yield low + high.rjust(max(len(high) + 1, each * len(counts) - len(low)))
