"""Which rows to keep: a table of scores and options in, a coreset of the exact size out."""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prunesampler._logging import log
from prunesampler.errors import ArgumentError, PruneSamplerWarning, check_bool, check_choice, check_int, did_you_mean
from prunesampler.selection.candidates import TableSource
from prunesampler.selection.choose import Classes, Kept, choose, classes_of
from prunesampler.selection.engine import Map
from prunesampler.selection.label_errors import LIKELY, check_likely
from prunesampler.selection.registry import METHODS, Method, check_method, check_similarity, name_of
from prunesampler.selection.superfluous import THRESHOLD, check_threshold
from prunesampler.tables.columns import Int64s, json_object, row_numbers
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.parquet import to_arrow
from prunesampler.tables.score_file import ScoreFile, write_parts
from prunesampler.tables.score_table import ScoreTable

_MANY_UNSCORED = 0.05  # of the kept rows
_LEFT_TO_THE_RULE = ("method", "offset", "class_balanced", "unscored", "strata")


def resolve_keep(keep: float, eligible_count: int, name: str = "keep") -> int:
    """How many rows ``keep`` means: a fraction, rounded but at least 1, or a number; the int 1 could be both."""
    if isinstance(keep, float | np.floating) and 0 < keep <= 1:
        return max(1, round(float(keep) * eligible_count))
    if isinstance(keep, bool) or not isinstance(keep, int | np.integer) or keep < 2:
        raise ArgumentError(name, "must be a float in (0, 1], the fraction, or an int >= 2, the number of rows", keep)
    if keep > eligible_count:
        raise ArgumentError(name, f"must be at most the number of eligible rows, {eligible_count}", keep)
    return int(keep)


@dataclass(frozen=True)
class Selection:
    """The options of :func:`select`, which says what they mean; calling it selects.

    Raises:
        ArgumentError: an option breaks its rule.

    >>> selection = Selection(keep=0.5, method="top", by="margin")
    >>> selection.check(100)
    50
    >>> selection.to_dict()["by"]
    'margin'
    """

    keep: float | Literal["auto", "clean"]
    by: str = "el2n"
    method: Method = "stratified"
    offset: float | None = None
    class_balanced: bool = False
    min_per_class: int | None = None
    seed: int = 0
    unscored: Literal["keep", "drop"] = "keep"
    strata: int = 50
    threshold: float | None = None
    features: Any = field(default=None, compare=False, repr=False)
    method_options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if isinstance(value, np.generic):
                object.__setattr__(self, each.name, value.item())
        method = check_method(self.method)
        if method.default_threshold is not None:
            self._check_uncounted(method.default_threshold)
        elif isinstance(self.keep, str):
            self._check_auto()
        else:
            resolve_keep(self.keep, 2**63)
            if self.threshold is not None:
                raise ArgumentError("threshold", 'belongs to keep="auto" and keep="clean"', self.threshold)
        if not isinstance(self.by, str):
            raise ArgumentError("by", "must be the name of a score", self.by)
        check_choice("unscored", self.unscored, ("keep", "drop"))
        check_bool("class_balanced", self.class_balanced)
        check_int("seed", self.seed)
        check_int("strata", self.strata, 1, 10_000)
        if self.min_per_class is not None:
            check_int("min_per_class", self.min_per_class, 1)
        object.__setattr__(self, "method_options", method.check_options(name_of(self.method), self.method_options))
        if self.features is not None:
            from prunesampler.selection.features import Features  # and torch, which scores alone do not need

            given = self.features if isinstance(self.features, Features) else Features(self.features)
            object.__setattr__(self, "features", given)
        if self.offset is not None:
            if method.default_offset is None:
                names = ", ".join(name for name, each in METHODS.items() if each.default_offset)
                raise ArgumentError("offset", f"belongs to the methods {names}, not to {self.method!r}", self.offset)
            number = isinstance(self.offset, int) and not isinstance(self.offset, bool) and self.offset >= 0
            if not number and not (isinstance(self.offset, float) and 0 <= self.offset < 1):
                raise ArgumentError("offset", "must be a float in [0, 1), the share, or an int >= 0", self.offset)

    def _check_uncounted(self, default: float) -> None:
        """The options of a method that says itself how many rows it keeps."""
        if self.keep is not None and self.keep != "auto":
            rule = f'must be "auto" with method {self.method!r}; select from what it keeps, by eligible='
            raise ArgumentError("keep", rule, self.keep)
        for name, usual in {"class_balanced": False, "min_per_class": None, "unscored": "keep"}.items():
            if getattr(self, name) != usual:
                raise ArgumentError(name, f"cannot be chosen with method {self.method!r}", getattr(self, name))
        object.__setattr__(self, "keep", "auto")
        object.__setattr__(self, "threshold", default if self.threshold is None else self.threshold)
        check_similarity(self.threshold)

    @property
    def removes_superfluous(self) -> bool:
        """Whether the rows go that :func:`~prunesampler.superfluous` finds."""
        return self.keep == "auto" and check_method(self.method).default_threshold is None

    def _check_auto(self) -> None:
        if self.keep not in ("auto", "clean"):
            raise ArgumentError("keep", 'must be a float in (0, 1], an int >= 2, "auto" or "clean"', self.keep)
        for each in dataclasses.fields(self):
            if each.name in _LEFT_TO_THE_RULE and getattr(self, each.name) != each.default:
                rule = f'cannot be chosen with keep="{self.keep}", whose rule says which rows go'
                raise ArgumentError(each.name, rule, getattr(self, each.name))
        auto = self.keep == "auto"
        if self.threshold is None:
            object.__setattr__(self, "threshold", THRESHOLD if auto else LIKELY)
        (check_threshold if auto else check_likely)(self.threshold)

    def check(self, eligible_count: int) -> int | None:
        """How many of ``eligible_count`` rows will be kept; None where a rule such as ``"auto"`` decides."""
        if isinstance(self.offset, int) and self.offset >= eligible_count:
            raise ArgumentError("offset", f"must be below the number of eligible rows, {eligible_count}", self.offset)
        return None if isinstance(self.keep, str) else resolve_keep(self.keep, eligible_count)

    def to_dict(self) -> dict[str, Any]:
        """All but the features as JSON values; ``Selection(**selection.to_dict())`` equals ``selection``."""
        options = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.compare}
        return {**options, "method": name_of(self.method)}

    def __call__(self, table: ScoreTable | None = None, *, eligible: npt.ArrayLike | None = None) -> Coreset:
        """Select from ``table``, or by features alone; see :func:`select`."""
        if table is None:
            table = self._rows_alone()
        where = _where(table, eligible)
        (kept,), found = choose(map, TableSource(table, where), self)
        _warn_of(found, stacklevel=4)
        places = where[kept.places]
        return Coreset(
            table.rows[places],
            num_rows=table.num_rows,
            keys=None if table.key_column is None else table.key_column.take(places),
            shards=None if table.shard_column is None else table.shard_column.take(places),
            fingerprint=table.fingerprint,
            scores_digest=table.digest if table.directions else None,
            selection=found,
        )

    def _rows_alone(self) -> ScoreTable:
        """The rows that have features, with nothing beside them."""
        if self.reads_scores or self.features is None:
            what = f"scores, which method {name_of(self.method)!r} reads" if self.reads_scores else "scores or features"
            raise ArgumentError("table", f"must be given: {what}", None)
        none: dict[str, Any] = {"fingerprint": None, "directions": {}, "protocols": {}, "provenance": {}}
        return ScoreTable._view({"num_rows": self.features.num_rows, **none}, {"row": self.features.present})

    @property
    def reads_scores(self) -> bool:
        """Whether the method looks at the score ``by``."""
        return check_method(self.method).reads(self.method_options)

    @property
    def other_scores(self) -> tuple[str, ...]:
        """The scores that the method reads beside ``by``."""
        return check_method(self.method).columns(self.method_options)

    def check_features(self, num_rows: int) -> None:
        """Refuse features that are missing, or not one per row of the dataset."""
        if self.features is None and check_method(self.method).needs_features:
            raise ArgumentError("features", f"must be given for method {name_of(self.method)!r}", None)
        if self.features is not None and self.features.num_rows != num_rows:
            found = self.features.num_rows
            raise ArgumentError("features", f"must be of the dataset's {num_rows} rows", f"those of {found}")

    def check_columns(self, table: Any) -> None:
        """Refuse a table, or what says which columns it has, that lacks one that is read."""
        if self.reads_scores and self.by not in table.directions:
            rule = f"must be a score of the table, one of {list(table.directions)}"
            raise ArgumentError("by", rule, self.by, did_you_mean(self.by, table.directions))
        for name in ("label", "suggested_label", "signed_confidence") if self.keep == "clean" else ():
            if name not in table.column_names:
                rule = f'with "clean" needs a table with {name}, which a tracker, attach and score write'
                raise ArgumentError("keep", rule, self.keep)
        if (self.class_balanced or self.min_per_class is not None) and "label" not in table.column_names:
            name = "class_balanced" if self.class_balanced else "min_per_class"
            raise ArgumentError(name, "needs a table with labels", getattr(self, name))
        for name in self.other_scores:
            if name not in table.directions:
                rule = f"must name scores of the table, {list(table.directions)}"
                raise ArgumentError("method_options", rule, name)
        self.check_features(table.num_rows)

    def hardness(self, table: ScoreTable) -> npt.NDArray[np.float32]:
        """(len(table),) the score, negated where lower is harder; NaN where a row has none, zeros if none is read."""
        if not self.reads_scores:
            return np.zeros(len(table), np.float32)
        return -table.column(self.by) if table.directions[self.by] == "lower" else table.column(self.by)

    def resolve_offset(self, kept_share: float) -> float | None:
        """``offset``, or the default where such a share of the rows is kept; None for methods that have none."""
        default = check_method(self.method).default_offset
        return self.offset if self.offset is not None or default is None else default(kept_share)

    def warn(self, eligible_count: int, *, stacklevel: int = 1) -> None:
        """Say before the work what the method is known to do badly at this ``keep``."""
        kept = self.check(eligible_count)
        share = 1 if kept is None else kept / eligible_count
        if self.method == "top" and share < 0.6:
            warnings.warn(
                f'method="top" at keep {share:.2g}: below 0.6 the hardest rows alone usually train '
                'worse than a random set of the same size; method="stratified" does not',
                PruneSamplerWarning,
                stacklevel=stacklevel + 1,
            )


def select(
    table: ScoreTable | None = None,
    keep: float | Literal["auto", "clean"] | None = None,
    by: str = "el2n",
    method: Method = "stratified",
    *,
    offset: float | None = None,
    class_balanced: bool = False,
    min_per_class: int | None = None,
    seed: int = 0,
    eligible: npt.ArrayLike | None = None,
    unscored: Literal["keep", "drop"] = "keep",
    threshold: float | None = None,
    features: Any = None,
    method_options: Mapping[str, Any] | None = None,
) -> Coreset:
    """Keep exactly ``resolve_keep(keep, number of eligible rows)`` rows, or those that a rule finds.

    Methods, where "hard" follows the score's direction and ties are broken by a key of seed and row:

    - ``"stratified"``: coverage-centric selection (Zheng et al. 2023, "Coverage-centric Coreset Selection for High
      Pruning Rates", algorithm 1). Leave out the hardest rows, cut the score range of the rest into 50 strata of
      equal width, divide the budget evenly among them from the smallest on, draw at random within each. Infinite
      scores (never learned) are a stratum of their own.
    - ``"top"``, ``"bottom"``: the hardest, the easiest. ``"top"`` loses to a random set below keep 0.6, and warns.
    - ``"window"``: leave out the hardest, keep the next hardest (Paul et al. 2021, section 4).
    - ``"random"``: uniformly, whatever the scores; ``by`` and ``unscored`` have no effect.
    - ``"herding"``, ``"k_center"``, ``"moderate"``, ``"prototypes"``: by ``features``, whatever the scores. What they
      do, their sources and options are on the page "Features and near duplicates" of the documentation.
    - ``"deduplicate"``: all but the near duplicates among ``features`` that :func:`~prunesampler.near_duplicates` finds
      above ``threshold``; ``keep`` is left out. Options ``prefer`` and ``search`` as there.
    - a name given to :func:`~prunesampler.register_method`, or a function of the same form: ``(candidates, budget,
      rng)`` to positions among the candidates, the rows with a score.

    ``keep="auto"`` removes exactly the rows that :func:`~prunesampler.superfluous` finds: learned, never forgotten,
    and with a low score in both halves of the scoring epochs. All others stay, rows without a score too. The table
    needs ``<by>_spread`` and forgetting, as ``attach`` writes them by default.

    ``keep="clean"`` removes the rows whose label is likely wrong, as :func:`~prunesampler.audit` finds them by its
    default method among the eligible rows. All others stay, rows without a score too; and where more than half of the
    labels look wrong, so that the model cannot be trusted, all rows do.

    Args:
        table: the scores; None where ``features`` are all that the method reads.
        keep: a float in (0, 1], the fraction of the eligible rows, an int >= 2, their number, ``"auto"`` or
            ``"clean"``; with these ``method``, ``offset``, ``class_balanced`` and ``unscored`` cannot be chosen.
        by: the score. By ``"forgetting"``, never-learned rows rank as the hardest.
        method: as above. A function stands in the coreset's ``selection`` as ``"module:qualname"``.
        offset: the hardest rows that stratified and window leave out: a float in [0, 1), the share of the rows with
            a score, or an int, their number. By default 0.01 for window and 0.4·(1 − keep)² for stratified, which
            is 3.6 % at keep 0.7, 10 % at 0.5 and 20 % at 0.3: the fewer rows are kept, the more of their places
            would go to outliers and wrong labels. Where fewer rows than ``keep`` would remain, the easiest of those
            left out come back.
        class_balanced: keep the same share of each class, sizes rounded by largest remainder, and select within
            each class. Rows without a label are treated as one class.
        min_per_class: keep at least so many rows of each class, or all of a smaller one. Classes that the method
            would leave below it get this number of rows, selected within the class; the rest is selected anew. With
            ``"auto"`` the hardest of the superfluous rows of such a class stay, with ``"clean"`` the least likely
            wrong ones.
        seed: an int >= 0, of ties and random draws.
        eligible: (E,) the rows that may be kept; by default all rows of the table.
        unscored: ``"keep"`` rows without a score first, or ``"drop"`` them.
        threshold: for ``keep="auto"``: a float > 0, at or below which a score is low; by default
            :data:`prunesampler.selection.superfluous.THRESHOLD`, which is meant for EL2N. For ``"clean"``: the
            probability of a wrong label from which on a row goes; by default 0.5. For ``"deduplicate"`` a float in
            (0, 1), above which two rows are near duplicates; by default 0.95.
        features: (N, d) finite floats, row i being that of row i of the dataset: an array, which may be memory-mapped,
            a tensor, or the path of an ``.npy`` file. Rows that cannot be kept may be NaN, as
            :func:`~prunesampler.features` leaves rows that it never saw.
        method_options: name → JSON value, what the method's own options are.

    Returns:
        The coreset. Its ``selection`` has the ``options``, the numbers ``eligible``, ``kept`` and ``unscored`` (kept
        without a score), the resolved ``offset``, and as ``threshold`` the lowest and highest finite score kept; with
        ``"auto"`` also how many eligible rows were ``superfluous``, with ``"clean"`` how many were likely ``wrong``,
        and as ``noise_rate`` the estimate and its interval.

    Raises:
        ArgumentError: an option breaks its rule, the table has no such score or no labels where they are needed, an
            eligible row is not in the table, ``min_per_class`` of all classes is more than ``keep``, a function returns
            anything but distinct positions, or a rule lacks a column or would leave no row.

    Warns:
        PruneSamplerWarning: ``"top"`` below keep 0.6; no kept row has a score; more than half of the labels look
            wrong.

    >>> table = ScoreTable({"el2n": [0.1, 0.9, 0.2, 0.8, 0.3]})
    >>> select(table, keep=3, method="top").rows
    array([1, 3, 4])
    """
    selection = Selection(
        keep,  # type: ignore[arg-type]  # None is refused
        by,
        method,
        offset,
        class_balanced,
        min_per_class,
        seed,
        unscored,
        threshold=threshold,
        features=features,
        method_options=method_options or {},
    )
    coreset = selection(table, eligible=eligible)
    selection.warn(coreset.selection["eligible"], stacklevel=2)
    return coreset


def select_file(
    run: Map, path: str | os.PathLike[str], out: str | os.PathLike[str], selection: Selection
) -> tuple[dict[str, Any], Classes]:
    """Write the coreset that ``selection`` of a file's table is to ``out``, without ever holding the table."""
    (file,) = run(ScoreFile.open, [os.fspath(path)])
    proof = run(ScoreFile.verify, [file])  # at the same time as the rest
    try:
        kept, found = choose(run, file, selection, count_classes=True)
        _warn_of(found, stacklevel=3)
        metadata = {
            "kind": "coreset",
            "num_rows": file.num_rows,
            "fingerprint": file.fingerprint,
            "scores_digest": file.digest,
            "selection": json_object("selection", found),
        }
        types = {name: file.header.types[name] for name in ("row", "shard", "key") if name in file.header.types}

        def read(columns: Sequence[str]) -> Iterable[pa.Table]:
            return run(functools.partial(_kept_rows, file, columns), kept)

        write_parts(out, metadata, types, found["kept"], read, proof)
    except Exception:
        list(proof)  # what it raises says why all else went wrong
        raise
    return found, classes_of(kept)


def _kept_rows(file: ScoreFile, columns: Sequence[str], kept: Kept) -> pa.Table:
    if file.complete and list(columns) == ["row"]:
        return pa.table({"row": kept.places + file.first_row(kept.block)})
    (table,) = file.block(kept.block, [name for name in columns if name != "row"])
    found = {"row": table.rows, "shard": table.shard_column, "key": table.key_column}
    return pa.table({name: to_arrow(found[name].take(kept.places)) for name in columns})


def _warn_of(found: dict[str, Any], *, stacklevel: int) -> None:
    unscored, kept, (rate, *_) = found["unscored"], found["kept"], found.get("noise_rate", [0])
    if rate > 0.5:
        warnings.warn(
            f"{rate:.0%} of the labels look wrong: the model has hardly learned the data yet, so no row is left out. "
            "Score more epochs",
            PruneSamplerWarning,
            stacklevel=stacklevel,
        )
    if unscored == kept:
        warnings.warn(f"none of the {kept} kept rows has a score", PruneSamplerWarning, stacklevel=stacklevel)
    elif unscored >= _MANY_UNSCORED * kept and found["options"]["method"] != "random":
        log.warning(
            "%d of the %d kept rows have no score (new rows?): they are kept first, in place of scored ones. Raise "
            'keep, give them scores, or leave them out with unscored="drop"',
            unscored,
            kept,
        )


def _where(table: ScoreTable, eligible: npt.ArrayLike | None) -> Int64s:
    """The places of the eligible rows in the table, ascending."""
    if eligible is None:
        return np.arange(len(table))
    rows = np.unique(row_numbers("eligible", eligible, table.num_rows))
    where = np.flatnonzero(np.isin(table.rows, rows, assume_unique=True))
    if len(where) < len(rows):
        raise ArgumentError("eligible", "must be rows of the table", int(np.setdiff1d(rows, table.rows)[0]))
    return where
