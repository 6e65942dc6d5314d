"""How numbers and names are written for people."""

from __future__ import annotations

import math

__all__ = ["counted", "number", "percent", "printable"]


def number(value: float | None) -> str:
    """Three digits or decimals, or all of a whole number; "∞" for an infinite value, "–" for none.

    >>> [number(value) for value in (0.16138, 12.0, 1234567, float("inf"), None)]
    ['0.161', '12', '1,234,567', '∞', '–']
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.3f}" if 0.001 <= abs(value) < 10 else f"{value:.3g}"


def percent(share: float) -> str:
    """A share for reading, with as many decimals as it takes to tell it from none and from all.

    >>> [percent(share) for share in (0.083, 0.004, 0.00047, 0.996, 1.0)]
    ['8 %', '0.4 %', '0.05 %', '99.6 %', '100 %']
    """
    edge = min(share, 1 - share)
    decimals = 0 if edge >= 0.01 or edge <= 0 else 1 if edge >= 0.001 else 2
    return f"{100 * share:.{decimals}f} %"


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number and what it counts.

    >>> counted(1, "row"), counted(2000, "class", "classes")
    ('1 row', '2,000 classes')
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def printable(text: object) -> str:
    """Text that came from a file, with whatever could steer a terminal escaped.

    >>> print(printable("a/b\\x1b[31m.jpg"))
    a/b\\x1b[31m.jpg
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
