"""Selection row by row in plain Python: what every source and every engine must agree with."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from prunesampler._random import hash64, mix
from prunesampler.tables.score_table import ScoreTable


def tie_keys(rows: Sequence[int], seed: int) -> dict[int, int]:
    """The seeded key of each row; every tie and every draw goes by it."""
    return dict(zip(rows, hash64(mix(seed, 0x74696573), np.array(rows)).tolist(), strict=True))


class PlainSelection:
    """The options of a Selection that are given, and what they keep of a table."""

    def __init__(self, table: ScoreTable, **options: Any) -> None:
        given = {"by": "el2n", "method": "stratified", "offset": None, "class_balanced": False, "min_per_class": None}
        given |= {"seed": 0, "unscored": "keep", "strata": 50, "keep": 0.5}
        self.options = given | options
        self.rows = table.rows.tolist()
        self.key = tie_keys(self.rows, self.options["seed"])
        labels = [-1] * len(table) if table.labels is None else table.labels.tolist()
        self.label = dict(zip(self.rows, labels, strict=True))
        score = [0.0] * len(table) if self.options["method"] == "random" else table.column(self.options["by"]).tolist()
        sign = -1 if table.directions.get(self.options["by"]) == "lower" else 1
        self.hardness = {row: sign * value for row, value in zip(self.rows, score, strict=True)}

    def select(self) -> set[int] | str:
        """The rows that are kept, or the argument that is refused."""
        keep = self.options["keep"]
        budget = max(1, round(keep * len(self.rows))) if isinstance(keep, float) else keep
        members = self.rows
        if self.options["unscored"] == "drop":
            members = [row for row in members if not math.isnan(self.hardness[row])]
        if budget > len(members):
            return "keep"
        self.offset = self.options["offset"]
        if self.offset is None:
            share = budget / len(self.rows)
            self.offset = {"stratified": 0.4 * (1 - share) ** 2, "window": 0.01}.get(self.options["method"], 0.0)
        floor = self.options["min_per_class"]
        classes = self.by_label(members)
        floors = {label: min(floor, len(rows)) for label, rows in classes.items() if label >= 0} if floor else {}
        if sum(floors.values()) > budget:
            return "min_per_class"
        settled: set[int] = set()
        while True:
            chosen = (self.balanced if self.options["class_balanced"] else self.choose)(members, budget)
            counts = self.by_label(chosen)
            short = {label: size for label, size in floors.items() if len(counts.get(label, ())) < size}
            if not short:
                return settled | set(chosen)
            for label, size in short.items():
                settled |= set(self.choose(classes[label], size))
                budget -= floors.pop(label)
            members = [row for row in members if self.label[row] not in short]

    def by_label(self, rows: Sequence[int]) -> dict[int, list[int]]:
        found = defaultdict(list)
        for row in rows:
            found[self.label[row]].append(row)
        return dict(sorted(found.items()))

    def balanced(self, members: list[int], budget: int) -> list[int]:
        """Hamilton's method; the salt decides between equal remainders."""
        classes, salt = self.by_label(members), min(self.key.values())
        exact = {label: Fraction(budget * len(rows), len(members)) for label, rows in classes.items()}
        tie = {label: int(hash64(salt, np.array([label + 1]))[0]) for label in classes}
        up = sorted(classes, key=lambda label: (math.floor(exact[label]) - exact[label], tie[label]))
        up = up[: budget - sum(map(math.floor, exact.values()))]
        return [
            row
            for label, rows in classes.items()
            for row in self.choose(rows, math.floor(exact[label]) + (label in up))
        ]

    def hardest(self, rows: Sequence[int]) -> list[int]:
        return sorted(rows, key=lambda row: (-self.hardness[row], self.key[row]))

    def choose(self, members: list[int], budget: int) -> list[int]:
        missing = sorted((row for row in members if math.isnan(self.hardness[row])), key=self.key.__getitem__)
        scored = [row for row in members if not math.isnan(self.hardness[row])]
        missing = missing[:budget]
        budget -= len(missing)
        everyone = sum(not math.isnan(value) for value in self.hardness.values())
        if isinstance(self.offset, int):
            out = self.offset * len(scored) // max(1, everyone)
        else:
            out = math.floor(Fraction(repr(self.offset)) * len(scored))
        rest = self.hardest(scored)[min(out, len(scored) - budget) :]
        method = self.options["method"]
        if method == "bottom":
            return missing + rest[len(rest) - budget :]
        if method == "random":
            return missing + sorted(rest, key=self.key.__getitem__)[:budget]
        return missing + (coverage(rest, self, budget) if method == "stratified" else rest[:budget])


def coverage(rest: Sequence[int], plain: PlainSelection, budget: int) -> list[int]:
    """Zheng et al. 2023, algorithm 1, from the strata on, line by line."""
    finite = [plain.hardness[row] for row in rest if math.isfinite(plain.hardness[row])]
    low, high, strata = min(finite, default=0.0), max(finite, default=0.0), plain.options["strata"]
    bins: list[list[int]] = [[] for _ in range(strata + 1)]
    for row in rest:
        place: float = strata
        if math.isfinite(plain.hardness[row]):
            place = min(int(strata * ((plain.hardness[row] - low) / ((high - low) or 1))), strata - 1)
        bins[int(place)].append(row)
    bins = [each for each in bins if each]
    chosen: list[int] = []
    m = budget
    while bins:
        smallest = min(bins, key=len)
        m_b = min(len(smallest), m // len(bins))
        chosen += sorted(smallest, key=plain.key.__getitem__)[:m_b]
        bins.remove(smallest)
        m -= m_b
    return chosen
