"""How far the scoring epochs of a run have come, by the rows that were trained on or by the passes that ended."""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass
class Progress:
    """Counts of one rank, in rows that were trained on, so that early exits and skipped batches count as they should.

    Attributes:
        epochs: passes to score.
        rows_per_pass: rows that one whole pass of the loader hands out.
        batches_per_pass: and batches.
        rows: trained on since scoring began.
        rows_open: of them, since the last epoch ended.
        cut_off: batches that the epoch of a loaded state had trained on; 0 once it is known how it goes on.
        ended: epochs that ended.
    """

    epochs: int
    rows_per_pass: int
    batches_per_pass: int
    rows: int = 0
    rows_open: int = 0
    cut_off: int = 0
    ended: int = 0

    def resize(self, other: Progress) -> None:
        """A pass is from now on as long as the other's: of another loader over the same rows."""
        self.rows_per_pass, self.batches_per_pass = other.rows_per_pass, other.batches_per_pass

    def train(self, rows: int) -> None:
        """So many rows were trained on."""
        self.rows += rows
        self.rows_open += rows

    def end_epoch(self) -> None:
        """What was trained on since the last epoch is one epoch."""
        self.rows_open = 0
        self.ended += 1

    def restart_epoch(self) -> None:
        """What was trained on since the last epoch will be trained on again."""
        self.rows -= self.rows_open
        self.rows_open = 0

    def go_on(self, rows: int, rows_open: int, ended: int, batches_open: int) -> None:
        """Continue from the counts of a loaded state."""
        self.rows, self.rows_open, self.ended = rows, rows_open, ended
        self.cut_off = batches_open if rows_open else 0

    def settle(self) -> int:
        """It is known how the epoch of a loaded state goes on; the batches that it had trained on."""
        batches, self.cut_off = self.cut_off, 0
        return batches

    @property
    def is_due(self) -> bool:
        """Whether the scoring epochs are over, half a pass of tolerance allowed for skipped batches."""
        if 0 < self.cut_off < self.batches_per_pass:
            return False  # the epoch that was cut off comes first
        return self.rows >= (self.epochs - 0.5) * self.rows_per_pass


@dataclass
class StreamProgress(Progress):
    """Of a loader that cannot say how many rows one pass hands out: passes are counted.

    One that is less than half as long as those before it were is none.
    """

    rows_per_pass: int = 0
    batches_per_pass: int = sys.maxsize

    def end_epoch(self) -> None:
        """What was trained on since the last epoch is one epoch, if it is long enough."""
        self.ended += self._is_long
        self.rows_open = 0

    @property
    def is_due(self) -> bool:
        """Whether so many passes ended, or have come so far that the next ``iter`` ends them."""
        return not self.cut_off and self.ended + self._is_long >= self.epochs

    @property
    def _is_long(self) -> bool:
        return self.rows_open > 0 and 2 * self.rows_open * self.ended >= self.rows - self.rows_open
