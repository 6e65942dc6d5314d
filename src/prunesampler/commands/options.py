"""How options are read that several commands have."""

from __future__ import annotations

from prunesampler.errors import ArgumentError

__all__ = ["keep_option"]


def keep_option(text: str) -> float | int:
    """What ``--keep`` means: a fraction where the text has a point, else a number of rows.

    Raises:
        ArgumentError: neither.

    >>> keep_option("0.5"), keep_option("300")
    (0.5, 300)
    """
    try:
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise ArgumentError("keep", "must be a fraction in (0, 1] or a number of rows", text) from None
