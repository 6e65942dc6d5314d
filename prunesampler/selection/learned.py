"""A selector that learns from measured subsets (Wei et al. 2023, "InstructionGPT-4"), by a ridge regression."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prunesampler._random import mix
from prunesampler.errors import ArgumentError, PruneSamplerWarning, check_int
from prunesampler.selection.select import Selection
from prunesampler.tables.columns import row_numbers
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.score_table import ScoreTable

QUALITY = "quality"
CHANCE = 0.05
"""A fit that shuffled results reach as often as this has learned nothing."""

_PENALTIES = np.logspace(-3, 3, 13)
_SHUFFLES = 999
_FEWEST = 5

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LearnedSelector:
    """Predicts the quality of a row from its indicators; :func:`fit_selector` makes it.

    Attributes:
        weights: indicator → the change of a subset's result as its mean rises by one standard deviation of the means
            that the subsets had.
        mean, scale: indicator → mean and standard deviation of these means.
        intercept: the mean result.
        penalty: of the ridge.
        r_squared: of leave-one-out predictions of the results: 1 is perfect, 0 or less no better than their mean.
        p_value: how often shuffled results are predicted as well.
        subsets: how many it was fitted to.
    """

    weights: dict[str, float]
    mean: dict[str, float]
    scale: dict[str, float]
    intercept: float
    penalty: float
    r_squared: float
    p_value: float
    subsets: int

    @property
    def learned(self) -> bool:
        """Whether the indicators predict the results better than chance does."""
        return self.r_squared > 0 and self.p_value <= CHANCE

    def __repr__(self) -> str:
        weights = ", ".join(f"{name} {weight:+.3g}" for name, weight in self.weights.items())
        verdict = "" if self.learned else ": no better than chance"
        fit = f"leave-one-out R² {self.r_squared:.2f}, p {self.p_value:.3f}{verdict}"
        return f"LearnedSelector({weights}; {self.subsets} subsets, {fit})"

    def predict(self, table: ScoreTable) -> npt.NDArray[np.float32]:
        """(len(table),) the quality of each row, in the unit of the results; NaN where an indicator is missing.

        Raises:
            ArgumentError: the table lacks an indicator.
        """
        columns = [_indicator(table, name) for name in self.weights]
        terms = [
            (column - self.mean[name]) / self.scale[name] * weight
            for column, (name, weight) in zip(columns, self.weights.items(), strict=True)
        ]
        return (self.intercept + np.sum(terms, axis=0)).astype(np.float32)  # type: ignore[no-any-return]

    def select(
        self,
        table: ScoreTable,
        keep: float,
        *,
        features: Any = None,
        clusters: Any = 10,
        seed: int = 0,
    ) -> Coreset:
        """The best rows by predicted quality within each cluster, as many as is its share, and at least one of each.

        Args:
            table: the indicators of the rows to select from.
            keep: a float in (0, 1] or an int >= 2, of at least as many rows as there are clusters.
            features: (N, d), as of :func:`prunesampler.select`, for k-means.
            clusters: an int >= 1, of spherical k-means; or (len(table),) ints >= 0, the cluster of each row, by any
                other clustering, and then features are not read.
            seed: an int >= 0, of the clusters and of ties.

        Raises:
            ArgumentError: an argument breaks its rule, or the table lacks an indicator.
        """
        if np.ndim(clusters) == 0:
            from prunesampler.selection.clusters import spherical_k_means  # and torch, which nothing else here needs
            from prunesampler.selection.features import Features

            number = check_int("clusters", clusters, 1)
            if features is None:
                raise ArgumentError("features", "must be given for k-means, or clusters= as one int per row", None)
            features = features if isinstance(features, Features) else Features(features)
            if features.num_rows != table.num_rows:
                raise ArgumentError("features", f"must be of the dataset's {table.num_rows} rows", features.num_rows)
            clusters = spherical_k_means(features.only(table.rows), number, np.random.default_rng(mix(seed))).of
        judged = table.replace(
            scores={**table.scores, QUALITY: self.predict(table)},
            directions={**table.directions, QUALITY: "higher"},
            labels=clusters,
        )
        return Selection(keep, QUALITY, "top", class_balanced=True, min_per_class=1, seed=seed)(judged)


def fit_selector(
    indicators: ScoreTable,
    subsets: Sequence[npt.ArrayLike | Coreset],
    results: npt.ArrayLike,
    *,
    by: Sequence[str] | None = None,
    seed: int = 0,
) -> LearnedSelector:
    """Learn from subsets that were trained on which rows are worth keeping.

    The mean indicators of a subset predict its result by a ridge regression, whose penalty has the lowest leave-one-out
    error. So few points teach little: the same is done with shuffled results, 999 times, and a warning says if these
    are predicted as well.

    Args:
        indicators: a table with a column for each: scores, densities, lengths, whatever may tell a good row. Their
            directions do not matter.
        subsets: rows of each subset, or a coreset; five or more. Random ones, of the size that you mean to keep, and
            better drawn differently (by different scores) than all alike: where the means do not differ, nothing can
            be learned.
        results: (S,) finite numbers, what training on each gave, higher is better.
        by: the columns to learn from; by default all scores.
        seed: an int >= 0, of the shuffling.

    Raises:
        ArgumentError: an argument breaks its rule, or a subset has no row with an indicator.

    Warns:
        PruneSamplerWarning: the results are predicted no better than by chance.

    >>> rng = np.random.default_rng(0)
    >>> table = ScoreTable({"density": rng.random(200), "length": rng.random(200)})
    >>> subsets = [rng.choice(200, 20, replace=False) for _ in range(30)]
    >>> results = [table.scores["density"][rows].mean() for rows in subsets]
    >>> selector = fit_selector(table, subsets, results)
    >>> selector.learned, selector.weights["density"] > 10 * abs(selector.weights["length"])
    (True, True)
    """
    names = list(indicators.directions) if by is None else list(by)
    if not names or len(set(names)) < len(names):
        raise ArgumentError("by", "must be distinct columns of the table", by)
    columns = {name: _indicator(indicators, name) for name in names}
    y = np.asarray(results, np.float64)
    if len(subsets) < _FEWEST or y.shape != (len(subsets),) or not np.isfinite(y).all() or np.ptp(y) == 0:
        rule = f"must be finite, not all the same, and one for each of {_FEWEST} subsets or more"
        raise ArgumentError("results", rule, f"{y.size} for {len(subsets)} subsets")
    means = np.empty((len(subsets), len(names)))
    for at, subset in enumerate(subsets):
        rows = subset.rows if isinstance(subset, Coreset) else row_numbers("subsets", subset, indicators.num_rows)
        places = np.flatnonzero(np.isin(indicators.rows, rows))
        for each, name in enumerate(names):
            known = columns[name][places]
            known = known[~np.isnan(known)]
            if not len(known):
                raise ArgumentError("subsets", f"must each have a row with {name}", f"subset {at} has none")
            means[at, each] = known.mean()
    mean, scale = means.mean(0), means.std(0)
    scale[scale <= 1e-9 * np.abs(mean)] = np.inf  # it is the same in all of them, and says nothing
    x = (means - mean) / scale
    penalty, r_squared = (each[0] for each in _leave_one_out(x, y[:, None]))
    rng = np.random.default_rng(mix(check_int("seed", seed)))
    _, by_chance = _leave_one_out(x, np.stack([rng.permutation(y) for _ in range(_SHUFFLES)], axis=1))
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(len(names)), x.T @ (y - y.mean()))
    selector = LearnedSelector(
        dict(zip(names, weights.tolist(), strict=True)),
        dict(zip(names, mean.tolist(), strict=True)),
        dict(zip(names, scale.tolist(), strict=True)),
        intercept=float(y.mean()),
        penalty=float(penalty),
        r_squared=float(r_squared),
        p_value=float((1 + (by_chance >= r_squared).sum()) / (1 + _SHUFFLES)),
        subsets=len(subsets),
    )
    if not selector.learned:
        warnings.warn(
            f"{len(subsets)} subsets are not enough to learn from: their results are predicted no better than by "
            f"chance (leave-one-out R² {selector.r_squared:.2f}, p {selector.p_value:.2f}). Measure more of them, or "
            "subsets that differ more; until then random rows are as good",
            PruneSamplerWarning,
            stacklevel=2,
        )
    return selector


def _leave_one_out(x: Floats, results: Floats) -> tuple[Floats, Floats]:
    """Of each column of results, (S, T), the penalty of the lowest leave-one-out error, and R² of its predictions.

    (S, k) ``x`` has columns of mean 0. With the hat matrix H the error of row i is eᵢ / (1 − Hᵢᵢ) (Allen 1974).
    """
    u, singular, _ = np.linalg.svd(x, full_matrices=False)
    size = len(x)
    centred = results - results.mean(0)
    best, chosen = np.full(results.shape[1], np.inf), np.empty(results.shape[1])
    for penalty in _PENALTIES * size:
        part = u * (singular**2 / (singular**2 + penalty))
        left = 1 - 1 / size - (part * u).sum(1)
        errors = ((centred - part @ (u.T @ centred)) / left[:, None]) ** 2
        better = errors.sum(0) < best
        best, chosen = np.where(better, errors.sum(0), best), np.where(better, penalty, chosen)
    of_mean = ((centred / (1 - 1 / size)) ** 2).sum(0)
    return chosen, 1 - best / of_mean


def _indicator(table: ScoreTable, name: str) -> Floats:
    """A column with infinite values, of rows that were never learned, at the highest finite one."""
    values = table.column(name).astype(np.float64)
    finite = values[np.isfinite(values)]
    if not len(finite):
        raise ArgumentError("indicators", "must be known of at least one row", name)
    return np.clip(values, finite.min(), finite.max())
