"""Which rows of a score to keep: the start of the window is chosen by validation, beside random rows."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from prunesampler.analysis.compare import FEWEST, Gain
from prunesampler.analysis.trials import Trial, Trials, check_seeds
from prunesampler.errors import ArgumentError, check_number
from prunesampler.selection.registry import Method
from prunesampler.selection.select import Selection
from prunesampler.tables.score_table import ScoreTable

OFFSETS = (0.0, 0.05, 0.1, 0.2, 0.3)
RANDOM = "random"


@dataclass(frozen=True, repr=False)
class Sweep:
    """What :func:`sweep` found. It shows itself as a table and a sentence.

    Attributes:
        trials: every run.
        selections: arm → what it keeps, one an offset.
        num_rows: how many rows there are to select from.
        confidence: of :attr:`gain`, all offsets together.
    """

    trials: tuple[Trial, ...]
    selections: dict[str, Selection]
    num_rows: int
    confidence: float

    def metrics(self, arm: str) -> list[float]:
        """Of an arm, seed by seed."""
        return [each.metric for each in self.trials if each.arm == arm]

    @property
    def best(self) -> str:
        """The arm of the highest mean metric, but for the random one."""
        return max(self.selections, key=lambda arm: statistics.fmean(self.metrics(arm)))

    @property
    def gain(self) -> Gain:
        """Of the best offset over random rows.

        The best of several is better than itself: each interval is as wide as all of them together need (Bonferroni).
        """
        pairs = zip(self.metrics(self.best), self.metrics(RANDOM), strict=True)
        return Gain.of([ours - theirs for ours, theirs in pairs], 1 - (1 - self.confidence) / len(self.selections))

    @property
    def pays(self) -> bool:
        """Whether the best offset beats random rows: only then is the score of use."""
        return self.gain.verdict == "beats"

    @property
    def selection(self) -> Selection | None:
        """The selection of the best offset; None where random rows are as good."""
        return self.selections[self.best] if self.pays else None

    @property
    def columns(self) -> list[str]:
        """Headings of :meth:`cells`."""
        return ["offset", "rows", "metric", "over random"]

    def cells(self) -> list[list[str]]:
        """Offset, rows, mean metric with its deviation over seeds, and the mean gain, as text."""
        of_random = statistics.fmean(self.metrics(RANDOM))
        lines = []
        for arm in (*self.selections, RANDOM):
            found = self.metrics(arm)
            spread = f" ± {statistics.stdev(found):.4g}" if len(found) > 1 else ""
            rows = next(each.rows for each in self.trials if each.arm == arm)
            gain = "–" if arm == RANDOM else f"{statistics.fmean(found) - of_random:+.4g}"
            name = arm if arm == RANDOM else f"{self.selections[arm].offset:g}"
            lines.append([name, f"{rows:,}", f"{statistics.fmean(found):.4g}{spread}", gain])
        return lines

    @property
    def sentence(self) -> str:
        """What to make of it."""
        gain, offset = self.gain, self.selections[self.best].offset
        shown = f"{gain.mean:+.4g}" + (f" ± {gain.half_width:.4g}" if len(gain.differences) > 1 else "")
        if self.pays:
            return f"Take offset {offset:g}: it beats random rows by {shown}."
        if gain.verdict == "undecided":
            more = f"{FEWEST} seeds or more" if len(gain.differences) < FEWEST else "more seeds"
            return f"Offset {offset:g} is ahead of random rows by {shown}, which may be chance: run {more}."
        return f"Random is as good (the best offset, {offset:g}, gains {shown}): do not use this score."

    def __repr__(self) -> str:
        lines = [self.columns, *self.cells()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join([*("  ".join(map(str.rjust, line, widths)) for line in lines), self.sentence])


def sweep(
    train: Callable[..., float],
    table: ScoreTable,
    keep: float = 0.5,
    by: str = "el2n",
    method: Method = "window",
    *,
    offsets: Sequence[float] = OFFSETS,
    seeds: int | Sequence[int] = 3,
    share: float | None = None,
    confidence: float = 0.95,
    save_dir: str | os.PathLike[str] | None = None,
) -> Sweep:
    """Train on the rows after the hardest ones, for several numbers of those, and on random rows: which start is best?

    The random arm is a gate. Unless the best offset beats it, the score says nothing that chance does not.

    Args:
        train: a function ``(rows, *, seed: int, share: float) -> float``, as of :func:`~prunesampler.compare`: it
            returns a metric of validation data, higher is better. The test set is for the end.
        table: the scores.
        keep, by, method: as of :func:`~prunesampler.select`; a method that has ``offset``.
        offsets: of :func:`~prunesampler.select`, distinct; each must leave as many rows as are kept.
        seeds: how many, or which; of the selection and of ``train``. With fewer than three nothing is decided.
        share: > 0, how long to train, as a fraction of the full training; by default the fraction of rows kept.
        confidence: in (0, 1), that the best offset is not taken for better than random by chance.
        save_dir: a folder in which each run that is finished leaves a file of JSON, and is not run again.

    Raises:
        ArgumentError: an argument breaks its rule, or ``train`` returns anything but a finite number.
        MismatchError, CorruptFileError: ``save_dir`` has results of other rows, or damaged ones.

    >>> table = ScoreTable({"el2n": np.arange(100.0)})
    >>> def train(rows, *, seed, share):  # rows around 60 make the best model, here
    ...     return 0.9 - abs(rows.mean() - 60) / 1000 - 0.01 * (seed % 2)
    >>> sweep(train, table, keep=0.3, offsets=(0.0, 0.25, 0.5)).best
    'offset-0.25'
    """
    if not isinstance(table, ScoreTable):
        raise ArgumentError("table", "must be a ScoreTable", table)
    if not offsets or isinstance(offsets, str) or len(set(offsets)) < len(offsets):
        raise ArgumentError("offsets", "must be distinct, and at least one", offsets)
    if check_number("confidence", confidence, 0, 1, above=True) == 1:
        raise ArgumentError("confidence", "must be below 1", confidence)
    numbers, size = check_seeds(seeds), len(table)
    selections = {f"offset-{offset:g}": Selection(keep, by, method, offset=offset) for offset in offsets}
    for each in selections.values():
        count, out = each.check(size), each.offset
        if count is None or (out or 0) * (1 if isinstance(out, int) else size) + count > size:
            raise ArgumentError("offsets", f"must leave {count} of {size} rows", out)
    assert count is not None
    share = count / size if share is None else check_number("share", share, 0, above=True)
    runs, trials = Trials(train, save_dir), []
    for seed in numbers:
        for arm, selection in selections.items():
            rows = Selection(**selection.to_dict() | {"seed": seed})(table).rows.copy()
            trials.append(runs.run(arm, rows, seed=seed, share=share))
        drawn = np.sort(np.random.default_rng([seed, 0x73776570]).choice(table.rows, count, replace=False))
        trials.append(runs.run(RANDOM, drawn, seed=seed, share=share))
    return Sweep(tuple(trials), selections, size, float(confidence))
