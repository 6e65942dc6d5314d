"""Figures that are logged of a run, epoch by epoch."""

from __future__ import annotations

import numpy as np

from prunesampler.training.handle import Pruning

__all__ = ["quantiles"]

_PERCENT = (10, 50, 90)


def quantiles(pruning: Pruning, by: str) -> dict[str, float]:
    """``prune/<by>_p10``, ``_p50`` and ``_p90`` of the scores so far.

    Args:
        pruning: of the attached loader.
        by: the score.

    Returns:
        The three; nothing where no row has such a score yet, and on ranks above 0.

    >>> import torch, prunesampler
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> loader = DataLoader(TensorDataset(torch.zeros(8, 2), torch.arange(8) % 2), batch_size=4)
    >>> model = torch.nn.Linear(2, 2)
    >>> pruning = prunesampler.attach(loader, model, epoch_length="full").pruning
    >>> quantiles(pruning, "el2n")
    {}
    >>> for inputs, _ in loader:
    ...     _ = model(inputs)
    >>> list(quantiles(pruning, "el2n"))
    ['prune/el2n_p10', 'prune/el2n_p50', 'prune/el2n_p90']
    """
    if pruning.table is not None:
        values = pruning.table.scores.get(by)
    elif pruning.tracker is not None and by in pruning.tracker.merged:
        values = pruning.tracker.value(by).numpy()
    else:
        return {}
    seen = np.empty(0) if values is None else values[~np.isnan(values)]
    if not len(seen):
        return {}
    return {f"prune/{by}_p{percent}": float(np.percentile(seen, percent)) for percent in _PERCENT}
