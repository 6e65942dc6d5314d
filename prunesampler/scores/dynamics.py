"""Scores of how a row's prediction varies over epochs: of windows of ten consecutive ones, averaged over all windows.

The published code of both keeps every epoch's predictions. Of a row, a mean over windows takes only the last ten
values and a running sum, as :func:`slide` keeps them.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

WINDOW = 10
"""Epochs of a window, as published."""


def dyn_unc(window: Tensor) -> Tensor:
    """Dynamic uncertainty of a window: the standard deviation (of n − 1) of the label's probability (He et al. 2024).

    Of (N, WINDOW) it gives (N,), in [0, 0.53]; higher is harder.

    >>> import torch
    >>> dyn_unc(torch.tensor([[0.0, 1.0] * 5])).round(decimals=3)
    tensor([0.5270])
    """
    return window.std(1)


def dual(window: Tensor) -> Tensor:
    """DUAL of a window: its deviation times its difficulty, 1 − the mean of the label's probability (Cho et al. 2025).

    Of (N, WINDOW) it gives (N,), in [0, 0.33]; higher is harder.

    >>> import torch
    >>> dual(torch.tensor([[0.0, 1.0] * 5])).round(decimals=3)
    tensor([0.2640])
    """
    return window.std(1) * (1 - window.mean(1))


def slide(
    recent: Tensor, seen: Tensor, values: Tensor, rows: Tensor, statistic: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Put an epoch's values into their rows' windows, in place of the oldest ones.

    Args:
        recent: (N · WINDOW,) float32, row by row; changed in place.
        seen: (N,) int32, how many values each row had before.
        values: (N,) floats.
        rows: (M,) int64, those that have a value in this epoch.
        statistic: of (K, WINDOW).

    Returns:
        The rows whose window is full now, and the statistic of each.

    >>> import torch
    >>> recent, seen = torch.zeros(10), torch.tensor([9])
    >>> slide(recent, seen, torch.ones(1), torch.tensor([0]), dual)[1].round(decimals=4)
    tensor([0.2846])
    """
    windows = recent.view(-1, WINDOW)
    windows[rows, seen[rows].long() % WINDOW] = values[rows].to(windows.dtype)
    full = rows[seen[rows] >= WINDOW - 1]
    return full, statistic(windows[full]) if len(full) else values[full]  # torch warns of a deviation of nothing
