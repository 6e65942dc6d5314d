"""Whether pruning by a score pays: the user's own training on the kept rows, beside controls of the same cost."""

from __future__ import annotations

import functools
import math
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from prunesampler.analysis.trials import Rows, Trial, Trials, check_seeds
from prunesampler.errors import ArgumentError, UnsupportedError, check_choice, check_number
from prunesampler.selection.registry import Method
from prunesampler.selection.select import Selection
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.score_table import ScoreTable
from prunesampler.training.policies.random_subset import RandomSubset

KEPT = "kept"
CONTROLS = {
    "random": "random",
    "shorter": "training shorter on all rows",
    "fresh": "fresh random rows in each epoch",
    "full": "the full training",
}
"""What is run beside the kept rows, and how it is called in a sentence. All but the last cost as much as they do."""
FEWEST = 3
"""With fewer seeds nothing is decided: the t interval of two is 12.7 standard errors wide on either side."""

Verdict = Literal["beats", "does not beat", "undecided"]


@dataclass(frozen=True)
class Gain:
    """What the kept rows gain over one control, seed by seed.

    Attributes:
        differences: of the metric, one a seed.
        mean: of them.
        half_width: of the t interval around it; infinite for one seed.
        verdict: ``"does not beat"`` where the mean is not above 0, ``"beats"`` where the whole interval is, else
            ``"undecided"``; so too where seeds are fewer than :data:`FEWEST`, or all differences are the same.

    >>> Gain.of([0.03, 0.02, 0.025], confidence=0.95).verdict
    'beats'
    """

    differences: tuple[float, ...]
    mean: float
    half_width: float
    verdict: Verdict

    @classmethod
    def of(cls, differences: Sequence[float], confidence: float) -> Gain:
        """The mean, and its interval: mean ± t(confidence, n − 1) · s / √n."""
        count, mean, half = len(differences), statistics.fmean(differences), math.inf
        if count > 1:
            half = t_quantile(confidence, count - 1) * statistics.stdev(differences) / math.sqrt(count)
        decided: Verdict = "beats" if mean > half > 0 else "undecided" if mean > 0 else "does not beat"
        return cls(tuple(differences), mean, half, decided if count >= FEWEST else "undecided")


@dataclass(frozen=True, repr=False)
class Comparison:
    """What :func:`compare` found. It shows itself as a table and a sentence for each control.

    Attributes:
        trials: every run, seed by seed.
        num_rows: of the full training.
        share: how long the kept rows were trained on, as a fraction of the full training.
        scoring: what their scores cost, likewise. Every control but ``"full"`` trained for ``share + scoring``.
        confidence: of the intervals.
    """

    trials: tuple[Trial, ...]
    num_rows: int
    share: float
    scoring: float
    confidence: float

    @property
    def metrics(self) -> dict[str, list[float]]:
        """Of each arm, seed by seed."""
        arms = dict.fromkeys(each.arm for each in self.trials)
        return {arm: [each.metric for each in self.trials if each.arm == arm] for arm in arms}

    @property
    def gains(self) -> dict[str, Gain]:
        """Over each control."""
        kept, *controls = self.metrics.items()
        return {
            arm: Gain.of([ours - theirs for ours, theirs in zip(kept[1], found, strict=True)], self.confidence)
            for arm, found in controls
        }

    @property
    def pays(self) -> bool:
        """Whether the kept rows beat every control of the same cost."""
        return all(gain.verdict == "beats" for arm, gain in self.gains.items() if arm != "full")

    @property
    def sentences(self) -> list[str]:
        """What to make of it."""
        cost = self.share + self.scoring
        scored = f"{self.scoring:.3g} of it to score" if self.scoring else "nothing of it to score, as scoring=0 says"
        told = [f"Equal cost: {cost:.3g} of the full training, {scored}."]
        count = len(next(iter(self.metrics.values())))
        for arm, gain in self.gains.items():
            shown, name = self._points(gain), CONTROLS[arm]
            if arm == "full":
                told.append(f"Against {name}, at cost 1: {shown}.")
            elif gain.verdict == "beats":
                told.append(f"Beats {name} by {shown.lstrip('+')} at equal cost.")
            elif gain.verdict == "undecided":
                more = "run three seeds or more" if count < FEWEST else "run more seeds"
                if count >= FEWEST and not gain.half_width:
                    more = "the same for every seed, does train use it?"
                told.append(f"Undecided against {name} ({shown} at equal cost): {more}, and do not prune before.")
            else:
                told.append(f"Does not beat {name} ({shown} at equal cost): do not prune by this score.")
        if count > 1:
            told.append(f"± is half of the {self.confidence:.0%} t interval of the differences, paired by seed.")
        return told

    def cells(self) -> list[list[str]]:
        """Arm, rows, share of the training, cost, mean metric and its standard deviation over seeds, as text."""
        unit = 100 if self._percent else 1
        lines = []
        for arm, found in self.metrics.items():
            trial = next(each for each in self.trials if each.arm == arm)
            cost = trial.share + (self.scoring if arm == KEPT else 0)
            spread = f" ± {unit * statistics.stdev(found):.{self._digits}f}" if len(found) > 1 else ""
            rows = f"{self.num_rows if trial.rows is None else trial.rows:,}"
            mean = f"{unit * statistics.fmean(found):.{self._digits}f}{spread}"
            lines.append([arm, rows, f"{trial.share:.3g}", f"{cost:.3g}", mean])
        return lines

    def to_pandas(self) -> Any:
        """A data frame with a line a run: arm, seed, rows, share, cost, metric, seconds.

        Raises:
            UnsupportedError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise UnsupportedError(f"to_pandas() needs pandas ({error}): pip install pandas") from error
        return pandas.DataFrame(
            {
                "arm": [each.arm for each in self.trials],
                "seed": [each.seed for each in self.trials],
                "rows": [self.num_rows if each.rows is None else each.rows for each in self.trials],
                "share": [each.share for each in self.trials],
                "cost": [each.share + (self.scoring if each.arm == KEPT else 0) for each in self.trials],
                "metric": [each.metric for each in self.trials],
                "seconds": [each.seconds for each in self.trials],
            }
        )

    @property
    def columns(self) -> list[str]:
        """Headings of :meth:`cells`."""
        return ["arm", "rows", "share", "cost", "metric, %" if self._percent else "metric"]

    def __repr__(self) -> str:
        lines = [self.columns, *self.cells()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
        return "\n".join([*map("  ".join, aligned), *self.sentences])

    @property
    def _percent(self) -> bool:
        """Whether all values can be shares, and so are told in hundredths."""
        return all(0 <= each.metric <= 1 for each in self.trials)

    @property
    def _digits(self) -> int:
        largest = max(abs(each.metric) for each in self.trials) * (100 if self._percent else 1)
        return max(1, 3 - math.floor(math.log10(largest)) - 1) if largest else 1

    def _points(self, gain: Gain) -> str:
        unit, name = (100, " points") if self._percent else (1, "")
        spread = f" ± {unit * gain.half_width:.{self._digits}f}" if math.isfinite(gain.half_width) else ""
        return f"{unit * gain.mean:+.{self._digits}f}{spread}{name}"


def compare(
    train: Callable[..., float],
    table: ScoreTable | Coreset,
    keep: float | str | None = None,
    by: str = "el2n",
    method: Method = "stratified",
    *,
    arms: Sequence[str] = ("random", "shorter"),
    seeds: int | Sequence[int] = 3,
    share: float | None = None,
    scoring: float = 0.0,
    confidence: float = 0.95,
    save_dir: str | os.PathLike[str] | None = None,
) -> Comparison:
    """Train on the kept rows and on controls of the same cost, and say whether the scores are worth pruning by.

    The kept rows are trained on for ``share``, and the controls for ``share + scoring``, of the steps of the full
    training. For each seed the same arms run, and the differences between them are judged by their t interval:

    - all of it above 0: the kept rows beat the control;
    - its mean at or below 0: they do not;
    - else undecided, as with fewer than three seeds, or with differences that no seed changes. Take more seeds.

    Args:
        train: a function ``(rows, *, seed: int, share: float) -> float``. It trains a new model, whose weights and
            order follow ``seed``, on these rows of the training data alone, for ``share`` of the steps of the full
            training, with a schedule that ends there, and returns a metric of validation data (not the test set),
            higher is better. ``rows`` is (K,) int64, ascending, or None for all rows. ``share`` may be above 1.
        table: the scores; or a coreset that is selected already, and then ``keep``, ``by`` and ``method`` are not.
        keep, by, method: as in :func:`~prunesampler.select`, whose seed is that of the run.
        arms: controls: ``"random"``, random rows, as many; ``"shorter"``, all rows; ``"fresh"``, other random rows in
            each epoch, for which ``rows`` is a function of the epoch, from 0, to (K,) int64; and ``"full"``, all rows
            with ``share=1``, which costs more and is only shown.
        seeds: how many, or which.
        share: > 0; by default the fraction of the rows that are kept, which is as many epochs.
        scoring: >= 0, what the scores cost as a fraction of the full training, divided by the number of runs that use
            them. 8 scored epochs on all rows, of a training of 40, are 0.2. 0 only where scores are there anyway.
        confidence: of the intervals, in (0, 1).
        save_dir: a folder in which each run that is finished leaves a file of JSON, and is not run again.

    Raises:
        ArgumentError: an argument breaks its rule, or ``train`` returns anything but a finite number.
        MismatchError: ``save_dir`` has results of other rows or of another share.

    Values that all lie in [0, 1], as accuracies do, are told in points, hundredths.

    >>> def train(rows, *, seed, share):  # the easiest rows make the best model, here
    ...     return 0.5 if rows is None else 0.7 - 0.1 * rows.mean() - 0.01 * seed
    >>> table = ScoreTable({"el2n": [0.1, 0.2, 0.3, 0.4]})
    >>> found = compare(train, table, keep=0.5, method="bottom", arms=("shorter",), scoring=0.1)
    >>> print(found)
    arm      rows  share  cost   metric, %
    kept        2    0.5   0.6  64.0 ± 1.0
    shorter     4    0.6   0.6  50.0 ± 0.0
    Equal cost: 0.6 of the full training, 0.1 of it to score.
    Beats training shorter on all rows by 14.0 ± 2.5 points at equal cost.
    ± is half of the 95% t interval of the differences, paired by seed.
    >>> found.pays
    True
    """
    if isinstance(arms, str) or not arms or len(set(arms)) < len(arms):
        raise ArgumentError("arms", f"must be distinct names of {', '.join(CONTROLS)}", arms)
    for arm in arms:
        check_choice("arms", arm, tuple(CONTROLS))
    numbers = check_seeds(seeds)
    scoring = check_number("scoring", scoring, 0)
    if check_number("confidence", confidence, 0, 1, above=True) == 1:
        raise ArgumentError("confidence", "must be below 1", confidence)
    if share is not None:
        check_number("share", share, 0, above=True)
    selected = _selector(table, keep, by, method)
    coresets = {seed: selected(seed) for seed in numbers}
    eligible = table.rows if isinstance(table, ScoreTable) else np.arange(table.num_rows)
    fractions = [len(coreset) / len(eligible) for coreset in coresets.values()]
    share = fractions[0] if share is None else float(share)
    everything = None if len(eligible) == table.num_rows else eligible
    trials, runs = [], Trials(train, save_dir)
    for seed, coreset in coresets.items():
        count, rng = len(coreset), np.random.default_rng([seed, 0x636F6D70])
        rows: dict[str, Rows] = {
            KEPT: coreset.rows.copy(),  # torch warns of arrays that cannot be written
            "random": np.sort(rng.choice(eligible, count, replace=False)),
            "fresh": _fresh(count, eligible, seed),
            "shorter": everything,
            "full": everything,
        }
        for arm in (KEPT, *arms):
            length = share if arm == KEPT else 1.0 if arm == "full" else share + scoring
            trials.append(runs.run(arm, rows[arm], seed=seed, share=length))
    return Comparison(tuple(trials), len(eligible), share, scoring, float(confidence))


def _selector(table: Any, keep: Any, by: str, method: Method) -> Callable[[int], Coreset]:
    """What is kept under a seed."""
    if isinstance(table, Coreset):
        if table.weights is not None:
            raise ArgumentError("table", "must be a coreset without weights, which train would not know", table)
        if keep is not None:
            raise ArgumentError("keep", "cannot be chosen for a coreset, which is selected already", keep)
        return lambda seed: table
    if not isinstance(table, ScoreTable):
        raise ArgumentError("table", "must be a ScoreTable or a Coreset", table)
    if keep is None:
        raise ArgumentError("keep", "must be given with a table of scores", keep)
    return lambda seed: Selection(keep, by, method, seed=seed)(table)


def _fresh(count: int, eligible: Any, seed: int) -> Callable[[int], Any]:
    """The rows of an epoch: RS2 without replacement."""
    return lambda epoch: np.sort(RandomSubset(count / len(eligible)).draw(epoch, None, eligible, seed))


@functools.cache
def t_quantile(confidence: float, degrees: int) -> float:
    """The t with P(|T| <= t) = confidence, for Student's distribution with so many degrees of freedom.

    With t = √ν · tan θ the density becomes cos(θ)^(ν − 1), which is summed up.

    >>> round(t_quantile(0.95, 2), 3)
    4.303
    """
    edges = np.linspace(0, np.pi / 2, 200_001)
    mass = np.concatenate([[0.0], np.cumsum(np.cos((edges[1:] + edges[:-1]) / 2) ** (degrees - 1))])
    return float(np.sqrt(degrees) * np.tan(np.interp(confidence, mass / mass[-1], edges)))
