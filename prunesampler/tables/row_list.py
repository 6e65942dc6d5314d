"""A few rows of a table, to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prunesampler._format import html_table, number, printable, text_table

_CLASSES = ("label", "suggested_label")


class RowList:
    """Some rows in an order of their own. It prints as a table, and is a sequence of dicts by column name.

    ``rows`` are (K,) int64, to index the dataset with; missing values are None. Where the ``classes`` have names, these
    are shown for the labels; the values stay numbers.

    >>> few = RowList({"row": pa.array([4, 0]), "el2n": pa.array([1.25, 0.5])})
    >>> few
    row   el2n
      4  1.250
      0  0.500
    >>> few[0], few.rows
    ({'row': 4, 'el2n': 1.25}, array([4, 0]))
    """

    def __init__(self, columns: Mapping[str, pa.Array], classes: Mapping[int, str] | None = None) -> None:
        self._table = pa.table(dict(columns))
        self._classes = classes or {}

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """(K,) int64, the row numbers in this order."""
        return self._table["row"].to_numpy()  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return self._table.num_rows  # type: ignore[no-any-return]

    def __getitem__(self, place: int) -> dict[str, Any]:
        place = range(len(self))[place]
        return self._table.slice(place, 1).to_pylist()[0]  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return text_table(*self._cells())

    def _repr_html_(self) -> str:
        return html_table(*self._cells())

    def _cells(self) -> tuple[list[str], Sequence[Sequence[str]]]:
        names = self._table.column_names
        columns = [
            [_cell(self._classes.get(value, value) if name in _CLASSES else value) for value in column.to_pylist()]
            for name, column in zip(names, self._table.columns, strict=True)
        ]
        return [printable(name) for name in names], list(zip(*columns, strict=True))

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` in this order."""
        return self._table.to_pandas()


def _cell(value: Any) -> str:
    if value is None or isinstance(value, float):
        return number(value)
    return str(value) if isinstance(value, bool | int) else printable(value)
