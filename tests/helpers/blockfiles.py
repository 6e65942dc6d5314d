"""Files of scores that are worked on in many small blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from prunesampler.selection.engine import Threads
from prunesampler.tables.score_table import ScoreTable

THREADS = Threads()
ONLINE = {"kind": "online", "epochs": 5, "reduction": "mean", "runs": 1}


def table(seed: int, rows: int = 280, num_rows: int = 300, **options: Any) -> ScoreTable:
    """A run that saw some of the rows, with ties, missing scores, and classes of all sizes."""
    rng = np.random.default_rng(seed)
    at = np.sort(rng.choice(num_rows, rows, replace=False))
    online = {**ONLINE, "split_half": 0.5 + seed / 10}
    return ScoreTable(
        {
            "el2n": np.where(rng.random(rows) < 0.1, np.nan, np.round(rng.random(rows), 2)),
            "el2n_spread": np.round(rng.random(rows) / 10, 2),
            "margin": np.round(rng.normal(size=rows), 1),  # has zeros of both signs
            "nothing": np.full(rows, np.nan),
        },
        rows=at,
        num_rows=num_rows,
        labels=[(-1, 0, 0, 0, 0, 0, 1, 1, 2, 5)[row * 7 // 13 % 10] for row in at],
        forgetting_events=rng.integers(0, 3, rows),
        learned=rng.random(rows) < 0.7,
        presentations=rng.integers(0, 4, rows),
        **{"keys": [f"key {row}" for row in at], "shards": [f"{row // 50}.tar" for row in at], **options},
        protocols={"el2n": online, "el2n_spread": {**online, "spread_of": "el2n"}, "forgetting": ONLINE},
        provenance={"seed": seed},
    )


def saved(folder: Path, *tables: ScoreTable) -> list[Path]:
    paths = [folder / f"{number}.parquet" for number in range(len(tables))]
    for path, each in zip(paths, tables, strict=True):
        each.save(path)
    return paths
