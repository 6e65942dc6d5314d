"""Classes: how hard each one is, and how it fares in a selection."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prunesampler.errors import MismatchError
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.score_table import ScoreTable

__all__ = ["ClassScores", "Survival", "class_scores", "kept_in", "survival", "survival_of"]

_Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ClassScores:
    """One class: its label (None: rows without one), rows, share of all rows, and score → mean of finite values."""

    label: int | None
    rows: int
    share: float
    means: dict[str, float | None]


@dataclass(frozen=True)
class Survival:
    """How one class fared in a selection.

    Attributes:
        label: the class; None for rows without a label.
        rows: how many it has, of those that could be selected.
        kept: how many of them are.
        share: ``kept / rows``.
        ratio: of ``share`` to the share of all rows that are kept; 1 where the class lost as much as all did.
    """

    label: int | None
    rows: int
    kept: int
    share: float
    ratio: float


def class_scores(table: ScoreTable, names: Iterable[str]) -> tuple[ClassScores, ...] | None:
    """The classes by label, rows without one last; None where the table has no labels.

    Args:
        table: the scores.
        names: those to average.

    >>> class_scores(ScoreTable({"el2n": [0.5, 1.0, 0.25]}, labels=[3, 3, -1]), ["el2n"])[0]
    ClassScores(label=3, rows=2, share=0.6666666666666666, means={'el2n': 0.75})
    """
    if table.labels is None:
        return None
    labels, codes, rows = _classes(table.labels)
    means = {}
    for name in names:
        values = table.column(name).astype(np.float64)
        finite = np.isfinite(values)
        counts = np.bincount(codes[finite], minlength=len(labels))
        sums = np.bincount(codes[finite], values[finite], minlength=len(labels))
        means[name] = [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]
    each = zip(labels, rows.tolist(), strict=True)
    return tuple(
        ClassScores(label, count, count / len(table), {name: values[i] for name, values in means.items()})
        for i, (label, count) in enumerate(each)
    )


def survival(labels: npt.ArrayLike, kept: npt.ArrayLike) -> tuple[Survival, ...]:
    """What share of each class is kept.

    Args:
        labels: (N,) class indices, −1 for none.
        kept: (N,) bools, at least one of them true.

    Returns:
        The classes by label, rows without one last.

    >>> survival([0, 0, 1, 1], [True, True, True, False])[1]
    Survival(label=1, rows=2, kept=1, share=0.5, ratio=0.6666666666666666)
    """
    mask = np.asarray(kept, np.bool_)
    names, codes, rows = _classes(np.asarray(labels))
    survivors = np.bincount(codes[mask], minlength=len(names))
    mean = mask.mean()
    return tuple(
        Survival(name, int(n), int(k), float(k / n), float(k / n / mean))
        for name, n, k in zip(names, rows, survivors, strict=True)
    )


def survival_of(coreset: Coreset, table: ScoreTable) -> tuple[Survival, ...] | None:
    """What share of each class a coreset keeps; None where the table has no labels.

    Raises:
        MismatchError: as :func:`kept_in`.

    >>> table = ScoreTable({"el2n": [0.5, 1.0]}, labels=[0, 1])
    >>> [each.share for each in survival_of(Coreset([1], num_rows=2), table)]
    [0.0, 1.0]
    """
    kept = kept_in(coreset, table)
    return None if table.labels is None else survival(table.labels, kept)


def kept_in(coreset: Coreset, table: ScoreTable) -> npt.NDArray[np.bool_]:
    """Which rows of the table a coreset keeps.

    Args:
        coreset: the kept rows.
        table: the scores that they were selected from.

    Returns:
        (len(table),) bools, in the order of ``table.rows``.

    Raises:
        MismatchError: the coreset was selected from other scores, or belongs to another dataset.

    >>> kept_in(Coreset([1], num_rows=2), ScoreTable({"el2n": [0.5, 1.0]}))
    array([False,  True])
    """
    of_these = coreset.scores_digest in (None, table.digest) and coreset.num_rows == table.num_rows
    if not of_these or not np.isin(coreset.rows, table.rows, assume_unique=True).all():
        raise MismatchError("the coreset was not selected from these scores")
    return np.isin(table.rows, coreset.rows, assume_unique=True)


def _classes(labels: _Array) -> tuple[list[int | None], _Array, _Array]:
    """The labels, each row's place among them, and their counts; None, for rows without a label, comes last."""
    values, codes, rows = np.unique(labels, return_inverse=True, return_counts=True)
    names: list[int | None] = values.tolist()
    if names[0] == -1:
        names = [*names[1:], None]
        codes = np.where(codes == 0, len(names), codes) - 1
        rows = np.roll(rows, -1)
    return names, codes, rows
