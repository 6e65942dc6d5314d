"""Which rows to keep, of a file of scores that is never held whole."""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

import prunesampler.blocks.plan as block
from prunesampler.blocks.cuts import Cuts, find_cuts
from prunesampler.blocks.engine import Engine
from prunesampler.blocks.merging import written
from prunesampler.blocks.plan import Plan
from prunesampler.blocks.reading import Header, headers, ranges
from prunesampler.columns import json_object
from prunesampler.errors import ArgumentError, PruneSamplerWarning
from prunesampler.pool import even_sizes, left_out, shares
from prunesampler.selection import Selection

__all__ = ["select"]


def select(engine: Engine, path: str | os.PathLike[str], out: str | os.PathLike[str], selection: Selection) -> Header:
    """Write the coreset that ``selection`` of the file's table would save, to the byte.

    Args:
        engine: what does the work; the file is read where it runs.
        path: a file of scores.
        out: the coreset's file, written here.
        selection: what to keep.

    Returns:
        What the coreset's file says of itself; ``metadata["selection"]`` is the coreset's.

    Raises:
        OSError: a file cannot be read or written.
        ArgumentError: as :func:`prunesampler.select` does.
        CorruptFileError: the file is damaged.

    Warns:
        PruneSamplerWarning: no kept row has a score.
    """
    (file,) = headers(engine, [path])
    selection.check_columns(file)
    chooser = _Chooser(engine, file, selection)
    plan, found = chooser.superfluous() if selection.keep == "auto" else chooser.budgeted()
    kept = chooser.count(block.kept_summary, plan)
    rows, without = int(kept["rows"].sum()), int(kept["unscored"].sum())
    if not rows:
        eligible = found["eligible"]
        raise ArgumentError("threshold", f"must leave one of the {eligible} eligible rows", selection.threshold)
    if without == rows:
        warnings.warn(f"none of the {rows} kept rows has a score", PruneSamplerWarning, stacklevel=2)
    scored = rows > without and selection.method != "random" and bool(np.isfinite(kept["low"]).any())
    coreset = {
        "options": selection.to_dict(),
        "eligible": found.pop("eligible"),
        "kept": rows,
        **{name: value for name, value in found.items() if name != "offset"},
        "unscored": without,
        "offset": found.get("offset"),
        "threshold": [float(kept["low"].min()) + 0.0, float(kept["high"].max()) + 0.0] if scored else None,
    }
    metadata = {
        "kind": "coreset",
        "num_rows": file.num_rows,
        "fingerprint": file.fingerprint,
        "scores_digest": file.digest,
        "selection": json_object("selection", coreset),
    }
    return written(engine.map(functools.partial(block.kept_rows, plan), chooser.blocks), metadata, out)


class _Chooser:
    def __init__(self, engine: Engine, file: Header, selection: Selection) -> None:
        self.engine, self.file, self.selection = engine, file, selection
        self.blocks = ranges(file.num_rows)
        by_class = selection.class_balanced or selection.min_per_class is not None
        plan = Plan(file, selection, np.empty(0, np.int32) if by_class else None, np.zeros(1, np.int64))
        census = self.count(block.census, plan)
        labels, at = np.unique(census["label"], return_inverse=True)
        self.rows, self.scored, self.spare = (
            np.bincount(at, census[name], len(labels)).astype(np.int64).tolist() for name in ("rows", "scored", "spare")
        )
        self.least_key = int(census["key"].min())
        self.labels: list[int] = labels.tolist()
        self.plan = dataclasses.replace(plan, labels=labels.astype(np.int32) if by_class else None)
        drops = selection.unscored == "drop" and selection.keep != "auto"
        self.members = self.scored if drops else self.rows

    def count(self, function: Any, plan: Plan) -> dict[str, npt.NDArray[Any]]:
        """The columns of a function's tables, of all blocks."""
        parts = list(self.engine.map(functools.partial(function, plan), self.blocks).parts())
        table = pa.concat_tables(parts) if parts else pa.table({})
        return {name: table[name].to_numpy() for name in table.column_names}

    def superfluous(self) -> tuple[Plan, dict[str, Any]]:
        floor = self.selection.min_per_class or 0
        missing = [
            floor - (rows - spare) if label >= 0 and floor else 0
            for label, rows, spare in zip(self.labels, self.rows, self.spare, strict=True)
        ]
        plan = dataclasses.replace(self.plan, groups=np.arange(len(self.labels)))
        cuts = find_cuts(self.engine, functools.partial(block.spare, plan), self.blocks, missing, self.spare)
        found = {"eligible": sum(self.rows), "superfluous": sum(self.spare)}
        return dataclasses.replace(plan, spare=cuts), found

    def budgeted(self) -> tuple[Plan, dict[str, Any]]:
        eligible = sum(self.rows)
        budget = self.selection.check(eligible)
        assert budget is not None
        if budget > sum(self.members):
            raise ArgumentError(
                "keep", f"must be at most the {sum(self.members)} rows with a score", self.selection.keep
            )
        offset = self.selection.resolve_offset(budget / eligible)
        floor = self.selection.min_per_class
        plan = self._plan({}, budget, offset) if floor is None else self._with_floor(budget, floor, offset)
        return plan, {"eligible": eligible, "offset": offset}

    def _with_floor(self, budget: int, floor: int, offset: float | None) -> Plan:
        """As Pool.choose_with_floor."""
        members = dict(zip(self.labels, self.members, strict=True))
        sizes = {label: size for label, size in members.items() if label >= 0 and size}
        if (needed := sum(min(floor, size) for size in sizes.values())) > budget:
            rule = f"needs {needed} rows of {len(sizes)} classes, keep gives {budget}"
            raise ArgumentError("min_per_class", rule, floor)
        settled: dict[int, int] = {}
        while True:
            plan = self._plan(settled, budget, offset)
            kept = self.count(block.kept_labels, plan)
            counts: dict[int, int] = {}
            for label, count in zip(*(kept[name].tolist() for name in ("label", "count")), strict=True):
                counts[label] = counts.get(label, 0) + count
            short = [label for label, size in sizes.items() if counts.get(label, 0) < min(floor, size)]
            if not short:
                return plan
            for label in short:
                settled[label] = min(floor, sizes.pop(label))
                budget -= settled[label]

    def _plan(self, settled: Mapping[int, int], budget: int, offset: float | None) -> Plan:
        """``budget`` rows of the classes that are not settled, and so many as settled of each of the others."""
        groups = np.full(len(self.labels), -1)
        budgets: list[int] = []
        rest = [at for at, label in enumerate(self.labels) if label not in settled and self.members[at]]
        for at in [at for at, label in enumerate(self.labels) if label in settled]:
            groups[at] = len(budgets)
            budgets.append(settled[self.labels[at]])
        if self.selection.class_balanced:
            groups[rest] = len(budgets) + np.arange(len(rest))
            labels, members = [self.labels[at] for at in rest], [self.members[at] for at in rest]
            budgets += shares(labels, members, budget, self.least_key)
        else:
            groups[rest] = len(budgets)
            budgets.append(budget)
        return self._filled(dataclasses.replace(self.plan, groups=groups), budgets, offset or 0)

    def _filled(self, plan: Plan, budgets: list[int], offset: float) -> Plan:
        """As Pool.choose, of all groups at once."""
        scored = [0] * len(budgets)
        without = [0] * len(budgets)
        for at, group in enumerate(plan.groups.tolist()):
            if group >= 0:
                scored[group] += self.scored[at]
                without[group] += self.members[at] - self.scored[at]
        first = [min(budget, size) for budget, size in zip(budgets, without, strict=True)]
        plan = dataclasses.replace(plan, unscored=self._cuts(block.without_score, plan, first, without))
        left = [budget - taken for budget, taken in zip(budgets, first, strict=True)]
        pool = sum(self.scored)
        easier = [size - left_out(offset, size, pool) for size in scored]
        if self.selection.method == "bottom":
            easier = left
        out = [size - max(limits) for size, *limits in zip(scored, easier, left, strict=True)]
        plan = dataclasses.replace(plan, hardest=self._cuts(block.scored, plan, out, scored))
        sizes = [size - gone for size, gone in zip(scored, out, strict=True)]
        if self.selection.method == "stratified":
            plan, left, sizes = self._strata(plan, left)
        return dataclasses.replace(plan, chosen=self._cuts(block.rest, plan, left, sizes))

    def _strata(self, plan: Plan, budgets: list[int]) -> tuple[Plan, list[int], list[int]]:
        spans = np.tile([np.inf, -np.inf], (len(budgets), 1))
        if found := self.count(block.spans, plan):
            np.minimum.at(spans[:, 0], found["group"], found["low"])
            np.maximum.at(spans[:, 1], found["group"], found["high"])
        plan = dataclasses.replace(plan, spans=spans)
        per_group = self.selection.strata + 1
        sizes = np.zeros(len(budgets) * per_group, np.int64)
        if found := self.count(block.rest_counts, plan):
            np.add.at(sizes, found["group"], found["count"])
        wanted = np.zeros_like(sizes)
        for group, budget in enumerate(budgets):
            places = group * per_group + np.flatnonzero(sizes[group * per_group :][:per_group])
            wanted[places] = even_sizes(sizes[places].tolist(), budget)
        return plan, wanted.tolist(), sizes.tolist()

    def _cuts(self, candidates: Any, plan: Plan, counts: Sequence[int], sizes: Sequence[int]) -> Cuts:
        return find_cuts(self.engine, functools.partial(candidates, plan), self.blocks, counts, sizes)
