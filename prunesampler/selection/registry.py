"""The selection methods, by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from prunesampler.errors import ArgumentError, check_bool, check_choice, check_int, check_number, did_you_mean
from prunesampler.selection.beta import CONFIDENCE, beta
from prunesampler.selection.stratified import stratified
from prunesampler.tables.columns import json_object, row_numbers

Method = str | Callable[..., Any]
"""A registered name, or a function ``(candidates, budget, rng) -> positions``."""


def check_name(name: str, value: Any) -> None:
    """Refuse what names no score."""
    if not isinstance(value, str):
        raise ArgumentError(name, "must be the name of a score", value)


def check_similarity(threshold: Any) -> None:
    """Refuse what is no cosine above which rows are near duplicates."""
    if check_number("threshold", threshold, 0, above=True) >= 1:
        raise ArgumentError("threshold", "must be below 1, the similarity of a row to itself", threshold)


def by_features(name: str, module: str = "") -> Callable[..., Any]:
    """A function whose module is imported when it is called: it needs torch, and selecting by scores does not."""

    def call(*args: Any, **options: Any) -> Any:
        return getattr(importlib.import_module(f"prunesampler.selection.{module or name}"), name)(*args, **options)

    return call


class About(NamedTuple):
    """A method's line in the documentation. N rows, d features, K kept rows or clusters."""

    keeps: str
    cost: str
    when: str
    source: str = ""


@dataclass(frozen=True)
class RegisteredMethod:
    """A function, and what it is called with; see :func:`register_method`.

    ``fields`` are those of a Selection that it gets as they are; ``options`` is name → what refuses a value of its
    ``method_options``; ``column_options`` says which of these name a further score, and which one by default. A method
    with a ``default_threshold`` takes ``threshold`` and says itself how many rows it keeps.
    """

    function: Callable[..., Any]
    by_group: bool = False
    reads_scores: bool | Callable[[Mapping[str, Any]], bool] = True  # or as the options have it
    needs_features: bool = False
    default_threshold: float | None = None
    default_offset: Callable[[float], float] | None = None
    fields: tuple[str, ...] = ()
    options: Mapping[str, Callable[[str, Any], Any]] = field(default_factory=dict)
    column_options: Mapping[str, str] = field(default_factory=dict)
    about: About | None = None

    def check_options(self, name: str, given: Any) -> dict[str, Any]:
        """``method_options`` as JSON values, each one that the method has."""
        checked = json_object("method_options", given)
        for option, value in checked.items():
            if option not in self.options:
                rule = f"must be options of method {name}, {', '.join(self.options) or 'which has none'}"
                raise ArgumentError("method_options", rule, option)
            self.options[option](option, value)
        return checked

    def reads(self, options: Mapping[str, Any]) -> bool:
        """Whether it reads the score that is selected by, under these options."""
        return self.reads_scores(options) if callable(self.reads_scores) else self.reads_scores

    def columns(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """The scores that it reads beside the one that is selected by."""
        return tuple(options.get(option, default) for option, default in self.column_options.items())


METHODS = {
    "stratified": RegisteredMethod(
        stratified,
        True,
        default_offset=lambda kept: 0.4 * (1 - kept) ** 2,
        fields=("strata",),
        about=About(
            "a spread over all scores, without some of the hardest",
            "passes over the scores",
            "by default",
            "[Zheng et al. 2023](https://arxiv.org/abs/2210.15809)",
        ),
    ),
    "top": RegisteredMethod(
        lambda candidates, budget, rng: candidates.take("hardest", budget),
        True,
        about=About(
            "the hardest",
            "passes over the scores",
            "for long training, `keep` 0.6 or more and clean labels",
            "[Paul et al. 2021](https://arxiv.org/abs/2107.07075)",
        ),
    ),
    "bottom": RegisteredMethod(
        lambda candidates, budget, rng: candidates.take("easiest", budget),
        True,
        about=About("the easiest", "passes over the scores", "to see how much the hard rows matter"),
    ),
    "window": RegisteredMethod(
        lambda candidates, budget, rng, *, offset: candidates.take("hardest", budget, skip=offset),
        True,
        default_offset=lambda kept: 0.01,
        about=About(
            "the hardest after the `offset` hardest",
            "passes over the scores",
            "as `top`, with some wrong labels",
            "[Paul et al. 2021](https://arxiv.org/abs/2107.07075)",
        ),
    ),
    # In the order of their tie keys, so that a larger budget adds to a smaller one.
    "random": RegisteredMethod(
        lambda candidates, budget, rng: candidates.take("random", budget),
        True,
        False,
        about=About("random rows", "one pass", "as the control for every other method"),
    ),
    "beta": RegisteredMethod(
        beta,
        options={"confidence": check_name, "c": partial(check_number, low=0, above=True)},
        column_options={"confidence": CONFIDENCE},
        about=About(
            "rows drawn by score and Beta(confidence), the easier the fewer are kept",
            "passes over the scores; all held in memory",
            "with `dual` scores and a low `keep`; needs the mean probability of the label as a second score",
            "[Cho et al. 2025](https://openreview.net/forum?id=9rLxi2cnZC)",
        ),
    ),
    "herding": RegisteredMethod(
        by_features("herding"),
        reads_scores=False,
        needs_features=True,
        about=About(
            "rows whose mean is the mean of all",
            "K · N · d; with `class_balanced` divided by the number of classes",
            "for small sets, per class",
            "[Welling 2009](https://doi.org/10.1145/1553374.1553517)",
        ),
    ),
    "k_center": RegisteredMethod(
        by_features("k_center"),
        reads_scores=False,
        needs_features=True,
        options={"start": partial(row_numbers, num_rows=2**62)},
        about=About(
            "rows that no other row is far from",
            "K · N · d; with `class_balanced` divided by the number of classes",
            "to cover everything, rare cases too; outliers come first, so not with noisy data",
            "[Sener and Savarese 2018](https://arxiv.org/abs/1708.00489)",
        ),
    ),
    "moderate": RegisteredMethod(
        by_features("moderate"),
        reads_scores=False,
        needs_features=True,
        about=About(
            "the middle by distance to the median of the own class",
            "N · d",
            "with noisy labels or images, where no score is at hand",
            "[Xia et al. 2023](https://openreview.net/forum?id=7D5EECbOaf9)",
        ),
    ),
    "prototypes": RegisteredMethod(
        by_features("prototypes"),
        reads_scores=False,
        needs_features=True,
        options={"clusters": partial(check_int, low=1), "prefer": partial(check_choice, choices=("far", "near"))},
        about=About(
            "the farthest from the centres of k-means clusters, or the nearest",
            "K · N · d a round, up to 50 rounds",
            "without labels: far where data is plentiful, near where it is not",
            "[Sorscher et al. 2022](https://arxiv.org/abs/2206.14486)",
        ),
    ),
    "deduplicate": RegisteredMethod(
        by_features("deduplicate", "near_duplicates"),
        reads_scores=lambda options: options.get("prefer", "central") != "central",
        needs_features=True,
        default_threshold=0.95,
        fields=("threshold",),
        options={
            "prefer": partial(check_choice, choices=("central", "hardest", "easiest")),
            "search": partial(check_choice, choices=("auto", "exact", "faiss", "clusters")),
        },
        about=About(
            "one row of each group of near duplicates, and all others",
            "N · K · d up to 200,000 rows; above that of neighbouring cells or clusters",
            "before anything else, where data was crawled or comes from videos",
            "[Abbas et al. 2023](https://arxiv.org/abs/2303.09540)",
        ),
    ),
}


def register_method(
    name: str,
    function: Callable[..., Any],
    *,
    by_group: bool = False,
    reads_scores: bool = True,
    needs_features: bool = False,
) -> None:
    """Add a selection method, for ``method=name`` in :func:`prunesampler.select`, ``attach`` and the command line.

    Args:
        name: a str that is not taken.
        function: ``(candidates, budget, rng) -> positions``. ``candidates`` has the arrays ``hardness`` (E,) float32,
            higher is harder, ``labels`` (E,) int32 or None, ``rows`` (E,) int64, ``ties`` (E,) uint64, seeded keys to
            break ties by, and ``features`` (E, d), which ``np.asarray`` takes, or None. ``budget`` is an int in
            [1, E], ``rng`` a :class:`numpy.random.Generator` that depends on the seed. It returns ``budget`` distinct
            positions in [0, E). With ``class_balanced`` or ``min_per_class`` it is called for each class. Its
            keyword-only arguments are its ``method_options``.
        by_group: the function works on groups and out of core: ``budget`` is (G,), one number per group, and it
            returns candidates, as ``candidates.take("hardest", budget)`` does.
        reads_scores: false for a method that needs no score: its candidates then include the rows without one.
        needs_features: true for a method that cannot do without features.

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
    for argument, value in (("by_group", by_group), ("reads_scores", reads_scores), ("needs_features", needs_features)):
        check_bool(argument, value)
    METHODS[name] = _of(function, by_group, reads_scores, needs_features)


def _of(
    function: Callable[..., Any], by_group: bool = False, reads_scores: bool = True, needs_features: bool = False
) -> RegisteredMethod:
    """A function of the user's, which checks its options itself."""
    try:
        parameters = [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):  # built in
        parameters = []
    options = {each.name: _as_it_is for each in parameters if each.kind is each.KEYWORD_ONLY}
    return RegisteredMethod(function, by_group, reads_scores, needs_features, options=options)


def _as_it_is(name: str, value: Any) -> Any:
    return value


def check_method(method: object) -> RegisteredMethod:
    """What a ``method=`` means."""
    if callable(method):
        return _of(method)
    if isinstance(method, str) and method in METHODS:
        return METHODS[method]
    rule = f"must be one of {', '.join(METHODS)}, or a function (candidates, budget, rng) -> positions"
    if isinstance(method, str) and ":" in method:
        rule += "; a name like module:function stands in a file for a function, which must be given itself"
    raise ArgumentError("method", rule, method, did_you_mean(method, METHODS))


def name_of(method: Method) -> str:
    """A registered name, or ``"module:qualname"`` of a function."""
    if isinstance(method, str):
        return method
    kind = method if hasattr(method, "__qualname__") else type(method)
    return f"{kind.__module__}:{kind.__qualname__}"
