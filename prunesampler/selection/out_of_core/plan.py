"""What decides which rows of a block are kept, and what is counted on the way to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prunesampler.selection.candidates import strata_of
from prunesampler.selection.out_of_core.cuts import Candidates, Cuts
from prunesampler.selection.out_of_core.reading import Header, first_of, group_of
from prunesampler.selection.select import Selection, tie_keys
from prunesampler.selection.superfluous import superfluous
from prunesampler.tables.columns import Int64s
from prunesampler.tables.parquet import to_arrow
from prunesampler.tables.score_table import ScoreTable

__all__ = ["Plan", "census", "kept", "kept_rows", "rest", "scored", "spans", "spare", "without_score"]

_SLICE = 65_536  # rows whose arrays stay in a processor's cache
_FORGETTING = ("forgetting_events", "learned", "presentations")


@dataclass(frozen=True)
class Plan:
    """What is known so far of the rows to keep, group by group; a group is one class, several or all of them.

    Attributes:
        file: the scores.
        selection: the options.
        labels: (C,) int32, ascending; the classes, where they matter.
        groups: (C,) the group of each of these, −1 for none.
        unscored: among rows without a score, those to keep.
        hardest: those to leave out.
        spans: (G, 2) float64, lowest and highest finite hardness of the rest.
        chosen: among the rest, stratum by stratum where there are strata; where the hardest are taken first, among
            all with a score.
        spare: among superfluous rows, those to keep for their class.
    """

    file: Header
    selection: Selection
    labels: npt.NDArray[np.int32] | None
    groups: Int64s
    unscored: Cuts | None = None
    hardest: Cuts | None = None
    spans: npt.NDArray[np.float64] | None = None
    chosen: Cuts | None = None
    spare: Cuts | None = None

    @property
    def columns(self) -> list[str]:
        """Those of the file that decide."""
        by = self.selection.by
        names = {"label"} if self.labels is not None else set()
        if self.selection.method != "random":
            names |= {*_FORGETTING} if by == "forgetting" and by not in self.file.types else {by}
        if self.selection.keep == "auto":
            names |= {*_FORGETTING, by, f"{by}_spread"}
        return [name for name in self.file.types if name in names]


@dataclass(frozen=True)
class _Rows:
    """Rows that belong to a group (None: all to one), with what decides about them, and their places in a block."""

    table: ScoreTable
    seed: int
    places: Int64s | None
    row: Int64s
    hardness: npt.NDArray[np.float32]
    group: Int64s | None

    def part(self, mask: npt.NDArray[np.bool_]) -> _Rows:
        if mask.all():
            return self
        at = np.flatnonzero(mask)
        places = at if self.places is None else self.places[at]
        group = None if self.group is None else self.group[at]
        return _Rows(self.table, self.seed, places, self.row[at], self.hardness[at], group)

    def of(self, column: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return column if self.places is None else column[self.places]

    def hardest_first(self) -> Candidates:
        return Candidates.by_value(self.group, -self.hardness, self.row, self.seed)

    def by_lot(self) -> Candidates:
        return Candidates.by_lot(self.group, self.row, self.seed)


def _tables(plan: Plan, block: int, more: Sequence[str] = ()) -> Iterator[ScoreTable]:
    return group_of(plan.file, block, [*plan.columns, *more], _SLICE)


def _member(plan: Plan, table: ScoreTable) -> _Rows:
    """Of the rows those that belong to a group."""
    hardness = plan.selection.hardness(table)
    found = _Rows(table, plan.selection.seed, None, table.rows, hardness, None)
    if plan.labels is None:
        return found
    group = plan.groups[np.searchsorted(plan.labels, table.labels)]  # type: ignore[arg-type]
    return _Rows(table, plan.selection.seed, None, table.rows, hardness, group).part(group >= 0)


def _members(plan: Plan, block: int) -> Iterator[_Rows]:
    return (_member(plan, table) for table in _tables(plan, block))


# -- candidates, block by block ----------------------------------------------------------------------------------


def without_score(plan: Plan, block: int) -> Iterator[Candidates]:
    """Rows without a score, in the order of the lot."""
    return (found.part(np.isnan(found.hardness)).by_lot() for found in _members(plan, block))


def scored(plan: Plan, block: int) -> Iterator[Candidates]:
    """Rows with a score, the hardest first."""
    return (found.part(~np.isnan(found.hardness)).hardest_first() for found in _members(plan, block))


def _easier(plan: Plan, scored: _Rows) -> _Rows:
    """Those that are not left out as the hardest."""
    return scored if plan.hardest is None else scored.part(~plan.hardest.within(scored.hardest_first()))


def rest(plan: Plan, block: int) -> Iterator[Candidates]:
    """What is left of them without the hardest, by lot; each stratum is a group of its own."""
    for found in _members(plan, block):
        yield _drawn(plan, _easier(plan, found.part(~np.isnan(found.hardness))))


def _drawn(plan: Plan, found: _Rows) -> Candidates:
    lot = found.by_lot()
    if plan.spans is None:
        return lot
    strata = plan.selection.strata
    hardness = found.hardness.astype(np.float64)
    finite = np.isfinite(hardness)
    if found.group is None and finite.all():
        low, high = plan.spans[0].tolist()
        stratum = strata_of(hardness, low, high, strata).astype(np.int64)
        return Candidates(stratum, lot.first, lot.row, lot.seed)
    group = np.zeros(len(hardness), np.int64) if found.group is None else found.group
    stratum = np.full(len(hardness), strata, np.int64)
    for each in np.unique(group[finite]).tolist():
        its = finite & (group == each)
        low, high = plan.spans[each].tolist()
        stratum[its] = strata_of(hardness[its], low, high, strata)
    return Candidates(group * (strata + 1) + stratum, lot.first, lot.row, lot.seed)


def spare(plan: Plan, block: int) -> Iterator[Candidates]:
    """Superfluous rows, the hardest first."""
    return (found.part(_is_spare(plan, found)).hardest_first() for found in _members(plan, block))


def _is_spare(plan: Plan, found: _Rows) -> npt.NDArray[np.bool_]:
    threshold = plan.selection.threshold
    assert threshold is not None
    mask: npt.NDArray[np.bool_] = found.of(superfluous(found.table, plan.selection.by, threshold))
    return mask


def _kept(plan: Plan, found: _Rows) -> npt.NDArray[np.bool_]:
    if plan.spare is not None:
        return ~_is_spare(plan, found) | plan.spare.within(found.hardest_first())
    assert plan.chosen is not None
    without = np.isnan(found.hardness)
    scored = found.part(~without)
    if plan.selection.method in ("stratified", "random"):
        if plan.hardest is None:
            kept = plan.chosen.within(_drawn(plan, scored))
        else:
            kept = ~plan.hardest.within(scored.hardest_first())
            kept[np.flatnonzero(kept)] = plan.chosen.within(_drawn(plan, scored.part(kept)))
    else:
        ranked = scored.hardest_first()
        kept = plan.chosen.within(ranked)
        if plan.hardest is not None:
            kept &= ~plan.hardest.within(ranked)
    if len(kept) == len(without):
        return kept
    mask = np.zeros(len(without), np.bool_)
    mask[~without] = kept
    if plan.unscored is not None:
        mask[without] = plan.unscored.within(found.part(without).by_lot())
    return mask


# -- counts, block by block --------------------------------------------------------------------------------------


def census(plan: Plan, block: int) -> pa.Table:
    """Of each class its rows, those with a score, and those that are superfluous; and the least key of all."""
    found = []
    for table in _tables(plan, block, ["label"] if plan.labels is not None else []):
        labels = np.zeros(len(table), np.int32) if plan.labels is None or table.labels is None else table.labels
        hardness = plan.selection.hardness(table)
        rows = _Rows(table, plan.selection.seed, None, table.rows, hardness, None)
        spare = _is_spare(plan, rows) if plan.selection.keep == "auto" else np.zeros(len(table), np.bool_)
        values, at = np.unique(labels, return_inverse=True)
        counted = {"rows": None, "scored": ~np.isnan(hardness), "spare": spare}
        sums = {name: np.bincount(at, mask, len(values)).astype(np.int64) for name, mask in counted.items()}
        key = tie_keys(plan.selection.seed, table.rows).min()
        found.append(pa.table({"label": values, **sums, "key": np.full(len(values), key)}))
    return pa.concat_tables(found)


def spans(plan: Plan, block: int) -> pa.Table:
    """Of each group the lowest and the highest finite hardness of the rest."""
    groups = 1 + max(0, int(plan.groups.max()))
    low, high = np.full(groups, np.inf), np.full(groups, -np.inf)
    for found in _members(plan, block):
        found = _easier(plan, found.part(~np.isnan(found.hardness)))
        found = found.part(np.isfinite(found.hardness))
        if found.group is None:
            low[0], high[0] = found.hardness.min(initial=low[0]), found.hardness.max(initial=high[0])
        else:
            np.minimum.at(low, found.group, found.hardness)
            np.maximum.at(high, found.group, found.hardness)
    return pa.table({"group": np.arange(groups), "low": low, "high": high})


def kept(plan: Plan, block: int) -> pa.Table:
    """One line on the rows that are kept: which (a bit a row of the block), how many of them, how many without a
    score, their lowest and highest finite score, and, where the file has classes, the rows of each and those kept.
    """
    bits, labels = [], [np.empty(0, np.int32)]
    count = without = 0
    low, high = np.inf, -np.inf
    more = ["label"] if "label" in plan.file.types and plan.labels is None else []
    for table in _tables(plan, block, more):
        found = _member(plan, table)
        mask = _kept(plan, found)
        if found.places is not None:
            mask, its = np.zeros(len(table), np.bool_), mask
            mask[found.places[its]] = True
        bits.append(mask)
        score = plan.selection.scores(table)[np.flatnonzero(mask)]  # quicker than by the mask itself
        count += len(score)
        without += int(np.isnan(score).sum())
        finite = np.isfinite(score)
        score = score if finite.all() else score[finite]
        low, high = score.min(initial=low), score.max(initial=high)
        if table.labels is not None:
            labels.append(table.labels)
    whole = np.concatenate(bits)
    classes, at, sizes = np.unique(np.concatenate(labels), return_inverse=True, return_counts=True)
    counts = np.bincount(at[whole] if len(at) else at, minlength=len(classes))
    summary = {"rows": [count], "unscored": [without], "low": [float(low)], "high": [float(high)]}
    by_class = {"labels": [classes.tolist()], "sizes": [sizes.tolist()], "counts": [counts.tolist()]}
    return pa.table({"block": [block], "kept": [np.packbits(whole).tobytes()], **summary, **by_class})


def kept_rows(file: Header, found: pa.Table) -> pa.Table:
    """The columns of a coreset, from lines of :func:`kept`."""
    parts = []
    names = [name for name in ("shard", "key") if name in file.types]
    for block, bits in zip(found["block"].to_pylist(), found["kept"].to_pylist(), strict=True):
        places = np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8)).view(np.bool_))
        if file.complete and not names:
            parts.append(pa.table({"row": places + first_of(file, block)}))
            continue
        for table in group_of(file, block, names):
            columns = {"row": table.rows, "shard": table.shard_column, "key": table.key_column}
            columns = {name: to_arrow(each.take(places)) for name, each in columns.items() if each is not None}
            parts.append(pa.table(columns))
    return pa.concat_tables(parts)
