"""The protocol of policies, and what the library makes of their answers."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import numpy as np
import numpy.typing as npt

from prunesampler._format import Shown
from prunesampler._random import mix
from prunesampler.errors import ArgumentError, MismatchError, check_choice, check_int
from prunesampler.sampling.permutation import Permutation
from prunesampler.sampling.systematic import inclusion_probabilities, systematic_sample
from prunesampler.tables.columns import row_numbers
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.fingerprint import matches
from prunesampler.tables.score_table import ScoreTable
from prunesampler.tracking.totals import Reduction
from prunesampler.training.proxy import ProxyTraining
from prunesampler.training.recording import Recording


@dataclass(frozen=True, eq=False)
class Probabilities:
    """An answer of a policy: draw exactly ``budget`` rows, each with a probability of its own.

    The library draws by systematic sampling in a seeded order, and weights the gradient of each drawn sample's logits
    by 1/probability, so that the expected sum of the gradients is that of all the data.

    Args:
        values: (E,) finite floats >= 0, one for each eligible row. Where they do not add up to ``budget``, they are
            scaled until they do, none above 1 (:func:`prunesampler.sampling.systematic.inclusion_probabilities`).
        budget: how many rows to draw, an int from 1 to the number of values above 0.
        preserves: what stays that of all the data in expectation: the sum of the gradients over an ``"epoch"``, whose
            fewer steps are then larger ones, or the mean gradient of a ``"step"``, with weights budget/E times that.

    >>> Probabilities(np.array([1.0, 0.5, 0.5]), budget=2).budget
    2
    """

    values: npt.ArrayLike
    budget: int
    preserves: Literal["epoch", "step"] = "epoch"


Draw = Coreset | npt.NDArray[np.int64] | Probabilities
"""What a policy may answer: rows (a coreset where they have weights), or probabilities and a budget."""


class Policy(Shown, ABC):
    """What an attached run draws before every epoch. A frozen dataclass of options; it keeps no state.

    All that an answer may depend on is given to :meth:`draw`, so a run resumes exactly, and every rank gets the same
    answer. Derive from this class for a policy of your own, and give it to :func:`prunesampler.attach`.

    Attributes:
        score_epochs: passes over all rows that are scored before the first draw; 0 draws from the first epoch on.
        every_epoch: whether a new set is drawn before every epoch, or one set for good.
        reads: scores that each draw reads. They are tracked in every epoch, and a row's is that of the last epoch
            in which it was drawn. Empty: nothing is tracked, and ``table`` is None.
        reduction: of these scores, as :class:`~prunesampler.ScoreTracker` has it.
        forgetting_window: as there.

    >>> @dataclass(frozen=True)
    ... class FirstRows(Policy):
    ...     count: int = 2
    ...     def num_draws(self, eligible, epoch):
    ...         return self.count
    ...     def draw(self, epoch, table, rows, seed, last=None):
    ...         return rows[: self.count]
    >>> FirstRows().draw(0, None, np.arange(5), seed=0)
    array([0, 1])
    """

    score_epochs: int = 0
    every_epoch: bool = True
    reads: tuple[str, ...] = ()
    reduction: ClassVar[Reduction] = "last"
    forgetting_window: ClassVar[int | None] = None

    def _facts(self) -> dict[str, Any]:
        if not dataclasses.is_dataclass(self):
            return {}
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}

    @abstractmethod
    def draw(
        self,
        epoch: int,
        table: ScoreTable | None,
        rows: npt.NDArray[np.int64],
        seed: int,
        last: npt.NDArray[np.int64] | None = None,
    ) -> Draw:
        """What the epoch reads.

        Args:
            epoch: its number in the run, from 0; scored epochs count.
            table: the scores of ``rows``, in their order, as they stand, merged over all ranks; None where none are
                tracked.
            rows: (E,) int64, ascending: the rows that may be drawn.
            seed: of the run; mix it with ``epoch`` for numbers that differ from epoch to epoch.
            last: (K,) int64, ascending: the rows of the draw before this one; None at the first.
        """

    @abstractmethod
    def num_draws(self, eligible: int, epoch: int) -> int | None:
        """How many of so many eligible rows an epoch draws; None where that depends on scores to come."""

    def expected_draws(self, eligible: int, epoch: int) -> float | None:
        """About how many, where :meth:`num_draws` does not know; None: it cannot be said."""
        return self.num_draws(eligible, epoch)

    def order(self, epoch: int) -> npt.NDArray[np.int64] | None:
        """The drawn rows in the order in which the epoch reads them; None: shuffled, or as the loader's sampler has it.

        A shard pipeline reads them in its own.
        """
        return None

    def batch_share(self, epoch: int) -> float:
        """The share of each fetched batch that is handed out."""
        return 1.0

    def batch_filter(self) -> ProxyTraining | None:
        """What says which rows of a batch these are; None hands out all of them."""
        return None

    def recording(self) -> Recording | None:
        """What writes down the hard rows of each trained batch; None writes nothing."""
        return None

    def to_dict(self) -> dict[str, Any]:
        """Name and options as JSON values."""
        return {"name": type(self).__name__, **dataclasses.asdict(cast(Any, self))}


EpochLength = Literal["kept", "full"]


def hardness(table: ScoreTable, by: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(E,) the score ``by`` of ``rows``, higher for harder rows, +inf for one that has none.

    >>> hardness(ScoreTable({"margin": [2.0, -1.0, np.nan]}), "margin", np.arange(3))
    array([-2.,  1., inf])
    """
    values = table.column(by)
    if not np.array_equal(table.rows, rows):
        values = values[np.searchsorted(table.rows, rows)]
    values = values.astype(np.float64)
    if table.directions[by] == "lower":
        values = -values
    return np.where(np.isnan(values), np.inf, values)


class AllRows(Policy):
    """A policy that draws every row in every epoch, and acts within the batches."""

    def draw(
        self,
        epoch: int,
        table: ScoreTable | None,
        rows: npt.NDArray[np.int64],
        seed: int,
        last: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.int64]:
        """All rows."""
        return rows

    def num_draws(self, eligible: int, epoch: int) -> int:
        """All rows."""
        return eligible


def random_rows(rows: npt.NDArray[np.int64], size: int, *key: int) -> npt.NDArray[np.int64]:
    """(size,) distinct ones of ``rows``, in a random order that the integers of ``key`` seed.

    >>> random_rows(np.array([3, 5, 7]), 3, 0, 1).tolist() == random_rows(np.array([3, 5, 7]), 3, 0, 1).tolist()
    True
    """
    return rows[Permutation(len(rows), mix(*key))(np.arange(size))] if size else rows[:0]


def by_hardness(table: ScoreTable, by: str, rows: npt.NDArray[np.int64], seed: int, *key: int) -> npt.NDArray[np.int64]:
    """(E,) ``rows`` from the easiest to the hardest; equally hard ones in a random order that the integers seed.

    In the order of the dataset, ties (forgetting is nearly all ties) would cost a class-sorted one whole classes.

    >>> by_hardness(ScoreTable({"loss": [2.0, 1.0, np.nan]}), "loss", np.arange(3), 0)
    array([1, 0, 2])
    """
    shuffled = random_rows(rows, len(rows), seed, *key)
    return shuffled[np.argsort(hardness(table, by, shuffled), kind="stable")]


def coreset_of(
    answer: Draw, rows: npt.NDArray[np.int64], *, num_rows: int, fingerprint: str | None, seed: int, epoch: int
) -> Coreset:
    """The rows that a policy's answer draws, with weights where they were drawn by probabilities.

    Args:
        answer: of :meth:`Policy.draw`.
        rows: (E,) that it was given.
        num_rows, fingerprint: of the dataset.
        seed, epoch: of the draw by probabilities.

    Raises:
        ArgumentError: rows that may not be drawn, or that are repeated; probabilities that break their rule.
        MismatchError: a coreset of another dataset.

    >>> drawn = coreset_of(
    ...     Probabilities([1.0, 0.5, 0.5], 2), np.array([3, 5, 7]), num_rows=9, fingerprint=None, seed=0, epoch=0
    ... )
    >>> len(drawn), float(drawn.weights.min())
    (2, 1.0)
    """
    if isinstance(answer, Coreset):
        if answer.num_rows != num_rows or not matches(answer.fingerprint, fingerprint):
            raise MismatchError(
                f"the policy draws from a dataset of {answer.num_rows} rows with fingerprint {answer.fingerprint}, and "
                f"this one has {num_rows} and {fingerprint}"
            )
        _check_eligible(answer.rows, rows)
        return answer
    if isinstance(answer, Probabilities):
        values = np.asarray(answer.values, dtype=np.float64)
        if values.shape != rows.shape:
            raise ArgumentError("policy", f"must give {len(rows)} probabilities, one per eligible row", values.shape)
        budget = check_int("budget", answer.budget, 1)
        chances = inclusion_probabilities(values, budget)
        drawn = systematic_sample(chances, budget, mix(seed, epoch))
        unit = 1.0 if check_choice("preserves", answer.preserves, ("epoch", "step")) == "epoch" else budget / len(rows)
        weights = (unit / chances[drawn]).astype(np.float32)
        return Coreset(rows[drawn], num_rows=num_rows, weights=weights, fingerprint=fingerprint)
    found = np.sort(row_numbers("policy", answer, num_rows))
    if (np.diff(found) == 0).any():
        raise ArgumentError("policy", "must draw no row twice", answer)
    _check_eligible(found, rows)
    return Coreset(found, num_rows=num_rows, fingerprint=fingerprint)


def _check_eligible(drawn: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> None:
    strangers = drawn[~np.isin(drawn, rows)]
    if len(strangers):
        raise ArgumentError("policy", "must draw rows that the loader's sampler can draw", int(strangers[0]))
