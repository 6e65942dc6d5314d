"""The selection methods, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prunesampler.errors import ArgumentError, check_bool
from prunesampler.selection.stratified import stratified

Method = str | Callable[..., Any]
"""A registered name, or a function ``(candidates, budget, rng) -> positions``."""


@dataclass(frozen=True)
class RegisteredMethod:
    """A function, and what it is called with; see :func:`register_method`."""

    function: Callable[..., Any]
    by_group: bool = False
    reads_scores: bool = True
    default_offset: Callable[[float], float] | None = None
    options: tuple[str, ...] = ()


METHODS = {
    "stratified": RegisteredMethod(
        stratified, True, default_offset=lambda kept: 0.4 * (1 - kept) ** 2, options=("strata",)
    ),
    "top": RegisteredMethod(lambda candidates, budget, rng: candidates.take("hardest", budget), True),
    "bottom": RegisteredMethod(lambda candidates, budget, rng: candidates.take("easiest", budget), True),
    "window": RegisteredMethod(
        lambda candidates, budget, rng, *, offset: candidates.take("hardest", budget, skip=offset),
        True,
        default_offset=lambda kept: 0.01,
    ),
    # In the order of their tie keys, so that a larger budget adds to a smaller one.
    "random": RegisteredMethod(lambda candidates, budget, rng: candidates.take("random", budget), True, False),
}


def register_method(
    name: str, function: Callable[..., Any], *, by_group: bool = False, reads_scores: bool = True
) -> None:
    """Add a selection method, for ``method=name`` in :func:`prunesampler.select`, ``attach`` and the command line.

    Args:
        name: a str that is not taken.
        function: ``(candidates, budget, rng) -> positions``. ``candidates`` has the arrays ``hardness`` (E,) float32,
            higher is harder, ``labels`` (E,) int32 or None, ``rows`` (E,) int64, and ``ties`` (E,) uint64, seeded
            keys to break ties by. ``budget`` is an int in [1, E], ``rng`` a :class:`numpy.random.Generator` that
            depends on the seed. It returns ``budget`` distinct positions in [0, E). With ``class_balanced`` or
            ``min_per_class`` it is called for each class.
        by_group: the function works on groups and out of core: ``budget`` is (G,), one number per group, and it
            returns candidates, as ``candidates.take("hardest", budget)`` does.
        reads_scores: false for a method that needs no score: its candidates then include the rows without one.

    Raises:
        ArgumentError: the name is taken or no str, or ``function`` cannot be called.

    >>> from prunesampler.selection.select import select
    >>> from prunesampler.tables.score_table import ScoreTable
    >>> def easiest(candidates, budget, rng):
    ...     return np.lexsort((candidates.ties, candidates.hardness))[:budget]
    >>> import numpy as np
    >>> register_method("easiest", easiest)
    >>> select(ScoreTable({"el2n": [0.1, 0.9, 0.2, 0.8]}), keep=2, method="easiest").rows
    array([0, 2])
    >>> del METHODS["easiest"]
    """
    if not isinstance(name, str) or not name or name in METHODS:
        raise ArgumentError("name", f"must be a str other than {', '.join(METHODS)}", name)
    if not callable(function):
        raise ArgumentError("function", "must be a function (candidates, budget, rng) -> positions", function)
    by_group, reads_scores = check_bool("by_group", by_group), check_bool("reads_scores", reads_scores)
    METHODS[name] = RegisteredMethod(function, by_group, reads_scores)


def check_method(method: object) -> RegisteredMethod:
    """What a ``method=`` means."""
    if callable(method):
        return RegisteredMethod(method)
    if isinstance(method, str) and method in METHODS:
        return METHODS[method]
    rule = f"must be one of {', '.join(METHODS)}, or a function (candidates, budget, rng) -> positions"
    if isinstance(method, str) and ":" in method:
        rule += "; a name like module:function stands in a file for a function, which must be given itself"
    raise ArgumentError("method", rule, method)


def name_of(method: Method) -> str:
    """A registered name, or ``"module:qualname"`` of a function."""
    if isinstance(method, str):
        return method
    kind = method if hasattr(method, "__qualname__") else type(method)
    return f"{kind.__module__}:{kind.__qualname__}"
