"""Likely wrong labels, found by the scores of the training run itself: ranked, counted, and which class is taken for
which."""

from __future__ import annotations

import csv
import io
import math
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from prunesampler._format import counted, percent
from prunesampler.analysis.statistics import default_score, protocol_of
from prunesampler.errors import ArgumentError, UnsupportedError
from prunesampler.selection.label_errors import (
    LIKELY,
    METHODS,
    Evidence,
    LabelErrors,
    check_likely,
    evidence_of,
)
from prunesampler.tables.atomic import atomic_write
from prunesampler.tables.dataset_names import named_classes
from prunesampler.tables.score_table import ScoreTable

COLUMNS = ("row", "key", "label", "suggested_label", "score", "probability", "rank")
_FEW_EPOCHS = 6
_SMALL_CLASS = 20
_WIDE = 0.15
_MATRIX = 5_000  # classes
_LIMIT = 0.99
_SHOWS = 0.01  # noise rate

Method = str | Callable[[Evidence], LabelErrors]
"""A method's name, or a function from the evidence to what is likely wrong."""


@dataclass(frozen=True)
class NoiseRate:
    """A share of wrong labels, and an interval around it; NaN limits where a method gives none.

    >>> print(NoiseRate(0.082, 0.061, 0.104))
    8 % (6 % to 10 %)
    """

    rate: float
    low: float
    high: float

    def __float__(self) -> float:
        return self.rate

    def __str__(self) -> str:
        return percent(self.rate) + ("" if math.isnan(self.low) else f" ({percent(self.low)} to {percent(self.high)})")


@dataclass(frozen=True)
class ClassNoise:
    """One class: its label and name (or None), its rows, how many of them are flagged, and the share that is wrong."""

    label: int
    name: str | None
    rows: int
    flagged: int
    rate: float


@dataclass(frozen=True)
class Confusion:
    """Flagged rows of one label whose suggested label is one and the same."""

    label: int
    suggested_label: int
    flagged: int


@dataclass(frozen=True, eq=False)
class LabelIssues:
    """Rows whose label is likely wrong, the likeliest first. ``len()`` is their number.

    Made by :func:`audit`.

    Attributes:
        table: as it was audited.
        method, by: how, and by which score.
        threshold: probability from which on a row is flagged.
        noise_rate: of the whole table, with an interval.
        notes: what limits the answer, in sentences; empty where nothing does.
        names: class names by label, as far as they are known.
        rows: (n,) int64, the rows.
        labels, suggested_labels: (n,) int32; −1 where there is none.
        scores: (n,) float64 by which they are ranked, higher is likelier wrong.
        probabilities: (n,) float64 that the label is wrong.
    """

    table: ScoreTable
    method: str
    by: str
    threshold: float
    noise_rate: NoiseRate
    notes: tuple[str, ...]
    names: dict[int, str]
    _errors: LabelErrors
    _places: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self._places)

    @property
    def rows(self) -> npt.NDArray[np.int64]:  # noqa: D102
        return self.table.rows[self._places]

    @property
    def labels(self) -> npt.NDArray[np.int32]:  # noqa: D102
        assert self.table.labels is not None
        return self.table.labels[self._places]

    @property
    def suggested_labels(self) -> npt.NDArray[np.int32]:  # noqa: D102
        suggested = self.table.suggested_label
        return np.full(len(self), -1, np.int32) if suggested is None else suggested[self._places]

    @property
    def scores(self) -> npt.NDArray[np.float64]:  # noqa: D102
        return self._errors.score[self._places]

    @property
    def probabilities(self) -> npt.NDArray[np.float64]:  # noqa: D102
        return self._errors.probability[self._places]

    @property
    def keys(self) -> list[Any]:
        """Of the rows; None each where the table has no keys."""
        column = self.table.key_column
        return [None] * len(self) if column is None else column.take(self._places).tolist()

    def all(self) -> LabelIssues:
        """Every row whose probability is known, not only those that are flagged; the likeliest wrong first."""
        return replace(self, _places=_ranked(self._errors, ~np.isnan(self._errors.probability)))

    @property
    def per_class(self) -> tuple[ClassNoise, ...]:
        """Of every class of the table, by label."""
        probability, flagged = self._errors.probability, self._errors.wrong(self.threshold)
        labels = self.table.labels
        assert labels is not None
        known = ~np.isnan(probability) & (labels >= 0)
        rows, wrong = np.bincount(labels[known]), np.bincount(labels[known], flagged[known]).astype(np.int64)
        sums = np.bincount(labels[known], probability[known])
        return tuple(
            ClassNoise(label, self.names.get(label), int(n), int(wrong[label]), float(sums[label] / n))
            for label, n in enumerate(rows.tolist())
            if n
        )

    @property
    def confusions(self) -> tuple[Confusion, ...]:
        """Pairs of labels among the rows, the most frequent first."""
        pairs, counts = np.unique(np.stack([self.labels, self.suggested_labels]), axis=1, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return tuple(Confusion(int(pairs[0, at]), int(pairs[1, at]), int(counts[at])) for at in order.tolist())

    def confusion_matrix(self) -> npt.NDArray[np.float64]:
        """(C, C) expected numbers of rows: of each given label (down) those that should have each other one (across).

        The diagonal has those whose label is right. Of up to 5,000 classes.
        """
        labels, suggested, probability = self.table.labels, self.table.suggested_label, self._errors.probability
        known = ~np.isnan(probability) & (-1 if labels is None else labels >= 0)
        if labels is None or suggested is None:
            raise ArgumentError("table", "must hold a suggested label", self.table)
        known &= suggested >= 0
        labels, suggested, probability = labels[known], suggested[known], probability[known]
        classes = 1 + int(max(labels.max(), suggested.max()))
        if classes > _MATRIX:
            raise ArgumentError("table", f"must have at most {_MATRIX} classes: confusions names the pairs", classes)
        cells = np.bincount(labels.astype(np.int64) * classes + suggested, probability, classes**2)
        found: npt.NDArray[np.float64] = cells.reshape(classes, classes).astype(np.float64)
        found[np.diag_indices(classes)] += np.bincount(labels, 1 - probability, classes)
        return found

    def to_arrow(self) -> pa.Table:
        """A ``pyarrow.Table`` with the columns of :meth:`to_pandas`."""
        keys = self.table.key_column
        columns = {
            "row": self.rows,
            "key": pa.nulls(len(self)) if keys is None else pa.array(keys).take(pa.array(self._places)),
            "label": self.labels,
            "suggested_label": pa.array(self.suggested_labels, mask=self.suggested_labels < 0),
            "score": self.scores,
            "probability": self.probabilities,
            "rank": np.arange(1, len(self) + 1),
        }
        return pa.table(columns)

    def to_pandas(self) -> Any:
        """A DataFrame, one line a row: ``row``, ``key``, ``label``, ``suggested_label``, ``score``, ``probability`` and
        ``rank``, from 1. It needs pandas."""
        try:
            import pandas as pandas
        except ModuleNotFoundError as error:
            raise UnsupportedError("to_pandas() needs pandas: pip install pandas, or take to_arrow()") from error
        return self.to_arrow().to_pandas()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them as ``.csv`` or ``.parquet``, by the ending of ``path``."""
        kind = os.path.splitext(os.fspath(path))[1].lower()
        if kind not in (".csv", ".parquet"):
            raise ArgumentError("path", "must end in .csv or .parquet", os.fspath(path))
        table = self.to_arrow()
        with atomic_write(path) as file:
            if kind == ".parquet":
                pq.write_table(table, file)
                return
            text = io.StringIO()
            lines = csv.writer(text, lineterminator="\n")
            lines.writerow(COLUMNS)
            lines.writerows(zip(*(column.to_pylist() for column in table.columns), strict=True))
            file.write(text.getvalue().encode("utf-8", "surrogatepass"))

    def __repr__(self) -> str:
        return f"LabelIssues(flagged={len(self)}, of={len(self.table)}, noise_rate={self.noise_rate})"


def audit(
    table: ScoreTable | Sequence[ScoreTable],
    *,
    method: Method = "disagreement",
    by: str | None = None,
    threshold: float = LIKELY,
    probabilities: npt.ArrayLike | None = None,
) -> LabelIssues:
    """Find likely wrong labels in the scores of an ordinary training run.

    Methods:

    - ``"disagreement"``: the model's disagreement with the labels, weighed by how far it is to be trusted; see
      :func:`prunesampler.selection.label_errors.disagreement`. On CIFAR-10 it found the rate within 2.1 points after
      12 epochs and 3.7 after six (one seed).
    - ``"mixture"``: two normal distributions of the score, the harder of them that of wrong labels. For scores without
      the columns that disagreement reads.
    - ``"confident_learning"``: cleanlab's, which must be installed, on ``probabilities`` of rows that the model did not
      train on, of cross-validation say.
    - ``"aum"``: the published procedure on the tables of two runs with :class:`~prunesampler.ThresholdSamples`: a row
      is flagged whose margin is below the 99th percentile of those of the rows with the class that does not exist.
    - a function from :class:`~prunesampler.selection.label_errors.Evidence` to
      :class:`~prunesampler.selection.label_errors.LabelErrors`.

    Args:
        table: the scores of six epochs or more, of a model that has not learned wrong labels by heart yet; for AUM a
            list of tables with margins, each of another part.
        method: as above.
        by: the score to rank by; by default EL2N, or the first one.
        threshold: probability in (0, 1] from which on a row is flagged.
        probabilities: (len(table), C) in the order of ``table.rows``, for confident learning.

    Raises:
        ArgumentError: an argument breaks its rule, or the table lacks a column that the method reads.
        UnsupportedError: cleanlab is not installed.

    >>> rng = np.random.default_rng(0)
    >>> labels, true = rng.integers(0, 3, 1000), np.arange(1000) % 3
    >>> labels[100:] = true[100:]
    >>> sure = np.where(labels == true, 1, -1) * rng.uniform(0.7, 1, 1000)
    >>> table = ScoreTable(
    ...     {"el2n": 1 - sure}, labels=labels, signed_confidence=sure,
    ...     suggested_label=np.where(labels == true, (labels + 1) % 3, true),
    ... )
    >>> issues = audit(table)
    >>> len(issues) == (labels != true).sum()
    np.True_
    """
    check_likely(threshold)
    aum = None
    if method == "aum":
        table, aum = _below_threshold_samples(table)
        by = "margin"
    elif not isinstance(table, ScoreTable):
        raise ArgumentError("table", 'must be a ScoreTable; several are for method="aum"', table)
    by = default_score(table, by)
    if aum is not None:
        errors = aum
    elif method == "confident_learning":
        errors = _confident_learning(table, probabilities)
    elif probabilities is not None:
        raise ArgumentError("probabilities", 'belong to method="confident_learning"', method)
    else:
        errors = _judge(table, by, method)
    return LabelIssues(
        table=table,
        method=method if isinstance(method, str) else getattr(method, "__qualname__", type(method).__name__),
        by=by,
        threshold=threshold,
        noise_rate=NoiseRate(errors.rate, errors.low, errors.high),
        notes=tuple(_notes(table, by, errors)),
        names=named_classes(table),
        _errors=errors,
        _places=_ranked(errors, errors.wrong(threshold)),
    )


def noticed(table: ScoreTable, path: str) -> tuple[str, str] | None:
    """A sentence on wrong labels, and the command that shows them; None where the scores do not show any."""
    try:
        issues = audit(table)
    except ArgumentError:  # it lacks what tells
        return None
    if issues.noise_rate.low < _SHOWS or not len(issues):
        return None
    told = f"About {issues.noise_rate} of the labels look wrong; {counted(len(issues), 'row')} should be looked at."
    return told, f"prunesampler audit {shlex.quote(path)} --images FOLDER -o issues.html"


def _judge(table: ScoreTable, by: str, method: Method) -> LabelErrors:
    if isinstance(method, str) and method not in METHODS:
        names = ", ".join([*METHODS, "confident_learning", "aum"])
        raise ArgumentError("method", f"must be one of {names}, or a function of the evidence", method)
    function = METHODS[method] if isinstance(method, str) else method
    if not callable(function):
        raise ArgumentError("method", "must be a name, or a function of the evidence", method)
    hardness = -table.column(by) if table.directions[by] == "lower" else table.column(by)
    found = function(evidence_of(table, hardness, answers=method != "mixture"))
    if not isinstance(found, LabelErrors) or found.probability.shape != (len(table),):
        raise ArgumentError("method", f"must return LabelErrors of {len(table)} rows", type(found).__name__)
    return found


def _confident_learning(table: ScoreTable, probabilities: Any) -> LabelErrors:
    """As cleanlab's ``find_label_issues`` has it; where it finds none, no row is flagged."""
    if table.labels is None or (table.labels < 0).any():
        raise ArgumentError("table", "must hold a label of every row for confident learning", table)
    given = np.asarray(probabilities, np.float64)
    if given.ndim != 2 or len(given) != len(table) or not np.isfinite(given).all() or (given < 0).any():
        shape = f"({len(table)}, classes)"
        raise ArgumentError("probabilities", f"must be probabilities of shape {shape}", given.shape)
    try:
        from cleanlab.count import compute_confident_joint
        from cleanlab.filter import find_label_issues
    except ModuleNotFoundError as error:
        raise UnsupportedError(f"confident learning is cleanlab's ({error}): pip install cleanlab") from error
    wrong = find_label_issues(table.labels, given, n_jobs=1)  # it forks, which can hang where there are threads
    joint = compute_confident_joint(table.labels, given)
    quality = given[np.arange(len(given)), table.labels]
    rate = float(1 - np.trace(joint) / joint.sum())
    probability = np.where(wrong, 1 - quality / 2, (1 - quality) / 2)  # flagged rows above a half, others below
    return LabelErrors(probability, 1 - quality, rate, math.nan, math.nan, 0)


def _below_threshold_samples(given: Any) -> tuple[ScoreTable, LabelErrors]:
    """What several runs say together: of each row its margin in the first of them where it bears its own label.

    A probability is 0.5 at the threshold, and rises with the distance below it, in deviations of the samples' margins.
    """
    tables = [given] if isinstance(given, ScoreTable) else list(given)
    rule = "must be one or several ScoreTables of the same rows with margins and labels"
    if not tables or not all(isinstance(each, ScoreTable) for each in tables):
        raise ArgumentError("table", rule, given)
    first = tables[0]
    for each in tables:
        if each.labels is None or "margin" not in each.scores or not np.array_equal(each.rows, first.rows):
            raise ArgumentError("table", rule, each)
    assert all(each.labels is not None for each in tables)
    fake = max(int(np.max(each.labels)) for each in tables)  # type: ignore[arg-type]
    margin, labels = np.full(len(first), np.nan), np.full(len(first), -1, np.int32)
    suggested, score = labels.copy(), margin.copy()
    for each in tables:
        assert each.labels is not None
        sample, values = each.labels == fake, each.scores["margin"].astype(np.float64)
        if np.isfinite(values[sample]).sum() < 2:
            raise ArgumentError("table", "must hold rows of ThresholdSamples, with the highest class", each)
        limit, spread = np.nanquantile(values[sample], _LIMIT), np.nanstd(values[sample])
        new = ~sample & np.isnan(margin) & ~np.isnan(values)
        margin[new], labels[new], score[new] = values[new], each.labels[new], (limit - values[new]) / max(spread, 1e-9)
        if each.suggested_label is not None:
            suggested[new] = np.where(each.suggested_label[new] == fake, -1, each.suggested_label[new])
    probability = 1 / (1 + np.exp(-np.clip(score, -50, 50)))
    flagged = score > 0
    rate = float(flagged.sum() / max(1, (~np.isnan(score)).sum()))
    table = first.replace(
        scores={"margin": margin},
        labels=labels,
        suggested_label=suggested,
        forgetting_events=None,
        learned=None,
        directions={"margin": "lower"},
        protocols={"margin": protocol_of(first, "margin")},
    )
    return table, LabelErrors(probability, score, rate, math.nan, math.nan, 0)


def _ranked(errors: LabelErrors, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    places = np.flatnonzero(mask)
    return places[np.lexsort((-errors.score[places], -errors.probability[places]))]


def _notes(table: ScoreTable, by: str, errors: LabelErrors) -> list[str]:
    """What limits the answer."""
    notes, epochs = [], protocol_of(table, by).get("epochs")
    labels, known = table.labels, ~np.isnan(errors.probability)
    if errors.low <= 0.002:
        notes.append("The labels may all be right, or wrong only where nobody can tell from the sample.")
    if isinstance(epochs, int) and epochs < _FEW_EPOCHS and protocol_of(table, by).get("kind") == "online":
        notes.append(
            f"Scored over {counted(epochs, 'epoch')}: a model that has seen so little errs itself, and the rate is "
            f"likely too high. Score {_FEW_EPOCHS} epochs or more."
        )
    elif errors.high - errors.low > _WIDE:
        notes.append("The rate is uncertain: the model is sure of too few rows. Score more epochs, or merge runs.")
    if not known.all():
        notes.append(f"{counted(int((~known).sum()), 'row')} could not be judged: never seen, or without a label.")
    if labels is not None and len(sizes := np.bincount(labels[labels >= 0])):
        small = int(((sizes > 0) & (sizes < _SMALL_CLASS)).sum())
        if small:
            few = counted(small, "class has", "classes have")
            notes.append(f"{few} fewer than {_SMALL_CLASS} rows: too few to tell a wrong label from a rare kind.")
    return notes
