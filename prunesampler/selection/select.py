"""Which rows to keep: a table of scores and options in, a coreset of the exact size out."""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from prunesampler._random import hash64, mix
from prunesampler.errors import ArgumentError, PruneSamplerWarning
from prunesampler.selection.candidates import Method, Pool
from prunesampler.selection.superfluous import THRESHOLD, check_threshold, superfluous
from prunesampler.tables.columns import row_numbers
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.score_table import ScoreTable

__all__ = ["Method", "Selection", "resolve_keep", "select", "tie_keys"]

_Array = npt.NDArray[Any]
_WITH_OFFSET = ("stratified", "window")
_TOP_IS_SAFE_FROM = 0.6
_LEFT_TO_THE_RULE = ("method", "offset", "class_balanced", "unscored", "strata")
_TIES = 0x74696573  # keeps the keys that break ties apart from the orders that are drawn from the same seed


def resolve_keep(keep: float, eligible_count: int) -> int:
    """How many rows ``keep`` means.

    Args:
        keep: a float in (0, 1], the fraction, or an int >= 2, the number. The int 1 is refused: it could mean both.
        eligible_count: number of rows that may be kept.

    Returns:
        ``round(keep * eligible_count)`` of a fraction, but at least 1; the number itself of a number.

    Raises:
        ArgumentError: neither of these, or more rows than there are.

    >>> resolve_keep(0.5, 7), resolve_keep(3, 7), resolve_keep(1.0, 7)
    (4, 3, 7)
    """
    if isinstance(keep, float | np.floating) and 0 < keep <= 1:
        return max(1, round(float(keep) * eligible_count))
    if isinstance(keep, bool) or not isinstance(keep, int | np.integer) or keep < 2:
        raise ArgumentError("keep", "must be a float in (0, 1], the fraction, or an int >= 2, the number of rows", keep)
    if keep > eligible_count:
        raise ArgumentError("keep", f"must be at most the number of eligible rows, {eligible_count}", keep)
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

    keep: float | Literal["auto"]
    by: str = "el2n"
    method: Method = "stratified"
    offset: float | None = None
    class_balanced: bool = False
    min_per_class: int | None = None
    seed: int = 0
    unscored: Literal["keep", "drop"] = "keep"
    strata: int = 50
    threshold: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.generic):
                object.__setattr__(self, field.name, value.item())
        if isinstance(self.keep, str):
            self._check_auto()
        else:
            resolve_keep(self.keep, 2**63)
            if self.threshold is not None:
                raise ArgumentError("threshold", 'belongs to keep="auto"', self.threshold)
        if self.method not in get_args(Method):
            raise ArgumentError("method", f"must be one of {get_args(Method)}", self.method)
        if not isinstance(self.by, str):
            raise ArgumentError("by", "must be the name of a score", self.by)
        if self.unscored not in ("keep", "drop"):
            raise ArgumentError("unscored", 'must be "keep" or "drop"', self.unscored)
        if not isinstance(self.class_balanced, bool):
            raise ArgumentError("class_balanced", "must be a bool", self.class_balanced)
        for name, lowest, highest in (("seed", 0, math.inf), ("min_per_class", 1, math.inf), ("strata", 1, 10_000)):
            value = getattr(self, name)
            if value is None and name == "min_per_class":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
                raise ArgumentError(name, f"must be an int in [{lowest}, {highest}]", value)
        if self.offset is not None:
            if self.method not in _WITH_OFFSET:
                raise ArgumentError(
                    "offset", f"belongs to the methods {_WITH_OFFSET}, not to {self.method!r}", self.offset
                )
            number = isinstance(self.offset, int) and not isinstance(self.offset, bool) and self.offset >= 0
            if not number and not (isinstance(self.offset, float) and 0 <= self.offset < 1):
                raise ArgumentError("offset", "must be a float in [0, 1), the share, or an int >= 0", self.offset)

    def _check_auto(self) -> None:
        if self.keep != "auto":
            raise ArgumentError("keep", 'must be a float in (0, 1], an int >= 2, or "auto"', self.keep)
        for field in dataclasses.fields(self):
            if field.name in _LEFT_TO_THE_RULE and getattr(self, field.name) != field.default:
                rule = 'cannot be chosen with keep="auto", whose rule says which rows go'
                raise ArgumentError(field.name, rule, getattr(self, field.name))
        if self.threshold is None:
            object.__setattr__(self, "threshold", THRESHOLD)
        check_threshold(self.threshold)

    def check(self, eligible_count: int) -> int | None:
        """How many of ``eligible_count`` rows will be kept; None where ``keep="auto"`` leaves that to the scores.

        Raises:
            ArgumentError: more are to be kept, or left out as the hardest, than there are.
        """
        if isinstance(self.offset, int) and self.offset >= eligible_count:
            raise ArgumentError("offset", f"must be below the number of eligible rows, {eligible_count}", self.offset)
        return None if isinstance(self.keep, str) else resolve_keep(self.keep, eligible_count)

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON values; ``Selection(**selection.to_dict())`` equals ``selection``."""
        return dataclasses.asdict(self)

    def __call__(self, table: ScoreTable, *, eligible: npt.ArrayLike | None = None) -> Coreset:
        """Select from ``table``; see :func:`select`."""
        self.check_columns(table)
        where = _where(table, eligible)
        budget = self.check(len(where))
        score = self.scores(table)[where]
        offset = None if budget is None else self.resolve_offset(budget / len(where))
        pool = Pool(
            hardness=self.hardness(table)[where],
            key=tie_keys(self.seed, table.rows[where]),
            labels=None if table.labels is None else table.labels[where],
            method=self.method,
            offset=offset or 0,
            strata=self.strata,
        )
        found = {}
        if budget is None:
            spare = superfluous(table, self.by, cast(float, self.threshold))[where]
            found["superfluous"] = int(spare.sum())
            chosen = pool.without(spare, self.min_per_class or 0)
            if not len(chosen):
                raise ArgumentError("threshold", f"must leave one of the {len(where)} eligible rows", self.threshold)
        else:
            chosen = self._choose(pool, budget)
        kept, score = where[chosen], score[chosen]
        without = int(np.isnan(score).sum())
        if without == len(chosen):
            warnings.warn(f"none of the {len(chosen)} kept rows has a score", PruneSamplerWarning, stacklevel=3)
        finite = score[np.isfinite(score)]
        return Coreset(
            table.rows[kept],
            num_rows=table.num_rows,
            keys=None if table.key_column is None else table.key_column.take(kept),
            shards=None if table.shard_column is None else table.shard_column.take(kept),
            fingerprint=table.fingerprint,
            scores_digest=table.digest,
            selection={
                "options": self.to_dict(),
                "eligible": len(where),
                "kept": len(chosen),
                **found,
                "unscored": without,
                "offset": offset,
                "threshold": [float(finite.min()) + 0.0, float(finite.max()) + 0.0]  # −0 is 0
                if len(finite) and self.method != "random"
                else None,
            },
        )

    def _choose(self, pool: Pool, budget: int) -> _Array:
        members = np.arange(len(pool.key))
        if self.unscored == "drop":
            members = members[~np.isnan(pool.hardness)]
            if budget > len(members):
                raise ArgumentError("keep", f"must be at most the {len(members)} rows with a score", self.keep)
        if self.min_per_class is not None:
            chosen = pool.choose_with_floor(members, budget, self.min_per_class, balanced=self.class_balanced)
        else:
            chosen = (pool.choose_balanced if self.class_balanced else pool.choose)(members, budget)
        chosen.sort()
        return chosen

    def check_columns(self, table: Any) -> None:
        """Refuse a table, or what says which columns it has, that lacks one that is read.

        Raises:
            ArgumentError: it has no such score, or no labels where they are needed.
        """
        if self.method != "random" and self.by not in table.directions:
            raise ArgumentError("by", f"must be a score of the table, one of {list(table.directions)}", self.by)
        if (self.class_balanced or self.min_per_class is not None) and table.labels is None:
            name = "class_balanced" if self.class_balanced else "min_per_class"
            raise ArgumentError(name, "needs a table with labels", getattr(self, name))

    def scores(self, table: ScoreTable) -> npt.NDArray[np.float32]:
        """(len(table),) what is selected by, NaN where a row has no score; zeros for ``"random"``."""
        return np.zeros(len(table), np.float32) if self.method == "random" else table.column(self.by)

    def hardness(self, table: ScoreTable) -> npt.NDArray[np.float32]:
        """(len(table),) the same, the harder the higher."""
        score = self.scores(table)
        return -score if table.directions.get(self.by) == "lower" else score

    def resolve_offset(self, kept_share: float) -> float | None:
        """``offset``, or the default where such a share of the rows is kept; None for methods that have none."""
        if self.offset is not None or self.method not in _WITH_OFFSET:
            return self.offset
        return 0.01 if self.method == "window" else 0.4 * (1 - kept_share) ** 2

    def warn(self, eligible_count: int, *, stacklevel: int = 1) -> None:
        """Say before the work what the method is known to do badly at this ``keep``.

        Args:
            eligible_count: number of rows that may be kept.
            stacklevel: of the warning, counted from the caller.
        """
        kept = self.check(eligible_count)
        share = 1 if kept is None else kept / eligible_count
        if self.method == "top" and share < _TOP_IS_SAFE_FROM:
            warnings.warn(
                f'method="top" at keep {share:.2g}: below {_TOP_IS_SAFE_FROM} the hardest rows alone usually train '
                'worse than a random set of the same size; method="stratified" does not',
                PruneSamplerWarning,
                stacklevel=stacklevel + 1,
            )


def select(
    table: ScoreTable,
    keep: float | Literal["auto"],
    by: str = "el2n",
    method: Method = "stratified",
    *,
    offset: float | None = None,
    class_balanced: bool = False,
    min_per_class: int | None = None,
    seed: int = 0,
    eligible: npt.ArrayLike | None = None,
    unscored: Literal["keep", "drop"] = "keep",
    strata: int = 50,
    threshold: float | None = None,
) -> Coreset:
    """Keep exactly ``resolve_keep(keep, number of eligible rows)`` rows, or with ``"auto"`` all that are of use.

    Methods, where "hard" follows the score's direction and ties are broken by a key of seed and row:

    - ``"stratified"``: coverage-centric selection (Zheng et al. 2023, "Coverage-centric Coreset Selection for High
      Pruning Rates", algorithm 1). Leave out the hardest share, cut the score range of the rest into ``strata`` of
      equal width, share the budget evenly among them from the smallest on, draw at random within each. Infinite
      scores (never learned) are a stratum of their own.
    - ``"top"``, ``"bottom"``: the hardest, the easiest. ``"top"`` loses to a random set below keep 0.6, and warns.
    - ``"window"``: leave out the hardest, keep the next hardest (Paul et al. 2021, section 4).
    - ``"random"``: uniformly, whatever the scores; ``by`` and ``unscored`` are not read.

    ``keep="auto"`` chooses no number: exactly the rows that :func:`~prunesampler.superfluous` finds go, which were
    learned, never forgotten, and scored low in both halves of the scoring epochs. All others stay, rows without a
    score too. The table needs ``<by>_spread`` and forgetting, as ``attach`` writes them by default.

    Args:
        table: the scores.
        keep: a float in (0, 1], the fraction of the eligible rows, an int >= 2, their number, or ``"auto"``; with it
            ``method``, ``offset``, ``class_balanced``, ``unscored`` and ``strata`` cannot be chosen.
        by: the score. By ``"forgetting"``, never-learned rows rank as the hardest.
        method: as above.
        offset: the hardest rows that stratified and window leave out: a float in [0, 1), the share of the rows with
            a score, or an int, their number. By default 0.01 for window and 0.4·(1 − keep)² for stratified, which
            is 3.6 % at keep 0.7, 10 % at 0.5 and 20 % at 0.3: the fewer rows are kept, the more of their places
            would go to outliers and wrong labels. Where fewer rows than ``keep`` would remain, the easiest of those
            left out come back.
        class_balanced: keep the same share of each class, sizes rounded by largest remainder, and select within
            each class. Rows without a label are treated as one class.
        min_per_class: keep at least so many rows of each class, or all of a smaller one. Classes that the method
            would leave below it get this number of rows, selected within the class; the rest is selected anew. With
            ``"auto"`` the hardest of the superfluous rows of such a class stay.
        seed: an int >= 0, of ties and random draws.
        eligible: (E,) the rows that may be kept; by default all rows of the table.
        unscored: what becomes of rows without a score: ``"keep"`` them first, or ``"drop"`` them.
        strata: their number, in [1, 10000].
        threshold: of ``keep="auto"`` alone: a float > 0, at or below which a score is low; by default
            :data:`prunesampler.selection.superfluous.THRESHOLD`, which is meant for EL2N.

    Returns:
        The coreset. Its ``selection`` has the ``options``, the numbers ``eligible``, ``kept`` and ``unscored`` (kept
        without a score), the resolved ``offset``, and as ``threshold`` the lowest and highest finite score kept; with
        ``"auto"`` also how many eligible rows were ``superfluous``.

    Raises:
        ArgumentError: an option breaks its rule, the table has no such score or no labels where they are needed, an
            eligible row is not in the table, the floors of all classes add up to more than ``keep``, or ``"auto"``
            lacks what it reads or would leave no row at all.

    Warns:
        PruneSamplerWarning: ``"top"`` below keep 0.6; no kept row has a score.

    >>> table = ScoreTable({"el2n": [0.1, 0.9, 0.2, 0.8, 0.3]})
    >>> select(table, keep=3, method="top").rows
    array([1, 3, 4])
    """
    selection = Selection(keep, by, method, offset, class_balanced, min_per_class, seed, unscored, strata, threshold)
    coreset = selection(table, eligible=eligible)
    selection.warn(coreset.selection["eligible"], stacklevel=2)
    return coreset


def tie_keys(seed: int, rows: _Array) -> npt.NDArray[np.uint64]:
    """What decides between rows of equal scores, and draws rows at random: (R,) distinct numbers."""
    return hash64(mix(seed, _TIES), rows)


def _where(table: ScoreTable, eligible: npt.ArrayLike | None) -> _Array:
    """The places of the eligible rows in the table, ascending."""
    if eligible is None:
        return np.arange(len(table))
    rows = np.unique(row_numbers("eligible", eligible, table.num_rows))
    where = np.searchsorted(table.rows, rows)
    known = table.rows[np.minimum(where, len(table) - 1)] == rows
    if not known.all():
        raise ArgumentError("eligible", "must be rows of the table", int(rows[~known][0]))
    return where
