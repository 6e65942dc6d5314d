"""The scores of rows, and their Parquet file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prunesampler.errors import ArgumentError, UnsupportedError, check_int, did_you_mean
from prunesampler.tables.columns import (
    flags,
    floats,
    identities,
    integers,
    json_object,
    optional_text,
    row_layout,
    row_numbers,
)
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.dataset_names import named_classes
from prunesampler.tables.parquet import Stored, to_arrow
from prunesampler.tables.row_list import RowList

__all__ = ["Coreset", "ScoreTable"]

_COUNTS = {
    "forgetting_events": -1,
    "learned": False,
    "presentations": 0,
    "last_epoch": -1,
    "suggested_label": -1,
    "signed_confidence": np.nan,
}  # and what a row without them has
_RESERVED = ("row", "key", "shard", "label", "weight", "forgetting", *_COUNTS)


_LOWER = ("margin", "aum", "aum_softmax")  # harder


class ScoreTable(Stored):
    """One float per row and score, with counts and provenance. Immutable.

    Args:
        scores: name → (N,) floats, finite, or NaN where a row has no score; stored as float32, with their own sign.
        num_rows: size of the dataset; needed where ``rows`` is given.
        rows: (N,) distinct row numbers in [0, num_rows), in any order; by default 0 … N−1.
        labels: (N,) class indices, −1 where a row has none.
        forgetting_events: (N,) counts, −1 where a row has none.
        learned: (N,) bools: was classified correctly at least once.
        presentations: (N,) counts; a row that was never presented has no forgetting score.
        last_epoch: (N,) the epoch, from 0, that a row's scores are of, −1 where it has none.
        suggested_label: (N,) the class that the model prefers but for the label, −1 where a row has none.
        signed_confidence: (N,) its highest probability, negative where that is of another class, NaN where it has none.
        keys: (N,) str or int that name the samples outside of this dataset (paths, ids).
        shards: (N,) names of the tar shards that the samples lie in.
        fingerprint: what the dataset is recognised by.
        directions: score → "higher" or "lower", whichever is harder; by default lower for margins, else higher.
        protocols: score → JSON, how it was measured (kind "online" or "rescored", epochs, reduction, runs).
        provenance: JSON, what else should stand in the file (seed, model).

    Raises:
        ArgumentError: a column has a wrong length, type or range, a row repeats, or there is no score at all.

    The arrays ``rows`` (int64, ascending), ``scores[name]`` (float32), ``labels``, ``forgetting_events``,
    ``presentations``, ``last_epoch``, ``suggested_label`` (int32), ``signed_confidence`` (float32) and ``learned``
    (bool) are copies, read-only, in the order of ``rows``, and None where they were not given. ``directions`` names
    every column that can be selected by.

    The file that :meth:`save` writes has the columns ``row`` int64, ``label`` int32, one float32 per score,
    ``forgetting_events`` int32, ``learned`` bool, ``presentations``, ``last_epoch`` and ``suggested_label`` int32,
    ``signed_confidence`` float32, ``shard``, ``key``: those that were given. Null means no value.

    >>> import tempfile
    >>> table = ScoreTable({"el2n": [0.1, 1.2, float("nan")]}, labels=[0, 1, 1])
    >>> table
    ScoreTable(rows=3, of=3, without={'el2n': 1})
    >>> table.directions
    {'el2n': 'higher'}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table.save(f"{folder}/scores.parquet")
    ...     ScoreTable.load(f"{folder}/scores.parquet") == table
    True
    """

    _kind = "scores"
    _provenance = ("num_rows", "fingerprint", "directions", "protocols", "provenance")

    def __init__(
        self,
        scores: Mapping[str, npt.ArrayLike],
        *,
        num_rows: int | None = None,
        rows: npt.ArrayLike | None = None,
        labels: npt.ArrayLike | None = None,
        forgetting_events: npt.ArrayLike | None = None,
        learned: npt.ArrayLike | None = None,
        presentations: npt.ArrayLike | None = None,
        last_epoch: npt.ArrayLike | None = None,
        suggested_label: npt.ArrayLike | None = None,
        signed_confidence: npt.ArrayLike | None = None,
        keys: Any = None,
        shards: Any = None,
        fingerprint: str | None = None,
        directions: Mapping[str, Literal["higher", "lower"]] | None = None,
        protocols: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        for name in scores:
            if not isinstance(name, str) or not name or name in _RESERVED:
                raise ArgumentError("scores", f"must be named by a str, and not one of {_RESERVED}", name)
        measured: list[Any] = [*scores.values(), *([] if forgetting_events is None else [forgetting_events])]
        if not measured:
            raise ArgumentError("scores", "must not be empty unless forgetting_events is given", scores)
        if rows is None:
            rows = np.arange(len(measured[0]))
            num_rows = len(rows) if num_rows is None else num_rows
            if len(rows) != num_rows:
                found = f"{len(rows)} scores for {num_rows} rows"
                raise ArgumentError("rows", "must be given unless there is one score per row of the dataset", found)
        self.num_rows = check_int("num_rows", num_rows, 1)
        self.fingerprint = optional_text("fingerprint", fingerprint)
        self.protocols = json_object("protocols", protocols)
        self.provenance = json_object("provenance", provenance)
        self.rows, column = row_layout(rows, self.num_rows)
        self.scores: dict[str, npt.NDArray[np.float32]] = {
            name: column(f"scores[{name!r}]", values, floats) for name, values in scores.items()
        }
        self.labels: npt.NDArray[np.int32] | None = column("labels", labels, integers, lowest=-1)
        self.forgetting_events: npt.NDArray[np.int32] | None = column(
            "forgetting_events", forgetting_events, integers, lowest=-1
        )
        self.learned: npt.NDArray[np.bool_] | None = column("learned", learned, flags)
        self.presentations: npt.NDArray[np.int32] | None = column("presentations", presentations, integers, lowest=0)
        self.last_epoch: npt.NDArray[np.int32] | None = column("last_epoch", last_epoch, integers, lowest=-1)
        self.suggested_label: npt.NDArray[np.int32] | None = column(
            "suggested_label", suggested_label, integers, lowest=-1
        )
        self.signed_confidence: npt.NDArray[np.float32] | None = column("signed_confidence", signed_confidence, floats)
        self.key_column = column("keys", keys, identities)
        self.shard_column = column("shards", shards, identities)
        self.directions = self._directions(json_object("directions", directions))

    def _directions(self, given: dict[str, Any]) -> dict[str, str]:
        known = {name: "lower" if name in _LOWER else "higher" for name in self.scores}
        if self.forgetting_events is not None:
            known["forgetting"] = "higher"
        for name, direction in given.items():
            if name not in known or direction not in ("higher", "lower"):
                raise ArgumentError("directions", f'must map names in {list(known)} to "higher" or "lower"', given)
        return known | given

    def _facts(self) -> dict[str, Any]:
        without = {name: int(np.isnan(self.column(name)).sum()) for name in self.directions}
        return {"rows": len(self), "of": self.num_rows, "without": without}

    __iter__ = None  # neither rows nor columns: say which

    def __contains__(self, name: object) -> bool:
        return name in self.directions or name in self._columns()

    def __getitem__(self, name: str) -> Any:
        """A score, as :meth:`column` gives it, or another column of the file.

        >>> table = ScoreTable({"el2n": [0.5, 0.25]}, labels=[1, 0])
        >>> table["el2n"], table["label"]
        (array([0.5 , 0.25], dtype=float32), array([1, 0], dtype=int32))
        """
        columns = self._columns()
        return self.column(name) if name in self.directions or name not in columns else columns[name]

    def to_arrow(self) -> pa.Table:
        """What its file holds, as a ``pyarrow.Table``: null where there is no value."""
        return pa.table({name: to_arrow(column) for name, column in self._columns().items()})

    def to_pandas(self) -> Any:
        """The same as a ``pandas.DataFrame``."""
        return self.to_arrow().to_pandas()

    def to_polars(self) -> Any:
        """The same as a ``polars.DataFrame``; ModuleNotFoundError where polars is not installed."""
        import polars

        return polars.from_arrow(self.to_arrow())

    def head(self, count: int = 5) -> RowList:
        """The first rows, to look at.

        >>> ScoreTable({"el2n": [0.5, 0.25]}, labels=[1, 0]).head()
        row  label   el2n
          0      1  0.500
          1      0  0.250
        """
        return self._listed(np.arange(min(len(self), check_int("count", count, 1))))

    def hardest(self, count: int = 20, by: str | None = None) -> RowList:
        """The rows with the hardest scores, the hardest first; where labels are noisy, many of them are mislabelled.

        Args:
            count: how many, >= 1; fewer where fewer have a score.
            by: the score; by default EL2N, or the first.

        Raises:
            ArgumentError: no such column.

        >>> ScoreTable({"el2n": [0.5, 0.25, 1.5]}, keys=["a.png", "b.png", "c.png"]).hardest(2)
        row   el2n    key
          2  1.500  c.png
          0  0.500  a.png
        """
        return self._listed(self._order(by)[: check_int("count", count, 1)])

    def easiest(self, count: int = 20, by: str | None = None) -> RowList:
        """The rows with the easiest scores, the easiest first; as :meth:`hardest`."""
        return self._listed(self._order(by)[::-1][: check_int("count", count, 1)])

    def _order(self, by: str | None) -> npt.NDArray[np.int64]:
        """The places of the rows that have a score, the hardest first."""
        name = next(iter(["el2n"] if "el2n" in self.directions else self.directions)) if by is None else by
        values = self.column(name)
        scored = np.flatnonzero(~np.isnan(values))
        hard = -values[scored] if self.directions[name] == "higher" else values[scored]
        return scored[np.argsort(hard, kind="stable")]

    def _listed(self, places: npt.NDArray[np.int64]) -> RowList:
        columns = {name: to_arrow(column.take(places)) for name, column in self._columns().items()}
        return RowList(columns, named_classes(self))

    def plot(self, by: str | None = None, axes: Any = None) -> Any:
        """A histogram of one score, or of each, on matplotlib's ``axes``, by default new ones, which are returned.

        Raises:
            ArgumentError: no such column.
            UnsupportedError: matplotlib is not installed.
        """
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise UnsupportedError(f"plots need matplotlib ({error}): pip install 'prunesampler[report]'") from error
        names = list(self.scores) or list(self.directions) if by is None else [by]
        columns = [self.column(name) for name in names]
        if axes is None:
            axes = pyplot.subplots(1, len(names), figsize=(4 * len(names), 3), layout="constrained")[1]
        for name, values, each in zip(names, columns, np.ravel(axes), strict=True):
            each.hist(values[np.isfinite(values)], bins="auto" if len(values) < 10_000 else 100)
            each.set(xlabel=f"{name} ({self.directions[name]} is harder)", ylabel="rows")
        return axes

    def column(self, name: str) -> npt.NDArray[np.float32]:
        """One score, (N,) float32, NaN where a row has none, its sign untouched.

        ``"forgetting"`` is the number of forgetting events, +inf for a row that was never learned (Paul et al.
        2021, after Toneva et al. 2019), NaN for one that was never presented.

        Raises:
            ArgumentError: no such column.

        >>> ScoreTable({}, forgetting_events=[2, 0, 0], learned=[True, True, False]).column("forgetting")
        array([ 2.,  0., inf], dtype=float32)
        """
        if name not in self.directions:
            hint = did_you_mean(name, self.directions)
            raise ArgumentError("name", f"must be one of {list(self.directions)}", name, hint)
        if name in self.scores:
            return self.scores[name]
        assert self.forgetting_events is not None
        events = self.forgetting_events.astype(np.float32)
        if self.learned is not None:
            events[~self.learned] = np.inf
        events[self.forgetting_events < 0] = np.nan
        if self.presentations is not None:
            events[self.presentations == 0] = np.nan
        return events

    def align(self, keys: Any, *, fingerprint: str | None = None) -> ScoreTable:
        """The same scores for a dataset whose row i is the sample ``keys[i]``.

        Rows whose key is unknown here have no score, no label and no presentations. Shard names are dropped.

        Args:
            keys: (M,) distinct str or int, of the type that this table's keys have.
            fingerprint: that of the new dataset.

        Raises:
            ArgumentError: this table has no keys, keys repeat here or there, or none of them is known.

        >>> table = ScoreTable({"el2n": [0.5, 0.25]}, keys=["a", "b"])
        >>> table.align(["new", "b", "a"]).scores["el2n"]
        array([ nan, 0.25, 0.5 ], dtype=float32)
        """
        import pyarrow.compute as pc  # takes a third of the time that importing attach takes

        if self.key_column is None:
            raise ArgumentError("keys", "can be matched only if the table has keys", "a table without keys")
        wanted = identities("keys", keys, None)
        for held, column in (("given", wanted), ("of the table", self.key_column)):
            if len(pa.array(column).unique()) != len(column):
                raise ArgumentError("keys", f"{held} must not repeat", "a repeated key")
        if type(wanted) is not type(self.key_column):
            raise ArgumentError("keys", "must be str or int as the table's keys are", keys)
        source = pc.fill_null(pc.index_in(pa.array(wanted), value_set=pa.array(self.key_column)), -1).to_numpy()
        known = source >= 0
        if not known.any():
            raise ArgumentError("keys", "must contain at least one key of the table", keys)

        def moved(column: npt.NDArray[Any] | None, missing: object) -> Any:
            return None if column is None else np.where(known, column[source], np.asarray(missing, column.dtype))

        return ScoreTable(
            {name: moved(column, np.nan) for name, column in self.scores.items()},
            num_rows=len(wanted),
            labels=moved(self.labels, -1),
            **{name: moved(getattr(self, name), missing) for name, missing in _COUNTS.items()},
            keys=pa.array(wanted),
            fingerprint=fingerprint,
            directions=self.directions,  # type: ignore[arg-type]
            protocols=self.protocols,
            provenance={**self.provenance, "aligned_from": self.digest},
        )

    def replace(self, **changes: Any) -> ScoreTable:
        """This table with other columns or provenance.

        Args:
            changes: arguments of the constructor, in the order of this table's rows; ``provenance`` is added to.

        >>> ScoreTable({"el2n": [0.5, 0.25]}).replace(labels=[1, 0]).labels
        array([1, 0], dtype=int32)
        """
        names = ("scores", "num_rows", "rows", "labels", *_COUNTS, "fingerprint", "protocols")
        same = {name: getattr(self, name) for name in names} | {"keys": self.key_column, "shards": self.shard_column}
        if "scores" not in changes and "forgetting_events" not in changes:
            same["directions"] = self.directions
        return ScoreTable(**same | changes | {"provenance": self.provenance | changes.get("provenance", {})})

    def only(self, rows: npt.ArrayLike) -> ScoreTable:
        """The same table without any other rows than these; those that it lacks stay out.

        Raises:
            ArgumentError: ``rows`` are no row numbers of the dataset, or none of them is in the table.

        >>> ScoreTable({"el2n": [0.5, 0.25, 0.125]}).only([2, 0]).rows
        array([0, 2])
        """
        mask = np.zeros(self.num_rows, np.bool_)
        mask[row_numbers("rows", rows, self.num_rows)] = True
        places = np.flatnonzero(mask[self.rows])
        if len(places) == len(self):
            return self
        if not len(places):
            raise ArgumentError("rows", "must name a row of the table", rows)
        return self._build(self._metadata(), {name: each.take(places) for name, each in self._columns().items()})

    @property
    def column_names(self) -> list[str]:
        """The columns of its file."""
        return list(self._columns())

    def _all_columns(self) -> dict[str, Any]:
        return {
            "row": self.rows,
            "label": self.labels,
            **self.scores,
            **{name: getattr(self, name) for name in _COUNTS},
            "shard": self.shard_column,
            "key": self.key_column,
        }

    @classmethod
    def _build(cls, metadata: dict[str, Any], columns: dict[str, Any]) -> ScoreTable:
        return cls(
            {name: column for name, column in columns.items() if name not in _RESERVED},
            **cls._shared_arguments(metadata, columns),
            labels=columns.get("label"),
            **{name: columns.get(name) for name in _COUNTS},
        )

    @classmethod
    def _view(cls, metadata: dict[str, Any], columns: dict[str, Any]) -> ScoreTable:
        """Some columns, neither copied nor checked, of what was checked when it was written."""
        table = cls.__new__(cls)
        vars(table).update({name: metadata[name] for name in cls._provenance})
        table.rows = columns["row"]
        table.scores = {name: column for name, column in columns.items() if name not in _RESERVED}
        table.labels, table.key_column, table.shard_column = map(columns.get, ("label", "key", "shard"))
        vars(table).update({name: columns.get(name) for name in _COUNTS})
        return table
