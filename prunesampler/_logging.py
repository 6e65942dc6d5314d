"""One visible line where a run changes: the logger ``prunesampler``, with a handler of its own where there is none."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from prunesampler.errors import check_choice

Verbosity = Literal["debug", "info", "warning", "error"]
_LEVELS = ("debug", "info", "warning", "error")

log = logging.getLogger("prunesampler")
"""What the library tells of its runs."""


class _OwnHandler(logging.Handler):
    """Writes to stderr unless the application handles its logs itself; of several ranks, the first tells the news."""

    def emit(self, record: logging.LogRecord) -> None:
        if logging.getLogger().handlers or len(log.handlers) > 1:
            return
        if record.levelno < logging.WARNING and _rank() != "0":
            return
        print(f"prunesampler: {record.getMessage()}", file=sys.stderr, flush=True)


def _rank() -> str:
    """That of the process group, if there is one (torch is not imported to ask), else torchrun's."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        return str(dist.get_rank())
    return os.environ.get("RANK", "0")


def be_heard() -> None:
    """Give the logger its handler and a level, once, where the application has given it neither."""
    if log.handlers or logging.getLogger().handlers:
        return
    log.addHandler(_OwnHandler())
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)


@contextmanager
def without_news() -> Iterator[None]:
    """Warnings alone, for a program that tells of its runs itself."""
    level = log.level
    log.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        log.setLevel(level)


def set_verbosity(verbosity: Verbosity) -> None:
    """How much is told on stderr: ``"info"``, as it is without this, one line where a run is pruned; or less, or more.

    It is the level of the logger ``prunesampler``. Whoever configures logging (``logging.basicConfig``) has these lines
    among all others.

    Raises:
        ArgumentError: none of the four.

    >>> set_verbosity("warning")
    """
    check_choice("verbosity", verbosity, _LEVELS)
    be_heard()
    log.setLevel(verbosity.upper())
