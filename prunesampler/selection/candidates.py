"""Rows to choose from: in memory or in a file, they are counted, cut and split in passes over blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from prunesampler.errors import ArgumentError
from prunesampler.selection.engine import Map
from prunesampler.selection.radix_select import Limits, Mask, Ranked, UInt64s, find_limits, first_digits, tie_keys
from prunesampler.tables.columns import Int64s
from prunesampler.tables.score_file import ScoreFile
from prunesampler.tables.score_table import ScoreTable

if TYPE_CHECKING:  # which needs torch; scores alone do not
    from prunesampler.selection.features import Features

Order = Literal["hardest", "easiest", "random"]

_SLICE = 65_536  # rows whose arrays stay in a processor's cache


class TableSource:
    """A table in memory as one block, to be read like a ScoreFile: the rows at some places, ascending."""

    num_blocks = 1

    def __init__(self, table: ScoreTable, places: Int64s) -> None:
        self.table, self.places = table, places
        self.directions, self.column_names, self.num_rows = table.directions, table.column_names, table.num_rows
        self._all = len(places) == len(table)

    def __len__(self) -> int:
        return len(self.places)

    def block(self, number: int, columns: Sequence[str], size: int) -> Iterator[ScoreTable]:
        """Parts of the table, not checked again."""
        held, metadata = self.table._columns(), self.table._metadata()
        for start in range(0, len(self), size):
            at = slice(start, start + size) if self._all else self.places[start : start + size]
            yield ScoreTable._view(metadata, {name: held[name][at] for name in ("row", *columns)})


Source = TableSource | ScoreFile


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a slice of a block: ``places`` in it (None: all), and the group of each (None: all in one)."""

    table: ScoreTable
    all_hardness: npt.NDArray[np.float32]
    places: Int64s | None = None
    group: Int64s | None = None

    def __len__(self) -> int:
        return len(self.table if self.places is None else self.places)

    @functools.cached_property
    def row(self) -> Int64s:
        """(B,) their numbers."""
        return self.of(self.table.rows)  # type: ignore[no-any-return]

    @functools.cached_property
    def hardness(self) -> npt.NDArray[np.float32]:
        """(B,) NaN where a row has no score."""
        return self.of(self.all_hardness)  # type: ignore[no-any-return]

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

    def after(self, steps: Sequence[Step]) -> Rows:
        """What these steps leave of them."""
        return functools.reduce(lambda rows, step: step(rows), steps, self)

    def ranked(self, order: Order, seed: int) -> Ranked:
        """The rows in an order other than the easiest first."""
        if order == "random":
            return Ranked.at_random(self.group, self.row, seed)
        return Ranked.by_float(self.group, -self.hardness, self.row, seed)


Step = Callable[[Rows], Rows]
"""Takes some of the rows, or groups them."""


class Reader(NamedTuple):
    """What is read of a source: these columns, and of each row its hardness."""

    source: Source
    columns: list[str]
    hardness: Callable[[ScoreTable], npt.NDArray[np.float32]]
    seed: int

    def with_labels(self) -> Reader:
        """Labels are read too, where there are any."""
        missing = "label" in self.source.column_names and "label" not in self.columns
        return self._replace(columns=[*self.columns, "label"]) if missing else self

    def slices(self, block: int, steps: Sequence[Step] = ()) -> Iterator[Rows]:
        """The rows of a block, some at a time, after these steps."""
        for table in self.source.block(block, self.columns, _SLICE):
            yield Rows(table, self.hardness(table)).after(steps)

    def each_block(self, run: Map, work: Callable[..., Any], *given: Any) -> list[Any]:
        """``work(reader, *given, block)`` of every block."""
        return list(run(functools.partial(work, self, *given), range(self.source.num_blocks)))


class Arrays(NamedTuple):
    """The candidates of a method for data that fits into memory: one value per candidate, rows ascending."""

    rows: Int64s  # (E,)
    hardness: npt.NDArray[np.float32]  # (E,) higher is harder, +inf where never learned; zeros where no score is read
    labels: npt.NDArray[np.int32] | None  # (E,) class indices, −1 for none; None where the scores have no labels
    ties: UInt64s  # (E,) distinct, by seed and row: in their order equals are to be taken
    columns: Mapping[str, npt.NDArray[np.float32]]  # (E,) other scores that the method's options name
    features: Features | None  # (E, d), where they were given

    def at(self, positions: Any, budget: int | None, method: str) -> Int64s:
        """The row numbers at the positions that a method gave: distinct ones, ``budget`` of them unless it is None."""
        array, size = np.asarray(positions), len(self.rows)
        count = "" if budget is None else f"{budget} "
        rule = f"{method} must give {count}distinct positions in [0, {size}) as integers"
        if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
            raise ArgumentError("method", rule, f"{array.dtype} of shape {array.shape}")
        if len(array) and (array.min() < 0 or array.max() >= size):
            raise ArgumentError("method", rule, f"positions {array.min()} to {array.max()}")
        if budget is not None and len(array) != budget:
            raise ArgumentError("method", rule, f"{len(array)} positions")
        if (distinct := len(np.unique(array))) != len(array):
            raise ArgumentError("method", rule, f"{distinct} distinct positions")
        return self.rows[array.astype(np.int64)]


@dataclass(frozen=True, eq=False)
class Candidates:
    """Rows to choose from, all with a score unless the method reads none. What a selection method gets and gives.

    :meth:`take`, :meth:`drop` and :meth:`split` say what is chosen without holding it. Candidates are in groups, one
    or one per class, and counts are of each group.
    """

    run: Map
    reader: Reader
    steps: tuple[Step, ...] = ()
    groups: int = 1
    counted_by: Order = "hardest"
    features: Features | None = None  # of the dataset's rows
    _counts: dict[Order, Int64s] = field(default_factory=dict, init=False)  # a pass over the blocks is made once

    @property
    def sizes(self) -> Int64s:
        """(G,) how many candidates each group has."""
        counted = next(iter(self._counts), self.counted_by)
        return self._first_digits(counted).sum(axis=1)  # type: ignore[no-any-return]

    def take(self, order: Order, count: npt.ArrayLike, skip: npt.ArrayLike = 0) -> Candidates:
        """Of each group the first ``count`` in an order, after the first ``skip``: each one number or (G,).

        Ties are broken by the seed, for the easiest the other way round, so that they are all but the hardest.
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
        low, high = zip(*self.reader.each_block(self.run, _span, self.steps, self.groups), strict=True)
        split = self.then(_split, np.min(low, axis=0), np.max(high, axis=0), strata)
        return replace(split, groups=self.groups * (strata + 1), counted_by="random")

    def then(self, step: Callable[..., Rows], *given: Any) -> Candidates:
        """What a further step leaves: a function of ``given`` and rows that other processes can import."""
        return replace(self, steps=(*self.steps, functools.partial(step, *given)))

    def arrays(self, columns: Sequence[str] = ()) -> Iterator[Arrays]:
        """Of each group, in memory, with these other scores of it."""
        parts = zip(*self.reader.with_labels().each_block(self.run, _gather, self.steps, columns), strict=True)
        found: list[Any] = [None if part[0] is None else np.concatenate(part) for part in parts]
        group = found.pop()
        for number in range(self.groups):
            at = group == number
            part: list[Any] = [None if column is None else column[at] for column in found]
            row, hardness, label, *others = part
            features = None if self.features is None else self.features.only(row)
            ties, named = tie_keys(self.reader.seed, row), dict(zip(columns, others, strict=True))
            yield Arrays(row, hardness, label, ties, named, features)

    def _between(self, order: Order, above: Int64s, within: Int64s) -> Candidates:
        """Of each group the rows after the first ``above``, up to ``within``."""
        counts = self._first_digits(order)
        wanted = [above, within] if above.any() else [within]
        limits = find_limits(*self._pass(order), counts, wanted)
        last = None if (within >= counts.sum(axis=1)).all() else limits[-1]
        first = limits[0] if len(limits) > 1 else None
        return self.then(_within, order, self.reader.seed, first, last) if first or last else self

    def _first_digits(self, order: Order) -> Int64s:
        if order not in self._counts:
            self._counts[order] = first_digits(*self._pass(order), self.groups, len(self.reader.source))
        return self._counts[order]

    def _pass(self, order: Order) -> tuple[Map, Callable[[int], Iterator[Ranked]], range]:
        """Where, in which order, and over which blocks rows are counted."""
        return (
            self.run,
            functools.partial(_ranked, self.reader, self.steps, order),
            range(self.reader.source.num_blocks),
        )


# -- steps ---------------------------------------------------------------------------------------------------------


def _within(order: Order, seed: int, above: Limits | None, within: Limits | None, rows: Rows) -> Rows:
    ranked = rows.ranked(order, seed)
    mask = np.ones(len(rows), np.bool_) if within is None else within.within(ranked)
    if above is not None:
        mask &= ~above.within(ranked)
    return rows.part(mask)


def _split(low: npt.NDArray[np.float64], high: npt.NDArray[np.float64], strata: int, rows: Rows) -> Rows:
    """Each group in strata of equal width between its lowest and highest value, and one of infinite values."""
    hardness = rows.hardness.astype(np.float64)
    group = np.int64(0) if rows.group is None else rows.group
    least, most = (each.item() if rows.group is None else each[group] for each in (low, high))
    with np.errstate(invalid="ignore", over="ignore"):
        width = np.where(most > least, most - least, 1.0)
        stratum = np.minimum((hardness - least) / width * strata, strata - 1)
        stratum = np.where(np.isfinite(hardness), stratum, strata).astype(np.int64)
    return replace(rows, group=group * (strata + 1) + stratum)


# -- work on a block -----------------------------------------------------------------------------------------------


def _ranked(reader: Reader, steps: Sequence[Step], order: Order, block: int) -> Iterator[Ranked]:
    return (rows.ranked(order, reader.seed) for rows in reader.slices(block, steps))


def _span(reader: Reader, steps: Sequence[Step], groups: int, block: int) -> tuple[Any, Any]:
    """Of each group the lowest and the highest finite hardness."""
    low, high = np.full(groups, np.inf), np.full(groups, -np.inf)
    for rows in reader.slices(block, steps):
        rows = rows.part(np.isfinite(rows.hardness))
        if rows.group is None:
            low[0], high[0] = rows.hardness.min(initial=low[0]), rows.hardness.max(initial=high[0])
        else:
            np.minimum.at(low, rows.group, rows.hardness)
            np.maximum.at(high, rows.group, rows.hardness)
    return low, high


def _gather(reader: Reader, steps: Sequence[Step], columns: Sequence[str], block: int) -> tuple[Any, ...]:
    parts = []
    for rows in reader.slices(block, steps):
        labels, group = rows.table.labels, np.zeros(len(rows), np.int64) if rows.group is None else rows.group
        others = (rows.of(rows.table.column(name)) for name in columns)
        parts.append((rows.row, rows.hardness, None if labels is None else rows.of(labels), *others, group))
    return tuple(None if column[0] is None else np.concatenate(column) for column in zip(*parts, strict=True))
