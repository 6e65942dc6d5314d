"""The tie between a run and the loader that it follows now."""

from __future__ import annotations

import sys
from typing import Any

from prunesampler.capture.rows import Collated


class Attachment:
    """What a loader, its iterators and the model's hook report to. It lives as long as the loader or an iterator.

    The run lives on with its model, and may go on with another loader through another attachment. What an iterator of
    the earlier loader hands out from then on does not concern the run.
    """

    def __init__(self, run: Any) -> None:
        self._run = run

    def before_pass(self) -> None:
        """``iter(loader)``."""
        self._run.before_pass()

    def started(self) -> Any:
        """An iterator begins."""
        return self._run.started()

    def fetched(self, token: Any, item: Collated) -> Any:
        """A batch is fetched. Returns what is handed out of it."""
        return self._run.fetched(token, item) if self._run.is_tied_by(self) else item.batch

    def exhausted(self, token: Any) -> None:
        """An iterator ended."""
        if self._run.is_tied_by(self):
            self._run.exhausted(token)

    def released(self, token: Any) -> None:
        """Nobody holds an iterator any more."""
        if self._run.is_tied_by(self):
            self._run.released(token)

    def forwarded(self, inputs: tuple[Any, ...], output: Any) -> None:
        """A training forward has returned."""
        self._run.forwarded(inputs, output)

    def __del__(self) -> None:
        if not sys.is_finalizing() and self._run.is_tied_by(self):
            self._run.lose_loader()
