"""Which labels are likely wrong, and how many: the columns of a score table in, a probability for each row out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from prunesampler.errors import ArgumentError, check_number

SURE = 0.05
"""The noise rate is counted among this share of the rows: those that the model is surest of."""
LIKELY = 0.5
"""A label is likely wrong at this probability."""

_FEWEST = 20  # rows to count among
_WIDER = 0.2  # the share of the rows among which the model's own errors show
_BINS = 30
_STEPS = 20_000
_PRIOR = 30  # rows that a class, or a pair of classes, must outweigh
_SURER, _PAIRS, _CLASSES = 0.3, 0.2, 0.2  # weights beside the score's 1, in its standard deviations: measured
_SLOPE = 1.5  # of the log odds: pooled ones are too even, measured likewise

Floats = npt.NDArray[np.float64]
_Array = npt.NDArray[Any]


class Evidence(NamedTuple):
    """What a table says of each of its rows: (N,) each.

    ``labels`` and ``suggested`` are class indices, −1 for none; ``confidence`` the highest probability, negative where
    it is not the label's, NaN for none; ``hardness`` a score, higher is harder, NaN for none.
    """

    labels: _Array
    suggested: _Array
    confidence: _Array
    hardness: _Array


@dataclass(frozen=True, eq=False)
class LabelErrors:
    """What is likely wrong.

    Attributes:
        probability: (N,) that the label is wrong, NaN where that is not known.
        score: (N,) by which rows are ranked, higher is likelier wrong, NaN likewise.
        rate: the share of wrong labels.
        low, high: an interval around it of about 95 %, see :func:`disagreement`.
        sure: how many rows the rate was counted among; 0 where it was not counted.
    """

    probability: Floats
    score: Floats
    rate: float
    low: float
    high: float
    sure: int

    def wrong(self, threshold: float = LIKELY) -> npt.NDArray[np.bool_]:
        """(N,) whether the label is wrong with at least this probability."""
        return self.probability >= threshold  # NaN is not


def evidence_of(table: Any, hardness: _Array, *, answers: bool = True) -> Evidence:
    """What a table of scores says, of which the ``hardness`` by one score is given.

    ArgumentError where it has no labels, or not the ``answers`` of the model.
    """
    if table.labels is None:
        raise ArgumentError("table", "must hold the column label", table)
    for name in ("suggested_label", "signed_confidence"):
        if answers and getattr(table, name) is None:
            rule = f"must hold the column {name}, written where there is neither score_fn= nor audit=False"
            raise ArgumentError("table", rule, table)
    nothing = np.full(len(table), -1)
    suggested = nothing if table.suggested_label is None else table.suggested_label
    confidence = np.full(len(table), np.nan) if table.signed_confidence is None else table.signed_confidence
    return Evidence(table.labels, suggested, confidence.astype(np.float32), hardness.astype(np.float32))


def disagreement(given: Evidence) -> LabelErrors:
    """The model's disagreement with the labels, weighed by how far it is to be trusted.

    **How many.** Of the 5 % of the rows that the model is surest of, whatever their label, it is hardly ever wrong
    about the image; the share of them whose label it contradicts is the rate of wrong labels. The interval is Wilson's
    for that share, wider by what can be wrong with it: towards 0 by as much as the share grows from 5 % to 20 % of the
    rows, where the model's own errors come in; upwards to the mean over classes of the share among the surest 5 % of
    each, as the surest rows of all may lack classes that are labelled worse. Rows that the model cannot tell are
    taken to be labelled as well as the others: where wrong labels are on ambiguous rows alone, the rate is too low.

    **Which.** Rows are ranked by their score; by the confidence with which the model contradicts the label; by how
    often rows that it is sure to be of the suggested class bear this label (classes that are taken for one another);
    and by how well the label's class was learned at all. The probability that a label is wrong follows from Bayes' rule
    with the noise rate and the share of rows of like confidence for which the model is right. These are pooled along
    the ranking, so that they rise with it, and their mean over all rows is the rate.

    The weights of the ranking, and the slope of the pooled probabilities, were chosen on CIFAR-10 with 20 and 40 % of
    wrong labels, symmetric and of classes that look alike, see benchmarks/label_noise.py.
    """
    known = (given.labels >= 0) & (given.suggested >= 0) & ~np.isnan(given.confidence) & ~np.isnan(given.hardness)
    if not known.any():
        raise ArgumentError("table", "must hold a label, a suggested label and a score of at least one row", "none")
    labels, suggested = given.labels[known].astype(np.int64), given.suggested[known].astype(np.int64)
    confidence, agrees = np.abs(given.confidence[known].astype(np.float64)), given.confidence[known] > 0
    hardness = _standardised(given.hardness[known].astype(np.float64))
    surest = np.argsort(-confidence, kind="stable")
    rate, low, high, sure = _noise_rate(surest, agrees, np.where(agrees, labels, suggested))
    rate_or_less = max(rate, 0.5 / sure)
    right = _model_is_right(surest, agrees, rate_or_less)
    taken = _taken_for(labels, suggested, agrees, surest[: max(_FEWEST, len(surest) // 10)], rate_or_less)
    unlearned = _unlearned(labels, agrees, rate_or_less)
    score = hardness + _PAIRS * taken - _CLASSES * unlearned
    score += _SURER * _standardised(np.where(agrees, -confidence, confidence))
    against, wrong = (1 - right) * np.exp(unlearned) * (1 - rate_or_less), right * rate_or_less
    odds = np.where(agrees, (1 - right) * rate_or_less / max(1, labels.max()), wrong / np.maximum(against, 1e-9))
    probability = _with_mean(_pooled(score, odds / (1 + odds)), rate)
    found = np.full((2, len(known)), np.nan)
    found[:, known] = probability, score
    return LabelErrors(found[0], found[1], rate, low, high, sure)


def mixture(given: Evidence) -> LabelErrors:
    """Two normal distributions of the score, fitted by expectation and maximisation; the harder one is that of wrong
    labels (Arazo et al. 2019, "Unsupervised label noise modeling and loss correction", with normal components).

    It needs no answers of the model, and gives no interval. Where the model has not learned the data well, hard rows
    are taken for wrong ones: on CIFAR-10 after 12 epochs it finds 43 % wrong of 20 % by EL2N, and
    14 % by margin.
    """
    known = (given.labels >= 0) & np.isfinite(given.hardness)
    values = given.hardness[known].astype(np.float64)
    if len(np.unique(values)) < 2:
        raise ArgumentError("by", "must be a score of which rows have two values or more", len(np.unique(values)))
    values = (values - values.mean()) / values.std()
    order = np.argsort(values, kind="stable")
    steps = np.arange(len(values)) * min(len(values), _STEPS) // len(values)  # fitted to the means of a few rows each
    sizes = np.bincount(steps)
    middles = np.bincount(steps, values[order]) / sizes
    share, means, spreads = 0.2, np.quantile(values, [0.3, 0.95]), np.array([0.6, 0.6])

    def harder(values: Floats) -> Floats:
        logs = [-0.5 * ((values - means[at]) / spreads[at]) ** 2 - math.log(spreads[at]) for at in range(2)]
        odds = logs[1] - logs[0] + math.log(share / (1 - share))
        return 1 / (1 + np.exp(-np.clip(odds, -50, 50)))  # type: ignore[no-any-return]

    for _ in range(500):
        weights = np.stack([1 - (wrong := harder(middles)), wrong]) * sizes
        before, share = share, float(np.clip(weights[1].sum() / len(values), 1e-6, 1 - 1e-6))
        means = weights @ middles / weights.sum(1)
        squares = (weights * (middles - means[:, None]) ** 2).sum(1)
        spreads = np.sqrt(squares / weights.sum(1)).clip(1e-3)
        if abs(share - before) < 1e-7:
            break
    wrong = np.maximum.accumulate(harder(values[order]))  # tails of the wider one come round again
    found = np.full((2, len(known)), np.nan)
    found[0, np.flatnonzero(known)[order]] = wrong
    found[1, known] = values
    return LabelErrors(found[0], found[1], float(wrong.mean()), math.nan, math.nan, 0)


METHODS: dict[str, Callable[[Evidence], LabelErrors]] = {"disagreement": disagreement, "mixture": mixture}
"""By name: what judges labels from a table alone."""


def check_likely(threshold: Any) -> float:
    """A probability in (0, 1]."""
    return check_number("threshold", threshold, 0, 1, above=True)


# -- parts ---------------------------------------------------------------------------------------------------------


def _standardised(values: Floats) -> Floats:
    """Mean 0 and deviation 1, with infinite values at the highest finite one."""
    finite = values[np.isfinite(values)]
    if not len(finite) or finite.std() == 0:
        return np.zeros(len(values))
    found: Floats = (np.clip(values, finite.min(), finite.max()) - finite.mean()) / finite.std()
    return found


def _noise_rate(surest: _Array, agrees: _Array, answer: _Array) -> tuple[float, float, float, int]:
    """The rate, its interval and how many rows it was counted among; ``surest`` has the surest row first."""
    count = min(len(surest), max(_FEWEST, round(SURE * len(surest))))
    among = surest[:count]
    rate = float(1 - agrees[among].mean())
    wider = float(1 - agrees[surest[: max(count, round(_WIDER * len(surest)))]].mean())
    classes, of = np.unique(answer, return_inverse=True)
    sizes = np.bincount(of)
    within = np.empty(len(surest), np.int64)  # the place of each row among those of its class, the surest first
    by_class = surest[np.argsort(of[surest], kind="stable")]
    within[by_class] = np.arange(len(surest)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    top = within < np.maximum(SURE * sizes, np.minimum(sizes, _FEWEST))[of]
    each = np.bincount(of[top], ~agrees[top], len(classes)) / np.bincount(of[top], minlength=len(classes))
    by_classes = float((each * sizes).sum() / sizes.sum())
    low, high = wilson(rate, count)
    worse = max(0.0, wider - rate)
    return rate, max(0.0, low - worse), min(1.0, high + max(0.0, by_classes - rate)), count


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of so many (Wilson 1927).

    >>> [round(limit, 3) for limit in wilson(0.0, 20)]
    [0.0, 0.161]
    """
    z = 1.959964
    middle, half = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(0.0, (middle - half) / (1 + z * z / count)), min(1.0, (middle + half) / (1 + z * z / count))


def _model_is_right(surest: _Array, agrees: _Array, rate: float) -> Floats:
    """(n,) the share of rows of like confidence for which the model's answer is right: more than it agrees with."""
    bins = min(_BINS, -(-len(surest) // _FEWEST))
    place = np.empty(len(surest), np.int64)
    place[surest] = np.arange(len(surest)) * bins // len(surest)
    sizes = np.bincount(place)
    agreement = -_isotonic(-np.bincount(place, agrees) / sizes, sizes)  # falls with confidence
    return np.clip(agreement / (1 - rate) if rate < 1 else agreement * 0, 0.0, 1.0)[place]


def _taken_for(labels: _Array, suggested: _Array, agrees: _Array, sure: _Array, rate: float) -> Floats:
    """(n,) log of how much oftener than by chance rows of the suggested class bear this label; within ±3."""
    classes = 1 + int(max(labels.max(), suggested.max()))
    chance = rate / max(1, classes - 1)
    answer = np.where(agrees, labels, suggested)[sure]
    pairs, counts = np.unique(answer * classes + labels[sure], return_counts=True)
    totals = np.bincount(answer, minlength=classes)
    asked = suggested * classes + labels
    at = np.minimum(np.searchsorted(pairs, asked), len(pairs) - 1)
    count = np.where(pairs[at] == asked, counts[at], 0)
    return np.clip(np.log((count / chance + _PRIOR) / (totals[suggested] + _PRIOR)), -3, 3)


def _unlearned(labels: _Array, agrees: _Array, rate: float) -> Floats:
    """(n,) log odds that the model fails on a right label of this class, less those of all: > 0 for hard classes."""
    sizes, all_agree = np.bincount(labels), agrees.mean()
    each = (np.bincount(labels, agrees) + _PRIOR * all_agree) / (sizes + _PRIOR)

    def odds(agreement: Any) -> Any:
        right = np.clip(agreement / max(1e-9, 1 - rate), 0.01, 0.99)
        return np.log((1 - right) / right)

    return (odds(each) - odds(all_agree))[labels]  # type: ignore[no-any-return]


def _pooled(score: Floats, probability: Floats) -> Floats:
    """The nearest probabilities that rise with the score (isotonic regression), of many rows by steps of a few."""
    order, steps = np.argsort(score, kind="stable"), min(len(score), _STEPS)
    step = np.empty(len(score), np.int64)
    step[order] = np.arange(len(score)) * steps // len(score)
    sizes = np.bincount(step)
    return _isotonic(np.bincount(step, probability) / sizes, sizes)[step]


def _isotonic(values: _Array, weights: _Array) -> Floats:
    """The nearest rising values in least squares: blocks of their means, by pooling adjacent violators."""
    means: list[float] = []
    sizes: list[float] = []
    lengths: list[int] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        length = 1
        while means and means[-1] >= value:
            size = sizes.pop()
            value = (means.pop() * size + value * weight) / (size + weight)
            weight += size
            length += lengths.pop()
        means.append(value)
        sizes.append(weight)
        lengths.append(length)
    return np.repeat(means, lengths)


def _with_mean(probability: Floats, rate: float) -> Floats:
    """With steeper log odds, and shifted so that the mean is the rate."""
    if rate <= 0:
        return np.zeros(len(probability))
    inside = np.clip(probability, 1e-6, 1 - 1e-6)
    logs, low, high = _SLOPE * np.log(inside / (1 - inside)), -40.0, 40.0
    for _ in range(60):
        shift = (low + high) / 2
        low, high = (shift, high) if (1 / (1 + np.exp(-logs - shift))).mean() < rate else (low, shift)
    return 1 / (1 + np.exp(-logs - shift))
