"""How two files of scores, or two coresets, differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from prunesampler.analysis.statistics import protocol_of, score_names
from prunesampler.errors import MismatchError
from prunesampler.tables.agreement import overlap, spearman
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.merge import common_dataset
from prunesampler.tables.score_table import ScoreTable

_KINDS = ("kind", "reduction", "epochs", "runs")


def table_differences(first: ScoreTable, second: ScoreTable) -> dict[str, Any]:
    """Figures of two tables, as JSON has them.

    ``dataset`` is a sentence. ``scores`` has for each score of both what differs in its ``protocol``, and over the
    rows that have a value in both, ``rows`` many, ``spearman``, ``overlap`` of the harder halves and the
    ``mean_difference`` (finite values only). Columns that are equal overlap wholly; tied rows are else drawn at random,
    see :func:`prunesampler.tables.agreement.overlap`.

    >>> table_differences(ScoreTable({"el2n": [0.0, 0.5]}), ScoreTable({"el2n": [0.5, 0.0]}))["scores"]["el2n"]
    {'protocol': {}, 'rows': 2, 'spearman': -1.0, 'overlap': 0.0, 'mean_difference': 0.5}
    """
    names = score_names(first), score_names(second)
    places = np.intersect1d(first.rows, second.rows, assume_unique=True, return_indices=True)[1:]
    scores = {}
    for name in (name for name in names[0] if name in names[1]):
        a, b = (table.column(name)[place] for table, place in zip((first, second), places, strict=True))
        hard_a, hard_b = (-x if t.directions[name] == "lower" else x for t, x in ((first, a), (second, b)))
        finite = np.isfinite(a) & np.isfinite(b)
        both = int(np.count_nonzero(~np.isnan(a) & ~np.isnan(b)))
        how = [
            {kind: protocol_of(table, name).get(kind) for kind in _KINDS} | {"harder": table.directions[name]}
            for table in (first, second)
        ]
        scores[name] = {
            "protocol": _differing(*how),
            "rows": both,
            "spearman": spearman(hard_a, hard_b),
            "overlap": 1.0 if both and np.array_equal(hard_a, hard_b, equal_nan=True) else overlap(hard_a, hard_b),
            "mean_difference": float(np.abs(a[finite].astype(np.float64) - b[finite]).mean())
            if finite.any()
            else float("nan"),
        }
    only = [[name for name in mine if name not in other] for mine, other in (names, names[::-1])]
    return {"dataset": _dataset(first, second), "only_in_a": only[0], "only_in_b": only[1], "scores": scores}


def coreset_differences(first: Coreset, second: Coreset) -> dict[str, Any]:
    """Figures of two coresets, as JSON has them.

    ``options`` are those of the selection that differ; ``same_scores`` is None where a coreset does not name its
    scores; ``kept`` of both, ``both`` in common, as many as ``chance`` would have in common, ``jaccard``, and the rows
    that are ``only_in_a`` and ``only_in_b``.

    >>> coreset_differences(Coreset([1, 2, 3], num_rows=6), Coreset([2, 3], num_rows=6))["both"]
    2
    """
    both = len(np.intersect1d(first.rows, second.rows, assume_unique=True))
    digests = first.scores_digest, second.scores_digest
    only = [
        np.setdiff1d(mine.rows, other.rows, assume_unique=True).tolist()
        for mine, other in ((first, second), (second, first))
    ]
    return {
        "dataset": _dataset(first, second),
        "options": _differing(first.options, second.options),
        "same_scores": digests[0] == digests[1] if all(digests) else None,
        "kept": [len(first), len(second)],
        "both": both,
        "chance": len(first) * len(second) / max(first.num_rows, second.num_rows),
        "jaccard": both / (len(first) + len(second) - both),
        "only_in_a": only[0],
        "only_in_b": only[1],
    }


def _dataset(first: ScoreTable | Coreset, second: ScoreTable | Coreset) -> str:
    try:
        common_dataset([first, second])
    except MismatchError as error:
        return f"{error}; rows are compared by number, and may not be the same samples"
    if first.fingerprint and second.fingerprint:
        return f"same dataset: {first.num_rows:,} rows, equal fingerprints"
    return f"perhaps the same dataset: {first.num_rows:,} rows in both, but not both files have a fingerprint"


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {
        name: [first.get(name), second.get(name)] for name in {**first, **second} if first.get(name) != second.get(name)
    }
