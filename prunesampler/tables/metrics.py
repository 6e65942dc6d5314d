"""A table in a few numbers, for loggers."""

from __future__ import annotations

import numpy as np

from prunesampler.tables.score_table import ScoreTable

_PERCENTILES = (10, 50, 90)


def table_metrics(table: ScoreTable) -> dict[str, float]:
    """Figures of a table, as :meth:`prunesampler.training.handle.Pruning.metrics` has them.

    >>> table = ScoreTable({"el2n": [0.0, 0.5, 1.0]}, forgetting_events=[0, 0, 3], presentations=[5, 5, 5])
    >>> {name: round(value, 3) for name, value in table_metrics(table).items()}
    {'el2n/p10': 0.1, 'el2n/p50': 0.5, 'el2n/p90': 0.9, 'forgetting_rate': 0.2}
    """
    found: dict[str, float] = {}
    for name, values in table.scores.items():
        if name.endswith("_spread") or not (known := values[~np.isnan(values)]).size:
            continue
        quantiles = np.percentile(known.astype(np.float64), _PERCENTILES)
        found |= {f"{name}/p{rank}": float(value) for rank, value in zip(_PERCENTILES, quantiles, strict=True)}
        protocol = table.protocols.get(name)
        if isinstance(protocol, dict) and isinstance(half := protocol.get("split_half"), float):
            found[f"{name}/split_half"] = half
    shown = None if table.presentations is None else table.presentations > 0
    if table.learned is not None:
        learned = table.learned if shown is None else table.learned[shown]
        found["learned"] = float(learned.mean()) if learned.size else 0.0
    if table.forgetting_events is not None and table.presentations is not None and shown is not None:
        presented = int(table.presentations.sum(dtype=np.int64))
        found["forgetting_rate"] = int(table.forgetting_events[shown].sum(dtype=np.int64)) / max(1, presented)
    return found
