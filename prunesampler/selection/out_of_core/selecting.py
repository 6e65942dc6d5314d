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

import prunesampler.selection.out_of_core.plan as block
from prunesampler.errors import ArgumentError, PruneSamplerWarning
from prunesampler.selection.candidates import even_sizes, left_out, shares
from prunesampler.selection.out_of_core.cuts import Cuts, find_cuts
from prunesampler.selection.out_of_core.engine import Blocks, Engine
from prunesampler.selection.out_of_core.merging import written
from prunesampler.selection.out_of_core.plan import Plan
from prunesampler.selection.out_of_core.reading import Header, checked, opened
from prunesampler.selection.select import Selection
from prunesampler.tables.columns import Int64s, json_object

__all__ = ["Selected", "select"]

Selected = tuple[Header, dict[int, tuple[int, int]]]


def select(engine: Engine, path: str | os.PathLike[str], out: str | os.PathLike[str], selection: Selection) -> Selected:
    """Write the coreset that ``selection`` of the file's table would save, to the byte.

    Args:
        engine: what does the work; the file is read where it runs.
        path: a file of scores.
        out: the coreset's file, written here.
        selection: what to keep.

    Returns:
        What the coreset's file says of itself, of which ``metadata["selection"]`` is the coreset's; and of each class
        its rows and how many of them are kept, nothing where the scores have no labels.

    Raises:
        OSError: a file cannot be read or written.
        ArgumentError: as :func:`prunesampler.select` does.
        CorruptFileError: the file is damaged.

    Warns:
        PruneSamplerWarning: no kept row has a score.
    """
    (file,) = opened(engine, [path])
    proof = engine.map(checked, [file]).held()  # at the same time as the rest
    try:
        return _selected(engine, file, out, selection, proof)
    except Exception:
        list(proof.parts())  # what it raises says why all else went wrong
        raise


def _selected(
    engine: Engine, file: Header, out: str | os.PathLike[str], selection: Selection, proof: Blocks
) -> Selected:
    selection.check_columns(file)
    chooser = _Chooser(engine, file, selection)
    plan, found = chooser.superfluous() if selection.keep == "auto" else chooser.budgeted()
    kept, summary = chooser.kept(plan)
    rows, without = int(summary["rows"].sum()), int(summary["unscored"].sum())
    if not rows:
        eligible = found["eligible"]
        raise ArgumentError("threshold", f"must leave one of the {eligible} eligible rows", selection.threshold)
    if without == rows:
        warnings.warn(f"none of the {rows} kept rows has a score", PruneSamplerWarning, stacklevel=3)
    scored = rows > without and selection.method != "random" and bool(np.isfinite(summary["low"]).any())
    coreset = {
        "options": selection.to_dict(),
        "eligible": found.pop("eligible"),
        "kept": rows,
        **{name: value for name, value in found.items() if name != "offset"},
        "unscored": without,
        "offset": found.get("offset"),
        "threshold": [float(summary["low"].min()) + 0.0, float(summary["high"].max()) + 0.0] if scored else None,
    }
    metadata = {
        "kind": "coreset",
        "num_rows": file.num_rows,
        "fingerprint": file.fingerprint,
        "scores_digest": file.digest,
        "selection": json_object("selection", coreset),
    }
    types = {name: kind for name, kind in file.types.items() if name in ("row", "shard", "key")}
    header = written(kept.map(functools.partial(block.kept_rows, file)), types, rows, metadata, out, proof)
    return header, _classes(kept)


class _Chooser:
    def __init__(self, engine: Engine, file: Header, selection: Selection) -> None:
        self.engine, self.file, self.selection = engine, file, selection
        self.blocks = range(file.groups)
        by_class = selection.class_balanced or selection.min_per_class is not None
        self.plan = Plan(file, selection, np.empty(0, np.int32) if by_class else None, np.zeros(1, np.int64))
        drops = selection.unscored == "drop" and selection.keep != "auto"
        self.labels, self.rows = [0], [len(file)]
        if by_class or drops or selection.keep == "auto":
            census = self.count(block.census, self.plan)
            labels, at = np.unique(census["label"], return_inverse=True)
            self.rows, self.scored, self.spare = (
                np.bincount(at, census[name], len(labels)).astype(np.int64).tolist()
                for name in ("rows", "scored", "spare")
            )
            self.least_key = int(census["key"].min())
            self.labels = labels.tolist()
        if by_class:
            self.plan = dataclasses.replace(self.plan, labels=np.array(self.labels, np.int32))
        self.members = self.scored if drops else self.rows

    def count(self, function: Any, plan: Plan) -> dict[str, npt.NDArray[Any]]:
        """The columns of a function's tables, of all blocks."""
        return _arrays(self.engine.map(functools.partial(function, plan), self.blocks))

    def kept(self, plan: Plan) -> tuple[Blocks, dict[str, npt.NDArray[Any]]]:
        """Which rows are kept, and what is to be said of them."""
        found = self.engine.map(functools.partial(block.kept, plan), self.blocks).held()
        return found, _arrays(found, ("rows", "unscored", "low", "high"))

    def superfluous(self) -> tuple[Plan, dict[str, Any]]:
        floor = self.selection.min_per_class or 0
        missing = [
            floor - (rows - spare) if label >= 0 and floor else 0
            for label, rows, spare in zip(self.labels, self.rows, self.spare, strict=True)
        ]
        plan = dataclasses.replace(self.plan, groups=np.arange(len(self.labels)))
        cuts = Cuts.all_or_none([False] * len(missing))
        if floor:
            (cuts,) = self._cuts(block.spare, plan, len(missing), lambda _: [missing])
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
            classes = _classes(self.kept(plan)[0])
            short = [label for label, size in sizes.items() if classes[label][1] < min(floor, size)]
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
        method = self.selection.method
        if method == "random":
            (chosen,) = self._cuts(block.rest, plan, len(budgets), lambda _: [budgets])
            return dataclasses.replace(plan, chosen=chosen)
        members = [0] * len(budgets)
        for at, group in enumerate(plan.groups.tolist()):
            if group >= 0:
                members[group] += self.members[at]
        without, left, out = [0] * len(budgets), budgets, budgets

        def limits(sizes: Int64s) -> list[list[int]]:
            nonlocal without, left, out
            scored, pool = sizes.tolist(), int(sizes.sum())
            without = [size - of_these for size, of_these in zip(members, scored, strict=True)]
            left = [budget - min(budget, size) for budget, size in zip(budgets, without, strict=True)]
            easier = [0 if method == "bottom" else size - left_out(offset, size, pool) for size in scored]
            out = [size - max(limits) for size, *limits in zip(scored, easier, left, strict=True)]
            last = [] if method == "stratified" else [[a + b for a, b in zip(out, left, strict=True)]]
            return [out, *last]

        hardest, *later = self._cuts(block.scored, plan, len(budgets), limits)
        plan = dataclasses.replace(plan, hardest=hardest if any(out) else None)
        if any(without):
            (unscored,) = self._cuts(block.without_score, plan, len(budgets), lambda _: [budgets])
            plan = dataclasses.replace(plan, unscored=unscored)
        if method == "stratified":
            plan = self._with_spans(plan, len(budgets))
            later = [self._strata(plan, left)]
        return dataclasses.replace(plan, chosen=later[0])

    def _with_spans(self, plan: Plan, groups: int) -> Plan:
        spans = np.tile([np.inf, -np.inf], (groups, 1))
        found = self.count(block.spans, plan)
        np.minimum.at(spans[:, 0], found["group"], found["low"])
        np.maximum.at(spans[:, 1], found["group"], found["high"])
        return dataclasses.replace(plan, spans=spans)

    def _strata(self, plan: Plan, budgets: list[int]) -> Cuts:
        per_group = self.selection.strata + 1

        def wanted(sizes: Int64s) -> list[Int64s]:
            found = np.zeros_like(sizes)
            for group, budget in enumerate(budgets):
                places = group * per_group + np.flatnonzero(sizes[group * per_group :][:per_group])
                found[places] = even_sizes(sizes[places].tolist(), budget)
            return [found]

        (chosen,) = self._cuts(block.rest, plan, len(budgets) * per_group, wanted)
        return chosen

    def _cuts(self, candidates: Any, plan: Plan, groups: int, wanted: Any) -> list[Cuts]:
        return find_cuts(self.engine, functools.partial(candidates, plan), self.blocks, groups, wanted)


def _classes(kept: Blocks) -> dict[int, tuple[int, int]]:
    """The rows of each class, and how many are kept."""
    found: dict[int, tuple[int, int]] = {}
    for part in kept.parts(["labels", "sizes", "counts"]):
        for line in part.to_pylist():
            for label, size, count in zip(*line.values(), strict=True):
                rows, of_these = found.get(label, (0, 0))
                found[label] = rows + size, of_these + count
    return dict(sorted(found.items()))


def _arrays(blocks: Blocks, names: Sequence[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    parts = list(blocks.parts(names))
    table = pa.concat_tables(parts) if parts else pa.table({})
    return {name: table[name].to_numpy() for name in table.column_names}
