"""Rows to choose from: in memory or in a file, they are counted, cut and split in passes over blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from prunesampler.errors import ArgumentError
from prunesampler.selection.engine import Map
from prunesampler.selection.radix_select import Limits, Mask, Ranked, UInt64s, find_limits, first_digits, tie_keys
from prunesampler.tables.columns import Int64s
from prunesampler.tables.score_file import ScoreFile
from prunesampler.tables.score_table import ScoreTable

__all__ = ["Candidates", "Order", "Reader", "Rows", "Source", "Step", "TableSource"]

Order = Literal["hardest", "easiest", "random"]

_SLICE = 65_536  # rows whose arrays stay in a processor's cache


class TableSource:
    """A table in memory as one block, to be read like a ScoreFile: the rows at some places, ascending."""

    num_blocks = 1

    def __init__(self, table: ScoreTable, places: Int64s) -> None:
        self.table, self.places = table, places
        self.directions, self.column_names = table.directions, table.column_names
        self._all = len(places) == len(table)

    def __len__(self) -> int:
        return len(self.places)

    def block(self, number: int, columns: Sequence[str], size: int | None = None) -> Iterator[ScoreTable]:
        """Parts of the table, not checked again."""
        held, metadata = self.table._columns(), self.table._metadata()
        size = size or len(self)
        for start in range(0, len(self), size):
            at = slice(start, start + size) if self._all else self.places[start : start + size]
            yield ScoreTable._view(metadata, {name: held[name][at] for name in ("row", *columns)})


Source = TableSource | ScoreFile


class Reader(NamedTuple):
    """What is read of a source: these columns, and of each row its hardness."""

    source: Source
    columns: list[str]
    hardness: Callable[[ScoreTable], npt.NDArray[np.float32]]
    seed: int

    def slices(self, block: int) -> Iterator[Rows]:
        """The rows of a block, some at a time."""
        return (Rows(table, self.hardness(table)) for table in self.source.block(block, self.columns, _SLICE))


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a slice of a block: ``places`` in it (None: all), and the group of each (None: all in one)."""

    table: ScoreTable
    all_hardness: npt.NDArray[np.float32]
    places: Int64s | None = None
    group: Int64s | None = None

    @functools.cached_property
    def row(self) -> Int64s:
        """(B,) their numbers."""
        rows: Int64s = self.of(self.table.rows)
        return rows

    @functools.cached_property
    def hardness(self) -> npt.NDArray[np.float32]:
        """(B,) NaN where a row has no score."""
        hardness: npt.NDArray[np.float32] = self.of(self.all_hardness)
        return hardness

    def of(self, column: Any) -> Any:
        """The values of these rows in a column of the slice."""
        return column if self.places is None else column[self.places]

    def part(self, mask: Mask) -> Rows:
        """Those of a mask, (B,)."""
        if mask.all():
            return self
        at = np.flatnonzero(mask)
        places = at if self.places is None else self.places[at]
        return replace(self, places=places, group=None if self.group is None else self.group[at])

    def ranked(self, order: Order, seed: int) -> Ranked:
        """The rows in an order other than the easiest first."""
        if order == "random":
            return Ranked.at_random(self.group, self.row, seed)
        return Ranked.by_float(self.group, -self.hardness, self.row, seed)


Step = Callable[[Rows], Rows]
"""Takes some of the rows, or groups them."""


@dataclass(frozen=True)
class _Between:
    """Of each group the rows after the first ``above``, up to ``within``."""

    order: Order
    seed: int
    above: Limits | None
    within: Limits | None

    def __call__(self, rows: Rows) -> Rows:
        ranked = rows.ranked(self.order, self.seed)
        mask = np.ones(len(ranked.value), np.bool_) if self.within is None else self.within.within(ranked)
        if self.above is not None:
            mask &= ~self.above.within(ranked)
        return rows.part(mask)


@dataclass(frozen=True)
class _Split:
    """Each group in strata of equal width between its (low, high), and one of infinite values."""

    spans: npt.NDArray[np.float64]
    strata: int

    def __call__(self, rows: Rows) -> Rows:
        hardness = rows.hardness.astype(np.float64)
        finite = np.isfinite(hardness)
        group = np.int64(0) if rows.group is None else rows.group
        low, high = (each.item() if rows.group is None else each[group] for each in self.spans.T)
        with np.errstate(invalid="ignore", over="ignore"):
            width = np.where(high > low, high - low, 1.0)
            stratum = np.minimum((hardness - low) / width * self.strata, self.strata - 1)
            stratum = np.where(finite, stratum, self.strata).astype(np.int64)
        return replace(rows, group=group * (self.strata + 1) + stratum)


@dataclass(frozen=True)
class _InGroup:
    group: int

    def __call__(self, rows: Rows) -> Rows:
        return rows if rows.group is None else replace(rows.part(rows.group == self.group), group=None)


@dataclass(frozen=True)
class _Among:
    """The rows of these numbers, ascending."""

    rows: Int64s

    def __call__(self, rows: Rows) -> Rows:
        if not len(self.rows):
            return rows.part(np.zeros(len(rows.row), np.bool_))
        places = np.minimum(np.searchsorted(self.rows, rows.row), len(self.rows) - 1)
        return rows.part(self.rows[places] == rows.row)


class _Arrays(NamedTuple):
    row: Int64s
    hardness: npt.NDArray[np.float32]
    label: npt.NDArray[np.int32] | None
    group: Int64s


@dataclass(frozen=True, eq=False)
class Candidates:
    """Rows to choose from, all with a score unless the method reads none. What a selection method gets and gives.

    A method for data that fits into memory reads the arrays ``hardness``, ``labels``, ``ties`` and ``rows``, of one
    value per candidate, and answers with positions in them. One for files of any length works through :meth:`take`,
    :meth:`drop` and :meth:`split`, which say what is chosen without holding it; candidates are then in groups, one or
    one per class, and counts are of each group.

    >>> table = ScoreTable({"el2n": [0.1, 0.9, 0.5]})
    >>> reader = Reader(TableSource(table, np.arange(3)), ["el2n"], lambda part: part.scores["el2n"], 0)
    >>> candidates = Candidates(map, reader)
    >>> candidates.hardness, candidates.take("hardest", 2).rows
    (array([0.1, 0.9, 0.5], dtype=float32), array([1, 2]))
    """

    run: Map
    reader: Reader
    steps: tuple[Step, ...] = ()
    groups: int = 1
    counted_by: Order = "hardest"
    held: _Arrays | None = None
    _counts: dict[Order, Int64s] = field(default_factory=dict, init=False)  # a pass over the blocks is made once

    # -- what fits into memory -----------------------------------------------------------------------------------

    @property
    def rows(self) -> Int64s:
        """(E,) int64, their row numbers, ascending."""
        return self._arrays.row

    @property
    def hardness(self) -> npt.NDArray[np.float32]:
        """(E,) float32, higher is harder, +inf for rows that were never learned; zeros where no score is read."""
        return self._arrays.hardness

    @property
    def labels(self) -> npt.NDArray[np.int32] | None:
        """(E,) int32 class indices, −1 for none; None where the scores have no labels."""
        return self._arrays.label

    @property
    def features(self) -> None:
        """None: there are no features beside scores yet."""

    @property
    def ties(self) -> UInt64s:
        """(E,) uint64, distinct, by seed and row: in their order equals are to be taken."""
        return tie_keys(self.reader.seed, self.rows)

    @functools.cached_property
    def _arrays(self) -> _Arrays:
        if self.held is not None:
            return self.held
        reader = self.reader
        if "label" in reader.source.column_names and "label" not in reader.columns:
            reader = reader._replace(columns=[*reader.columns, "label"])
        parts = zip(*self.run(functools.partial(_gather, reader, self.steps), self._blocks), strict=True)
        return _Arrays(*(None if part[0] is None else np.concatenate(part) for part in parts))  # type: ignore[arg-type]

    def in_group(self, group: int) -> Candidates:
        """The candidates of one group, as one group."""
        at = self._arrays.group == group
        row, hardness, label, of = (None if each is None else each[at] for each in self._arrays)
        held = _Arrays(row, hardness, label, np.zeros_like(of))  # type: ignore[arg-type]
        return replace(self.then(_InGroup(group)), groups=1, held=held)

    def among(self, rows: Int64s) -> Candidates:
        """Those of these numbers, ascending."""
        return self.then(_Among(rows))

    # -- what does not -------------------------------------------------------------------------------------------

    @property
    def sizes(self) -> Int64s:
        """(G,) how many candidates each group has."""
        counted = next(iter(self._counts), self.counted_by)
        return self._first_digits(counted).sum(axis=1)  # type: ignore[no-any-return]

    def take(self, order: Order, count: npt.ArrayLike, skip: npt.ArrayLike = 0) -> Candidates:
        """Of each group the first ``count`` in an order, after the first ``skip``.

        Args:
            order: ``"hardest"`` or ``"easiest"`` first, or ``"random"``, seeded. Ties are broken by the seed, for the
                easiest the other way round, so that they are all but the hardest.
            count: how many, one number or (G,).
            skip: likewise.
        """
        skip, count = (np.broadcast_to(np.asarray(each, np.int64), self.groups) for each in (skip, count))
        if order == "easiest":
            return self._between("hardest", self.sizes - skip - count, self.sizes - skip)
        return self._between(order, skip, skip + count)

    def drop(self, order: Order, count: npt.ArrayLike) -> Candidates:
        """All but the first ``count`` of each group in an order."""
        count = np.broadcast_to(np.asarray(count, np.int64), self.groups)
        return self.take(order, self.sizes - count, skip=count) if count.any() else self

    def split(self, strata: int) -> Candidates:
        """Each group in ``strata`` + 1 groups, by hardness: strata of equal width, then the infinite ones."""
        spans = np.tile([np.inf, -np.inf], (self.groups, 1))
        for low, high in self.run(functools.partial(_spans, self.reader, self.steps, self.groups), self._blocks):
            spans = np.stack([np.minimum(spans[:, 0], low), np.maximum(spans[:, 1], high)], axis=1)
        split = self.then(_Split(spans, strata))
        return replace(split, groups=self.groups * (strata + 1), counted_by="random")

    def _between(self, order: Order, above: Int64s, within: Int64s) -> Candidates:
        counts = self._first_digits(order)
        wanted = [above, within] if above.any() else [within]
        ranking = functools.partial(_ranking, self.reader, self.steps, order)
        limits = find_limits(self.run, ranking, self._blocks, counts, wanted)
        last = None if (within >= counts.sum(axis=1)).all() else limits[-1]
        first = limits[0] if len(limits) > 1 else None
        return self.then(_Between(order, self.reader.seed, first, last)) if first or last else self

    def _first_digits(self, order: Order) -> Int64s:
        if order not in self._counts:
            ranking = functools.partial(_ranking, self.reader, self.steps, order)
            rows = len(self.reader.source)
            self._counts[order] = first_digits(self.run, ranking, self._blocks, self.groups, rows)
        return self._counts[order]

    def then(self, step: Step) -> Candidates:
        """What a further step leaves."""
        return replace(self, steps=(*self.steps, step), held=None)

    @property
    def _blocks(self) -> range:
        return range(self.reader.source.num_blocks)

    def chosen(self, positions: Any, budget: int, method: str) -> Int64s:
        """The row numbers at the positions that a method gave.

        Raises:
            ArgumentError: they are not exactly ``budget`` distinct positions among the candidates.
        """
        array, size = np.asarray(positions), len(self.rows)
        rule = f"{method} must give {budget} distinct positions in [0, {size}) as integers"
        if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
            raise ArgumentError("method", rule, f"{array.dtype} of shape {array.shape}")
        if len(array) and (array.min() < 0 or array.max() >= size):
            raise ArgumentError("method", rule, f"positions {array.min()} to {array.max()}")
        if len(array) != budget or (distinct := len(np.unique(array))) != budget:
            found = f"{len(array)} positions" if len(array) != budget else f"{distinct} distinct positions"
            raise ArgumentError("method", rule, found)
        return self.rows[array.astype(np.int64)]


def apply(steps: Sequence[Step], rows: Rows) -> Rows:
    """What all steps leave of the rows."""
    for step in steps:
        rows = step(rows)
    return rows


def _ranking(reader: Reader, steps: Sequence[Step], order: Order, block: int) -> Iterator[Ranked]:
    return (apply(steps, rows).ranked(order, reader.seed) for rows in reader.slices(block))


def _spans(reader: Reader, steps: Sequence[Step], groups: int, block: int) -> tuple[Any, Any]:
    """Of each group the lowest and the highest finite hardness."""
    low, high = np.full(groups, np.inf), np.full(groups, -np.inf)
    for rows in reader.slices(block):
        rows = apply(steps, rows)
        rows = rows.part(np.isfinite(rows.hardness))
        if rows.group is None:
            low[0], high[0] = rows.hardness.min(initial=low[0]), rows.hardness.max(initial=high[0])
        else:
            np.minimum.at(low, rows.group, rows.hardness)
            np.maximum.at(high, rows.group, rows.hardness)
    return low, high


def _gather(reader: Reader, steps: Sequence[Step], block: int) -> tuple[Any, ...]:
    columns: tuple[list[Any], ...] = [], [], [], []
    for rows in reader.slices(block):
        rows = apply(steps, rows)
        labels, group = rows.table.labels, np.zeros(len(rows.row), np.int64) if rows.group is None else rows.group
        for column, values in zip(columns, (rows.row, rows.hardness, labels, group), strict=True):
            column.append(rows.of(values) if values is labels and values is not None else values)
    return tuple(None if column[0] is None else np.concatenate(column) for column in columns)
