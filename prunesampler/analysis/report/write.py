"""The report as one call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunesampler.analysis.advice import judge
from prunesampler.analysis.images import load_pictures
from prunesampler.analysis.report.page import page, pictured
from prunesampler.tables.atomic import atomic_write
from prunesampler.tables.score_table import Coreset, ScoreTable


def report(
    table: ScoreTable | str | os.PathLike[str],
    dataset: Any = None,
    *,
    out: str | os.PathLike[str] = "report.html",
    coreset: Coreset | str | os.PathLike[str] | None = None,
    by: str | None = None,
    keep: Sequence[float | str] = (0.7, 0.5, 0.3),
    features: Any = None,
) -> Path:
    """Write one HTML page about scores: their distributions, advice, and the hardest, median and easiest rows.

    Args:
        table: the scores, or the path of their file.
        dataset: what was scored, of N rows, for its images: any map-style dataset (of torchvision, Hugging Face, tar
            shards through ``IndexedShards``) whose samples are images, or tuples or dicts with one; or a folder, as the
            command ``report`` takes it. At most 60 samples are read. None: no images.
        out: the page, which replaces an older one.
        coreset: what was selected from the scores, to show what it keeps.
        by: the score to rank by; by default EL2N, or the first.
        keep: fractions, numbers of rows or ``"auto"``, which are judged.
        features: (N, d), or the path of their file, to show pairs of similar rows.

    Returns:
        The page's path.

    Raises:
        ArgumentError: an argument breaks its rule, or the samples hold no images.
        MismatchError: the coreset or the dataset does not belong to the scores.
        UnsupportedError: matplotlib or Pillow is not installed.

    >>> import tempfile, torch
    >>> table = ScoreTable({"el2n": [0.25, 0.5, 1.0]}, labels=[0, 1, 1])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = report(table, torch.rand(3, 1, 8, 8), out=f"{folder}/report.html")
    ...     path.read_text().count("<img")
    9
    """
    path = "scores.parquet" if isinstance(table, ScoreTable) else os.fspath(table)
    scores = table if isinstance(table, ScoreTable) else ScoreTable.load(table)
    selected = coreset if coreset is None or isinstance(coreset, Coreset) else Coreset.load(coreset)
    judgement = judge(scores, list(keep), by=by, path=path)
    pairs = None
    if features is not None:
        from prunesampler.selection.near_duplicates import similar_pairs  # and torch

        pairs = similar_pairs(features)
    pictures = None
    if dataset is not None:
        shown = {row for rows in pictured(scores, judgement.by).values() for row in rows}
        shown |= {row for each in pairs or () for pair in each.pairs for row in pair[:2]}
        pictures = load_pictures(dataset, scores, sorted(shown))
    text = page(scores, judgement, name=path, coreset=selected, pictures=pictures, pairs=pairs)
    with atomic_write(out) as file:
        file.write(text.encode())
    return Path(out)
