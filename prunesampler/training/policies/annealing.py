"""The last epochs of a run, which some policies spend on all rows."""

from __future__ import annotations

from prunesampler.errors import ArgumentError, check_int, check_number


def check_annealing(anneal: float, epochs: int | None) -> None:
    """Refuse a share outside of [0, 1), and one above 0 of a run whose length is not given."""
    check_number("anneal", anneal, 0, 1)
    if anneal == 1:
        raise ArgumentError("anneal", "must be below 1, or no epoch is pruned", anneal)
    if epochs is not None:
        check_int("epochs", epochs, 1)
    elif anneal:
        rule = "must be given, the epochs of the whole run, where anneal= is above 0; or give anneal=0"
        raise ArgumentError("epochs", rule, epochs)


def is_annealing(epoch: int, anneal: float, epochs: int | None) -> bool:
    """Whether an epoch, from 0, lies in the last share ``anneal`` of the run.

    >>> [is_annealing(epoch, 0.125, 16) for epoch in (13, 14)]
    [False, True]
    """
    return bool(anneal) and epochs is not None and epoch >= round((1 - anneal) * epochs, 9)
