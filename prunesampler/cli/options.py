"""How options are read that several commands have."""

from __future__ import annotations

from enum import Enum
from typing import Literal

from prunesampler.errors import ArgumentError

__all__ = ["Engine", "keep_option"]


class Engine(str, Enum):
    """Where a command does its work."""

    local = "local"
    ray = "ray"


def keep_option(text: str) -> float | int | Literal["auto"]:
    """What ``--keep`` means: a fraction where the text has a point, else a number of rows, or ``"auto"`` itself.

    Raises:
        ArgumentError: none of these.

    >>> keep_option("0.5"), keep_option("300"), keep_option("auto")
    (0.5, 300, 'auto')
    """
    if text == "auto":
        return "auto"
    try:
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise ArgumentError("keep", "must be a fraction in (0, 1], a number of rows, or auto", text) from None
