"""What the callbacks for Lightning and Transformers have in common."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from prunesampler.errors import ArgumentError, did_you_mean
from prunesampler.training.attach import attach
from prunesampler.training.config import SelectionOptions
from prunesampler.training.handle import Pruning


def check_options(options: Mapping[str, Any], own: Collection[str]) -> None:
    """Refuse what attach does not have, or the callback sets its ``own``, before training starts."""
    known = [*inspect.signature(attach).parameters, *SelectionOptions.__annotations__]
    known = [name for name in known if name not in own and name != "options"]
    for name, value in options.items():
        if name not in known:
            rule = f"must be one of the options of prunesampler.attach, {known},"
            raise ArgumentError(name, rule, value, did_you_mean(name, known))


def quantiles(pruning: Pruning, by: str) -> dict[str, float]:
    """``prune/<by>_p10``, ``_p50`` and ``_p90`` of the scores so far; empty while no row has one, and on ranks > 0."""
    if pruning.table is not None:
        values = pruning.table.scores.get(by)
    elif pruning.tracker is not None and by in pruning.tracker.merged:
        values = pruning.tracker.value(by).numpy()
    else:
        values = None
    seen = np.empty(0) if values is None else values[~np.isnan(values)]
    return {f"prune/{by}_p{percent}": float(np.percentile(seen, percent)) for percent in (10, 50, 90) if len(seen)}
