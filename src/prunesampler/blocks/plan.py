"""What decides which rows of a block are kept, and what is counted on the way to it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prunesampler.blocks.cuts import Candidates, Cuts
from prunesampler.blocks.reading import Header, Range, table_of
from prunesampler.columns import Int64s
from prunesampler.files import to_arrow
from prunesampler.pool import strata_of
from prunesampler.selection import Selection, tie_keys
from prunesampler.superfluous import superfluous
from prunesampler.tables import ScoreTable

__all__ = [
    "Plan",
    "census",
    "kept_labels",
    "kept_rows",
    "kept_summary",
    "rest",
    "rest_counts",
    "scored",
    "spans",
    "spare",
    "without_score",
]


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
        chosen: among the rest, stratum by stratum where there are strata.
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


@dataclass(frozen=True)
class _Rows:
    """Those of a block that belong to a group, with what decides about them."""

    table: ScoreTable
    places: Int64s
    hardness: npt.NDArray[np.float32]
    key: npt.NDArray[np.uint64]
    group: Int64s

    def part(self, mask: npt.NDArray[np.bool_]) -> _Rows:
        return _Rows(self.table, self.places[mask], self.hardness[mask], self.key[mask], self.group[mask])

    def hardest_first(self) -> Candidates:
        return Candidates(self.group, -self.hardness, self.key)

    def by_lot(self) -> Candidates:
        return Candidates(self.group, np.zeros(len(self.key), np.float32), self.key)


def _rows(plan: Plan, rows: Range) -> _Rows | None:
    table = table_of(plan.file, rows)
    if table is None:
        return None
    group = np.zeros(len(table), np.int64)
    if plan.labels is not None:
        assert table.labels is not None
        group = plan.groups[np.searchsorted(plan.labels, table.labels)]
    selection = plan.selection
    hardness = selection.hardness(table)
    found = _Rows(table, np.arange(len(table)), hardness, tie_keys(selection.seed, table.rows), group)
    return found.part(group >= 0)


def _empty() -> Candidates:
    return Candidates(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.uint64))


# -- candidates, block by block ----------------------------------------------------------------------------------


def without_score(plan: Plan, rows: Range) -> Candidates:
    """Rows without a score, in the order of the lot."""
    found = _rows(plan, rows)
    return _empty() if found is None else found.part(np.isnan(found.hardness)).by_lot()


def scored(plan: Plan, rows: Range) -> Candidates:
    """Rows with a score, the hardest first."""
    found = _rows(plan, rows)
    return _empty() if found is None else found.part(~np.isnan(found.hardness)).hardest_first()


def _easier(plan: Plan, rows: Range) -> _Rows | None:
    """Those with a score that are not left out as the hardest."""
    found = _rows(plan, rows)
    if found is None or plan.hardest is None:
        return None
    found = found.part(~np.isnan(found.hardness))
    return found.part(~plan.hardest.within(found.hardest_first()))


def rest(plan: Plan, rows: Range) -> Candidates:
    """What is left of them without the hardest, in the order in which the method takes it."""
    found = _easier(plan, rows)
    return _empty() if found is None else _ordered(plan, found)


def _ordered(plan: Plan, found: _Rows) -> Candidates:
    """The rest in the order in which the method takes them; each stratum is a group of its own."""
    if plan.selection.method != "stratified":
        return found.by_lot() if plan.selection.method == "random" else found.hardest_first()
    assert plan.spans is not None
    strata = plan.selection.strata
    hardness = found.hardness.astype(np.float64)
    finite = np.isfinite(hardness)
    stratum = np.full(len(hardness), strata, np.int64)
    for group in np.unique(found.group[finite]).tolist():
        its = finite & (found.group == group)
        stratum[its] = strata_of(hardness[its], plan.spans[group, 0], plan.spans[group, 1], strata)
    lot = found.by_lot()
    return replace(lot, group=lot.group * (strata + 1) + stratum)


def spare(plan: Plan, rows: Range) -> Candidates:
    """Superfluous rows, the hardest first."""
    found = _rows(plan, rows)
    return _empty() if found is None else found.part(_is_spare(plan, found)).hardest_first()


def _is_spare(plan: Plan, found: _Rows) -> npt.NDArray[np.bool_]:
    threshold = plan.selection.threshold
    assert threshold is not None
    return superfluous(found.table, plan.selection.by, threshold)[found.places]


def _kept(plan: Plan, rows: Range) -> _Rows | None:
    found = _rows(plan, rows)
    if found is None:
        return None
    if plan.spare is not None:
        return found.part(~_is_spare(plan, found) | plan.spare.within(found.hardest_first()))
    assert plan.unscored is not None
    assert plan.hardest is not None
    assert plan.chosen is not None
    kept = np.isnan(found.hardness)
    scored = found.part(~kept)
    kept[kept] = plan.unscored.within(found.part(kept).by_lot())
    left = ~plan.hardest.within(scored.hardest_first())
    left[left] = plan.chosen.within(_ordered(plan, scored.part(left)))
    kept[~np.isnan(found.hardness)] = left
    return found.part(kept)


# -- counts, block by block --------------------------------------------------------------------------------------


def census(plan: Plan, rows: Range) -> pa.Table:
    """Of each class its rows, those with a score, and those that are superfluous."""
    table = table_of(plan.file, rows)
    if table is None:
        return pa.table({})
    key = tie_keys(plan.selection.seed, table.rows)
    found = _Rows(table, np.arange(len(table)), plan.selection.hardness(table), key, np.zeros(len(table), np.int64))
    labels = np.zeros(len(table), np.int32) if plan.labels is None or table.labels is None else table.labels
    spare = _is_spare(plan, found) if plan.selection.keep == "auto" else np.zeros(len(table), np.bool_)
    values, at = np.unique(labels, return_inverse=True)
    counted = {"rows": None, "scored": ~np.isnan(found.hardness), "spare": spare}
    sums = {name: np.bincount(at, mask, len(values)).astype(np.int64) for name, mask in counted.items()}
    return pa.table({"label": values, **sums, "key": np.full(len(values), key.min())})


def spans(plan: Plan, rows: Range) -> pa.Table:
    """Of each group the lowest and the highest finite hardness of the rest."""
    found = _easier(plan, rows)
    if found is None:
        return pa.table({})
    found = found.part(np.isfinite(found.hardness))
    hardness = found.hardness.astype(np.float64)
    groups, at = np.unique(found.group, return_inverse=True)
    low, high = np.full(len(groups), np.inf), np.full(len(groups), -np.inf)
    np.minimum.at(low, at, hardness)
    np.maximum.at(high, at, hardness)
    return pa.table({"group": groups, "low": low, "high": high})


def rest_counts(plan: Plan, rows: Range) -> pa.Table:
    """How many rows each group of :func:`rest` has."""
    groups, counts = np.unique(rest(plan, rows).group, return_counts=True)
    return pa.table({"group": groups, "count": counts})


def kept_labels(plan: Plan, rows: Range) -> pa.Table:
    """How many rows of each class are kept."""
    found = _kept(plan, rows)
    if found is None:
        return pa.table({})
    assert found.table.labels is not None
    labels, counts = np.unique(found.table.labels[found.places], return_counts=True)
    return pa.table({"label": labels, "count": counts})


def kept_summary(plan: Plan, rows: Range) -> pa.Table:
    """How many rows are kept, how many of them without a score, and their lowest and highest finite score."""
    found = _kept(plan, rows)
    if found is None:
        return pa.table({})
    score = plan.selection.scores(found.table)[found.places]
    finite = score[np.isfinite(score)]
    span = {"low": [finite.min(initial=np.inf)], "high": [finite.max(initial=-np.inf)]}
    return pa.table({"rows": [len(score)], "unscored": [int(np.isnan(score).sum())], **span})


def kept_rows(plan: Plan, rows: Range) -> pa.Table:
    """The columns of a coreset."""
    found = _kept(plan, rows)
    if found is None:
        return pa.table({})
    table, places = found.table, found.places
    columns = {"row": table.rows, "shard": table.shard_column, "key": table.key_column}
    return pa.table({name: to_arrow(each.take(places)) for name, each in columns.items() if each is not None})
