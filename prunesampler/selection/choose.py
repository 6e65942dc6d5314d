"""From options and a source of scores to the rows that are kept: in memory, from a file, and on a cluster."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from prunesampler._random import hash64, mix
from prunesampler.errors import ArgumentError
from prunesampler.selection.candidates import Candidates, Reader, Rows, Source, Step
from prunesampler.selection.engine import Map
from prunesampler.selection.label_errors import Evidence, disagreement, evidence_of
from prunesampler.selection.radix_select import tie_keys
from prunesampler.selection.registry import check_method, name_of
from prunesampler.selection.superfluous import superfluous
from prunesampler.tables.columns import Int64s

Selection = Any  # prunesampler.selection.select.Selection, which imports this module

_DRAWS = 0x64726177  # keeps what methods draw apart from the keys that break ties

Classes = dict[int, tuple[int, int]]
"""Label → how many rows have it, and how many of them are kept."""


@dataclass(frozen=True)
class Kept:
    """Which rows of a block are kept, one bit per row, and their counts."""

    block: int
    bits: bytes
    rows: int
    unscored: int
    lowest: float
    highest: float
    classes: Classes

    @property
    def places(self) -> Int64s:
        """Their places in the block, ascending."""
        return np.flatnonzero(np.unpackbits(np.frombuffer(self.bits, np.uint8)).view(np.bool_))


def choose(
    run: Map, source: Source, selection: Selection, *, count_classes: bool = False
) -> tuple[list[Kept], dict[str, Any]]:
    """Which rows are kept, block by block, and the ``selection`` of the coreset."""
    selection.check_columns(source)
    choice = _Choice(run, source, selection, count_classes)
    rules = {"auto": choice.all_but_superfluous, "clean": choice.all_but_wrong}
    if check_method(selection.method).default_threshold is not None:
        kept, found = choice.uncounted()
    else:
        kept, found = rules[selection.keep]() if isinstance(selection.keep, str) else choice.budgeted()
    if not (rows := sum(each.rows for each in kept)):
        raise ArgumentError("threshold", f"must leave one of the {len(source)} eligible rows", selection.threshold)
    span = min(each.lowest for each in kept), max(each.highest for each in kept)
    if source.directions.get(selection.by) == "lower":
        span = -span[1], -span[0]
    scored = choice.reads_scores and math.isfinite(span[0])
    return kept, {
        **found,
        "options": selection.to_dict(),
        "kept": rows,
        "unscored": sum(each.unscored for each in kept),
        "threshold": [each + 0.0 for each in span] if scored else None,  # −0 is 0
    }


class _Choice:
    def __init__(self, run: Map, source: Source, selection: Selection, count_classes: bool) -> None:
        self.run, self.selection = run, selection
        self.method = check_method(selection.method)
        self.reads_scores = selection.reads_scores
        self.by_class = selection.class_balanced or selection.min_per_class is not None
        self.count_classes = "label" in source.column_names and (count_classes or self.by_class)
        auto = isinstance(selection.keep, str)
        drops = selection.unscored == "drop" and not auto and self.reads_scores
        self.bare = replace(selection, features=None)  # what reads blocks may be sent to another process
        self.reader = Reader(source, self._columns(source.column_names), self.bare.hardness, selection.seed)
        self.labels, self.rows = np.array([0]), np.array([len(source)])
        if self.by_class or drops or auto:
            labels, *counts, keys = zip(*self.reader.each_block(run, _census, self.bare, self.by_class), strict=True)
            self.least_key = min(keys)
            counted = _per_class(labels, *map(np.concatenate, counts))
            self.labels, self.rows, self.scored, self.useless = counted
        self.members = self.scored if drops else self.rows

    def _columns(self, held: Sequence[str]) -> list[str]:
        """Those of the source that decide."""
        by, counts = self.selection.by, {"forgetting_events", "learned", "presentations"}
        names = {"label"} if self.by_class else set()
        for score in ((by,) if self.reads_scores else ()) + self.selection.other_scores:
            names |= counts if score == "forgetting" and score not in held else {score}
        if self.selection.removes_superfluous:
            names |= {*counts, by, f"{by}_spread"}
        elif self.selection.keep == "clean":
            names |= {"label", "suggested_label", "signed_confidence"}
        return [name for name in held if name in names]

    def _kept(self, chosen: Sequence[Candidates]) -> list[Kept]:
        reader = self.reader.with_labels() if self.count_classes else self.reader
        return reader.each_block(self.run, _kept, [each.steps for each in chosen], self.count_classes)

    def all_but_superfluous(self) -> tuple[list[Kept], dict[str, Any]]:
        """Of a class that would be left below ``min_per_class`` the hardest of the superfluous rows stay."""
        everything = self._candidates(np.arange(len(self.labels)))
        chosen = [everything.then(_superfluous, self.bare, False)]
        if floor := self.selection.min_per_class:
            missing = np.maximum(0, floor - (self.rows - self.useless)) * (self.labels >= 0)
            chosen.append(everything.then(_superfluous, self.bare, True).take("hardest", missing))
        found = {"eligible": int(self.rows.sum()), "superfluous": int(self.useless.sum()), "offset": None}
        return self._kept(chosen), found

    def all_but_wrong(self) -> tuple[list[Kept], dict[str, Any]]:
        """Of a class that would be left below ``min_per_class`` the least likely wrong rows stay; all of them where
        most labels look wrong.

        What is looked at is held at once: 20 bytes a row.
        """
        columns = zip(*self.reader.each_block(self.run, _answers), strict=True)
        rows, *evidence = (np.concatenate(parts) for parts in columns)
        errors = disagreement(Evidence(*evidence))
        wrong = errors.wrong(self.selection.threshold)
        labels, found = evidence[0], {"eligible": len(rows), "wrong": int(wrong.sum()), "offset": None}
        if errors.rate > 0.5:  # a model that errs that often has not learned what tells
            wrong[:] = False
        if floor := self.selection.min_per_class:
            for label, size in zip(self.labels.tolist(), self.rows.tolist(), strict=True):
                at = np.flatnonzero(wrong & (labels == label))
                spared = max(0, min(len(at), floor - (size - len(at)))) if label >= 0 else 0
                wrong[at[np.argsort(errors.probability[at], kind="stable")[:spared]]] = False
        gone = np.append(rows[wrong], np.iinfo(np.int64).max)
        chosen = Candidates(self.run, self.reader).then(_among, np.sort(gone), False)
        return self._kept([chosen]), {**found, "noise_rate": [errors.rate, errors.low, errors.high]}

    def uncounted(self) -> tuple[list[Kept], dict[str, Any]]:
        """What the method keeps, which says itself how many rows that are."""
        (arrays,) = self._candidates(np.array([0])).arrays(self.selection.other_scores)
        rng, options = np.random.default_rng(mix(self.selection.seed, _DRAWS)), self._options()
        rows = arrays.at(self.method.function(arrays, None, rng, **options), None, name_of(self.selection.method))
        chosen = Candidates(self.run, self.reader).then(_among, np.append(np.sort(rows), np.iinfo(np.int64).max), True)
        return self._kept([chosen]), {"eligible": int(self.rows.sum()), "offset": None}

    def _options(self) -> dict[str, Any]:
        return {**{name: getattr(self.selection, name) for name in self.method.fields}, **self.selection.method_options}

    def budgeted(self) -> tuple[list[Kept], dict[str, Any]]:
        eligible, available = int(self.rows.sum()), int(self.members.sum())
        budget = self.selection.check(eligible)
        if budget > available:
            raise ArgumentError("keep", f"must be at most the {available} rows with a score", self.selection.keep)
        offset = self.selection.resolve_offset(budget / eligible)
        kept = self._with_floor(budget, offset)
        if (found := sum(each.rows for each in kept)) != budget:
            raise ArgumentError("method", f"{name_of(self.selection.method)} must give {budget} candidates", found)
        return kept, {"eligible": eligible, "offset": offset}

    def _with_floor(self, budget: int, offset: float | None) -> list[Kept]:
        """Classes that the method would leave below the floor get this number of rows, the rest is chosen anew."""
        floor = self.selection.min_per_class
        members = zip(self.labels.tolist(), self.members.tolist(), strict=True)
        sizes = {label: min(floor, size) for label, size in members if label >= 0 and size} if floor else {}
        if (needed := sum(sizes.values())) > budget:
            rule = f"needs {needed} rows of {len(sizes)} classes, keep gives {budget}"
            raise ArgumentError("min_per_class", rule, floor)
        settled: dict[int, int] = {}
        while True:
            kept = self._kept(self._fill(settled, budget, offset))
            classes = classes_of(kept)
            short = {label: size for label, size in sizes.items() if label not in settled and classes[label][1] < size}
            if not short:
                return kept
            settled |= short
            budget -= sum(short.values())

    def _fill(self, settled: Mapping[int, int], budget: int, offset: float | None) -> list[Candidates]:
        """``budget`` rows of the classes that are not settled, and of each of the others its settled number."""
        labels, members = self.labels, self.members
        fixed = np.flatnonzero(np.isin(labels, list(settled)))
        rest = np.flatnonzero(~np.isin(labels, list(settled)) & (members > 0))
        balanced = self.selection.class_balanced
        groups = np.full(len(labels), -1)
        groups[fixed] = np.arange(len(fixed))
        groups[rest] = len(fixed) + (np.arange(len(rest)) if balanced else 0)
        budgets = [settled[label] for label in labels[fixed].tolist()]
        budgets += _class_shares(labels[rest], members[rest], budget, self.least_key) if balanced else [budget]
        sizes = np.bincount(groups[groups >= 0], members[groups >= 0], len(budgets)).astype(np.int64)
        return self._choose(self._candidates(groups), sizes, np.array(budgets), offset)

    def _candidates(self, groups: Int64s) -> Candidates:
        every = Candidates(self.run, self.reader, features=self.selection.features)
        if not self.by_class:
            return every
        return replace(every.then(_by_class, self.labels.astype(np.int32), groups), groups=1 + int(groups.max()))

    def _choose(self, candidates: Candidates, sizes: Int64s, budgets: Int64s, offset: float | None) -> list[Candidates]:
        """Rows without a score first, then as many as are missing by the method, of each group."""
        chosen, options = [], self._options()
        if self.reads_scores:
            everything, candidates = candidates, candidates.then(_scored, True)
            unscored, scored = sizes - candidates.sizes, candidates.sizes
            if unscored.any():
                without = replace(everything.then(_scored, False), counted_by="random")
                chosen.append(without.take("random", np.minimum(budgets, unscored)))
            budgets = budgets - np.minimum(budgets, unscored)
            if offset is not None:
                out = [_left_out(offset, size, int(scored.sum())) for size in scored.tolist()]
                options["offset"] = np.minimum(out, scored - budgets)
        rng = np.random.default_rng(mix(self.selection.seed, _DRAWS))
        if self.method.by_group:
            return [*chosen, self.method.function(candidates, budgets, rng, **options)]
        rows = [np.array([np.iinfo(np.int64).max])]
        for arrays, budget in zip(candidates.arrays(self.selection.other_scores), budgets.tolist(), strict=True):
            if budget:
                positions = self.method.function(arrays, budget, rng, **options)
                rows.append(arrays.at(positions, budget, name_of(self.selection.method)))
        return [*chosen, candidates.then(_among, np.sort(np.concatenate(rows)), True)]


def _class_shares(labels: Int64s, counts: Int64s, budget: int, salt: int) -> list[int]:
    """How many of each class to keep: its share of ``budget`` by largest remainder, ties decided by ``salt``."""
    sizes, remainders = np.divmod(counts * budget, counts.sum())
    ties = hash64(salt, labels + 1)  # a class index must not decide
    sizes[np.lexsort((ties, -remainders))[: budget - int(sizes.sum())]] += 1
    return sizes.tolist()  # type: ignore[no-any-return]


def _left_out(offset: float, scored: int, of: int) -> int:
    """How many of so many scored rows are left out as the hardest; an int ``offset`` is of the ``of`` in all groups."""
    if isinstance(offset, int):
        return offset * scored // max(1, of)
    return math.floor(Fraction(repr(offset)) * scored)  # 0.29 of 100 are 29, in floats 28.999…


def classes_of(kept: Sequence[Kept]) -> Classes:
    """The classes of all blocks together."""
    found: Classes = {}
    for label, (rows, of_these) in (item for each in kept for item in each.classes.items()):
        before = found.get(label, (0, 0))
        found[label] = before[0] + rows, before[1] + of_these
    return dict(sorted(found.items()))


# -- steps and counts, block by block ------------------------------------------------------------------------------


def _by_class(labels: npt.NDArray[np.int32], groups: Int64s, rows: Rows) -> Rows:
    """The group of each row by its label, one of ``labels``, ascending; rows of group −1 are left out."""
    group = groups[np.searchsorted(labels, rows.of(rows.table.labels))]
    return replace(rows, group=group).part(group >= 0)


def _scored(scored: bool, rows: Rows) -> Rows:
    return rows.part(np.isnan(rows.hardness) != scored)


def _superfluous(selection: Selection, useless: bool, rows: Rows) -> Rows:
    return rows.part(rows.of(superfluous(rows.table, selection.by, selection.threshold)) == useless)


def _among(numbers: Int64s, inside: bool, rows: Rows) -> Rows:
    """Those of these numbers, or the others; the numbers ascend, and the last is higher than any row's."""
    return rows.part((numbers[np.searchsorted(numbers, rows.row)] == rows.row) == inside)


def _answers(reader: Reader, block: int) -> list[Any]:
    """The rows of a block, their labels, and what the model says of them, as Evidence has it."""
    tables = [(rows.row, evidence_of(rows.table, rows.all_hardness)) for rows in reader.slices(block)]
    return [np.concatenate([row for row, _ in tables]), *map(np.concatenate, zip(*(e for _, e in tables), strict=True))]


def _census(reader: Reader, selection: Selection, by_class: bool, block: int) -> tuple[Any, ...]:
    """The classes of a block; how many rows, scored and superfluous ones each has; and the least tie key."""
    parts = []
    for rows in reader.slices(block):
        labels = np.asarray(rows.table.labels) if by_class else np.zeros(len(rows), np.int32)
        useless = np.zeros(len(rows), np.bool_)
        if selection.removes_superfluous:
            useless = superfluous(rows.table, selection.by, selection.threshold)
        parts.append((labels, ~np.isnan(rows.hardness), useless, tie_keys(selection.seed, rows.row).min()))
    each, scored, gone, keys = zip(*parts, strict=True)
    return *_per_class(each, None, np.concatenate(scored), np.concatenate(gone)), int(min(keys))


def _per_class(labels: Sequence[Any], *weights: npt.NDArray[Any] | None) -> list[Int64s]:
    """The labels that there are, ascending, and the sum of each of the weights (None: 1) over the rows of each."""
    values, at = np.unique(np.concatenate(labels), return_inverse=True)
    return [each.astype(np.int64) for each in (values, *(np.bincount(at, each, len(values)) for each in weights))]


def _kept(reader: Reader, chosen: Sequence[tuple[Step, ...]], count_classes: bool, block: int) -> Kept:
    masks, labels = [], [np.empty(0, np.int32)]
    unscored, lowest, highest = 0, np.inf, -np.inf
    for rows in reader.slices(block):
        mask = np.zeros(len(rows), np.bool_)
        for steps in chosen:
            places = rows.after(steps).places
            mask[slice(None) if places is None else places] = True
        masks.append(mask)
        hardness = rows.hardness[np.flatnonzero(mask)]  # quicker than by the mask itself
        unscored += int(np.isnan(hardness).sum())
        finite = np.isfinite(hardness)
        hardness = hardness if finite.all() else hardness[finite]
        lowest, highest = hardness.min(initial=lowest), hardness.max(initial=highest)
        if count_classes:
            labels.append(np.asarray(rows.table.labels))
    mask = np.concatenate(masks)
    classes: Classes = {}
    if count_classes:
        values, *counts = (each.tolist() for each in _per_class(labels, None, mask))
        classes = dict(zip(values, zip(*counts, strict=True), strict=True))
    rows_kept = int(np.count_nonzero(mask))
    return Kept(block, np.packbits(mask).tobytes(), rows_kept, unscored, float(lowest), float(highest), classes)
