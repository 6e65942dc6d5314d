"""Options that a callback hands on to attach."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from prunesampler.errors import ArgumentError
from prunesampler.training.attach import attach

__all__ = ["check_options"]


def check_options(options: Mapping[str, Any], own: Collection[str]) -> None:
    """Refuse a name that :func:`prunesampler.attach` does not have: it would be found when training starts.

    Args:
        options: to be handed on.
        own: arguments of attach that the callback gives itself.

    Raises:
        ArgumentError: a name that is none of the others.

    >>> check_options({"keep": 0.5}, own=("loader", "model"))
    """
    known = [name for name in inspect.signature(attach).parameters if name not in own]
    for name, value in options.items():
        if name not in known:
            raise ArgumentError(name, f"is no option of prunesampler.attach, which has {known}:", value)
