"""What somebody decided about suspects, applied to the labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from prunesampler.errors import ArgumentError, CorruptFileError, MismatchError, check_choice
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.score_table import ScoreTable

_NEEDED = ("row", "label", "suggested_label", "decision")
_DECISIONS = ("wrong", "right", "unsure", "")


@dataclass(frozen=True, eq=False)
class Relabelled:
    """Corrected labels and the rows to train on.

    Attributes:
        labels: (N,) int64 of every row of the dataset, −1 where the table has none.
        changed: rows whose label is another one now, ascending.
        dropped: rows to be left out, ascending.
        coreset: all rows of the table but the dropped ones.
    """

    labels: npt.NDArray[np.int64]
    changed: npt.NDArray[np.int64]
    dropped: npt.NDArray[np.int64]
    coreset: Coreset


def relabel(
    decisions: str | os.PathLike[str],
    table: ScoreTable,
    *,
    wrong: Literal["relabel", "drop"] = "relabel",
    unsure: Literal["keep", "drop"] = "keep",
) -> Relabelled:
    """Apply the ``decisions.csv`` that the page of ``prunesampler audit`` exports.

    Args:
        decisions: a CSV with the columns ``row``, ``label``, ``suggested_label`` and ``decision``: ``wrong``,
            ``right``, ``unsure``, or nothing for a row that nobody looked at. Others are passed over. Who knows better
            than the model writes the right class over ``suggested_label``.
        table: the scores that were audited.
        wrong: give rows that are ``wrong`` their suggested label, or drop them; without a suggested label they are
            dropped.
        unsure: keep them as they are, or drop them.

    Raises:
        ArgumentError: an argument breaks its rule, or the table has no labels.
        CorruptFileError: the file is no CSV of decisions; its line is named.
        MismatchError: a row has another label in the table: the decisions are about another dataset.

    >>> import tempfile
    >>> table = ScoreTable({"el2n": [0.1, 1.2, 1.3]}, labels=[0, 1, 2])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with open(f"{folder}/decisions.csv", "w") as file:
    ...         _ = file.write("row,label,suggested_label,decision\\n2,2,0,wrong\\n1,1,0,right\\n")
    ...     found = relabel(f"{folder}/decisions.csv", table)
    >>> found.labels, found.changed
    (array([0, 1, 0]), array([2]))
    """
    check_choice("wrong", wrong, ("relabel", "drop"))
    check_choice("unsure", unsure, ("keep", "drop"))
    if table.labels is None:
        raise ArgumentError("table", "must hold labels", table)
    labels = np.full(table.num_rows, -1, np.int64)
    labels[table.rows] = table.labels
    corrected, dropped, seen = labels.copy(), [], set()
    for line, row, label, suggested, decision in _read(decisions):
        if row in seen:
            raise CorruptFileError(f"{os.fspath(decisions)}, line {line}: row {row} stands there twice")
        seen.add(row)
        if not 0 <= row < table.num_rows or labels[row] != label:
            found = f"of class {labels[row]}" if 0 <= row < table.num_rows else f"none of {table.num_rows:,}"
            raise MismatchError(
                f"{os.fspath(decisions)}, line {line}: row {row} is of class {label} there, and {found} in the table"
            )
        if (decision == "unsure" and unsure == "drop") or (decision == "wrong" and (wrong == "drop" or suggested < 0)):
            dropped.append(row)
        elif decision == "wrong":
            corrected[row] = suggested
    gone = np.array(sorted(dropped), np.int64)
    keep = np.flatnonzero(~np.isin(table.rows, gone))
    changed = np.flatnonzero(corrected != labels)
    same = not len(changed) or table.shard_column is not None  # else the dataset is not recognised by its new labels
    coreset = Coreset(
        table.rows[keep],
        num_rows=table.num_rows,
        keys=None if table.key_column is None else table.key_column.take(keep),
        shards=None if table.shard_column is None else table.shard_column.take(keep),
        fingerprint=table.fingerprint if same else None,
        scores_digest=table.digest,
        selection={"decisions": os.path.basename(decisions), "wrong": wrong, "unsure": unsure, "dropped": len(gone)},
    )
    return Relabelled(corrected, changed, gone, coreset)


def _read(path: str | os.PathLike[str]) -> Iterator[tuple[int, int, int, int, str]]:
    """Line, row, label, suggested label (−1 for none) and decision."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file)
            missing = [name for name in _NEEDED if name not in (lines.fieldnames or ())]
            if missing:
                raise CorruptFileError(
                    f"{os.fspath(path)} has no column {missing[0]}: it must have {', '.join(_NEEDED)}"
                )
            for number, line in enumerate(lines, 2):
                if None in line.values():
                    raise CorruptFileError(f"{os.fspath(path)}, line {number} is cut short")
                decision = line["decision"].strip().lower()
                if decision not in _DECISIONS:
                    raise CorruptFileError(
                        f"{os.fspath(path)}, line {number}: decision must be wrong, right or unsure, got {decision!r}"
                    )
                try:
                    row, label = int(line["row"]), int(line["label"])
                    suggested = int(line["suggested_label"] or -1)
                except (TypeError, ValueError) as error:
                    raise CorruptFileError(f"{os.fspath(path)}, line {number}: {error}") from error
                yield number, row, label, suggested, decision
    except (UnicodeDecodeError, csv.Error) as error:
        raise CorruptFileError(f"{os.fspath(path)} is no CSV of decisions: {error}") from error
