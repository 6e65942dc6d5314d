"""Near duplicates by the cosine of their features (Abbas et al. 2023, "SemDeDup"), without removal along chains."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prunesampler._random import mix
from prunesampler.errors import ArgumentError, UnsupportedError, check_int
from prunesampler.selection.candidates import Arrays
from prunesampler.selection.clusters import spherical_k_means
from prunesampler.selection.features import Features
from prunesampler.selection.radix_select import tie_keys
from prunesampler.selection.registry import METHODS, check_similarity
from prunesampler.tables.columns import Int64s, row_numbers
from prunesampler.tables.score_table import ScoreTable

_EXACT = 200_000  # rows up to which all pairs are compared
_CLUSTER = 20_000  # rows of a cluster, on average
_BLOCK = 2048
_PROBES = 32  # of faiss's cells

Prefer = Literal["central", "hardest", "easiest"]
Search = Literal["auto", "exact", "faiss", "clusters"]


@dataclass(frozen=True, eq=False)
class NearDuplicates:
    """Which rows are kept of each group of near duplicates; see :func:`near_duplicates`.

    Attributes:
        kept: (K,) int64, the rows that are kept, ascending; those without a duplicate too.
        dropped: (D,) int64, the others, ascending.
        resembles: (D,) int64, of the kept rows that came before it the one that each dropped row is most similar to.
        similarity: (D,) float32, how similar; above the threshold.
    """

    kept: Int64s
    dropped: Int64s
    resembles: Int64s
    similarity: npt.NDArray[np.float32]

    def __repr__(self) -> str:
        return f"NearDuplicates(kept={len(self.kept)}, dropped={len(self.dropped)})"

    @property
    def groups(self) -> list[Int64s]:
        """Each kept row that has duplicates, followed by them, the most similar one first; the largest group first."""
        order = np.lexsort((-self.similarity, self.resembles))
        starts = np.flatnonzero(np.diff(self.resembles[order], prepend=-1))
        found = [
            np.r_[self.resembles[part[0]], self.dropped[part]] for part in np.split(order, starts[1:]) if len(part)
        ]
        return sorted(found, key=len, reverse=True)


def near_duplicates(
    features: Any,
    threshold: float = 0.95,
    *,
    table: ScoreTable | None = None,
    by: str = "el2n",
    prefer: Prefer = "central",
    search: Search = "auto",
    eligible: npt.ArrayLike | None = None,
    seed: int = 0,
) -> NearDuplicates:
    """Rows so similar to others that one of each group is enough.

    Rows are gone through in the order of ``prefer``. A row is dropped if its cosine similarity to a row that is kept
    already is above ``threshold``. So no row goes because of one that goes itself, as along chains of rows that each
    resemble the next. ``select(features=features, method="deduplicate", threshold=threshold)`` keeps one of each.

    Args:
        features: (N, d), as of :func:`prunesampler.select`; none may be zero.
        threshold: a float in (0, 1), which :func:`similar_pairs` helps to choose; SemDeDup's ε is 1 − ``threshold``.
        table: the scores, for ``"hardest"`` and ``"easiest"``; without ``eligible`` only its rows are compared.
        by: the score.
        prefer: which one of a group is kept: the one nearest to the centre (the mean direction of all, or of its
            cluster), the hardest or the easiest. A row without a score is kept rather than one with.
        search: ``"exact"`` compares all pairs, N² · d / 2 multiplications; ``"faiss"`` (extra ``neighbors``) those of
            32 cells of an inverted file; ``"clusters"`` those within k-means clusters of some 20,000 rows, as SemDeDup
            does: the last two miss some pairs. ``"auto"``: exact up to 200,000 rows, above that faiss if it is
            installed, else clusters.
        eligible: the rows to compare; by default all.
        seed: an int >= 0, of ties and clusters.

    Raises:
        ArgumentError: an argument breaks its rule.
        UnsupportedError: faiss is wanted and not installed.

    >>> found = near_duplicates(np.array([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [0.2, 1.0]]), threshold=0.99)
    >>> found.groups  # row 1 is near to row 2 alone, which is not kept
    [array([3, 2])]
    >>> found.kept
    array([0, 1, 3])
    """
    features = features if isinstance(features, Features) else Features(features)
    check_similarity(threshold)
    METHODS["deduplicate"].check_options("deduplicate", {"prefer": prefer, "search": search})
    check_int("seed", seed)
    if table is not None and table.num_rows != features.num_rows:
        raise ArgumentError("features", f"must be of the dataset's {table.num_rows} rows", features.num_rows)
    rows = features.present if table is None else table.rows
    if eligible is not None:
        rows = np.intersect1d(rows, row_numbers("eligible", eligible, features.num_rows))
    hardness = np.zeros(len(rows), np.float32)
    if prefer != "central":
        if table is None:
            raise ArgumentError("table", f"must be given with prefer={prefer!r}", None)
        hardness = table.column(by)[np.searchsorted(table.rows, rows)]
        hardness = -hardness if table.directions[by] == "lower" else hardness
    candidates = Arrays(rows, hardness, None, tie_keys(seed, rows), {}, features.only(rows))
    of, similarity = _kept_of(candidates, np.random.default_rng(mix(seed)), threshold, prefer, search)
    kept = of == np.arange(len(rows))
    return NearDuplicates(rows[kept], rows[~kept], rows[of[~kept]], similarity[~kept])


def deduplicate(
    candidates: Arrays,
    budget: None,
    rng: np.random.Generator,
    *,
    threshold: float,
    prefer: Prefer = "central",
    search: Search = "auto",
) -> Int64s:
    """One row of each group of near duplicates, and all others."""
    of, _ = _kept_of(candidates, rng, threshold, prefer, search)
    return np.flatnonzero(of == np.arange(len(of)))


# -- which rows are kept -------------------------------------------------------------------------------------------

_Found = tuple[Int64s, npt.NDArray[np.float32]]  # of each row the position of the kept one, itself if kept; similarity


def _kept_of(candidates: Arrays, rng: np.random.Generator, threshold: float, prefer: Prefer, search: Search) -> _Found:
    """In positions among the candidates."""
    assert candidates.features is not None
    directions = candidates.features.directions()
    size = len(directions)
    if search == "auto":
        search = "exact" if size <= _EXACT else "faiss" if importlib.util.find_spec("faiss") else "clusters"
    cluster = np.zeros(size, np.int64)
    if search == "clusters":
        found = spherical_k_means(candidates.features, -(-size // _CLUSTER), rng)
        cluster, centrality = found.of, found.similarity
    elif prefer == "central":
        centre = directions.mean().float()
        centrality = torch.cat([block @ centre for block in directions.blocks()]).cpu().numpy()
    value = -centrality if prefer == "central" else candidates.hardness * (-1 if prefer == "hardest" else 1)
    order = np.lexsort((candidates.ties, np.where(np.isnan(value), -np.inf, value)))
    if search == "faiss":
        return _by_faiss(directions, order, threshold)
    of, similarity = np.arange(size), np.ones(size, np.float32)
    for each in range(int(cluster.max()) + 1):
        members = order[cluster[order] == each]
        near, similarity[members] = _exact(directions, members, threshold)
        of[members] = members[near]
    return of, similarity


def _exact(directions: Features, order: Int64s, threshold: float) -> _Found:
    """In places of ``order``: each block of rows is compared with all that are kept of those before, then in itself."""
    of, similarity = np.arange(len(order)), np.ones(len(order), np.float32)
    kept: list[tuple[Tensor, Int64s]] = []
    for start in range(0, len(order), _BLOCK):
        block = directions.at(order[start : start + _BLOCK])
        places = np.arange(start, start + len(block))
        best, whose = np.full(len(block), -np.inf, np.float32), places.copy()
        for part, of_these in kept:
            value, at = (each.cpu().numpy() for each in (block @ part.T).max(dim=1))
            whose = np.where(value > best, of_these[at], whose)
            best = np.maximum(best, value)
        free = np.flatnonzero(best <= threshold)  # of what was kept before
        within = (block @ block[free].T).cpu().numpy()
        stays = _greedy(np.tril(within[free] > threshold, -1))
        if not stays.any():
            of[places], similarity[places] = whose, best
            continue
        at = free[stays]
        within = np.where(at < np.arange(len(block))[:, None], within[:, stays], -np.inf)
        whose = np.where(within.max(1) > best, places[at[within.argmax(1)]], whose)
        of[places], similarity[places] = whose, np.maximum(best, within.max(1))
        of[places[at]], similarity[places[at]] = places[at], 1
        kept.append((block[at], places[at]))
    return of, similarity


def _greedy(earlier: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """(B,) which rows stay, where (B, B) says which earlier rows each is near to: those that no staying row is near."""
    doubtful = earlier.any(1)
    stays = np.logical_not(doubtful)
    for row in np.flatnonzero(doubtful):
        stays[row] = not (earlier[row] & stays).any()
    return stays


def _by_faiss(directions: Features, order: Int64s, threshold: float) -> _Found:
    """In positions: faiss finds the neighbours of each row among all, in near cells of its inverted file."""
    try:
        faiss: Any = importlib.import_module("faiss")
    except ImportError as error:
        raise UnsupportedError(f'search="faiss" needs it ({error}): pip install "prunesampler[neighbors]"') from error
    size = len(order)
    cells = max(1, min(int(4 * size**0.5), size // 40))
    index = faiss.index_factory(directions.width, f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    sample = np.sort(np.random.default_rng(0).permutation(size)[: 40 * cells])
    index.train(directions.at(order[sample]).cpu().numpy())
    for start in range(0, size, _BLOCK):
        index.add(directions.at(order[start : start + _BLOCK]).cpu().numpy())
    index.nprobe = _PROBES
    of, similarity, stays = np.arange(size), np.ones(size, np.float32), np.ones(size, np.bool_)
    for start in range(0, size, _BLOCK):
        block = directions.at(order[start : start + _BLOCK]).cpu().numpy()
        limits, values, places = index.range_search(block, threshold)
        whose = start + np.repeat(np.arange(len(block)), np.diff(limits.astype(np.int64)))
        for row in np.unique(whose[places < whose]):
            found = slice(*limits[row - start : row - start + 2].astype(np.int64))
            near = (places[found] < row) & stays[places[found]]
            if near.any():
                at = np.flatnonzero(near)[values[found][near].argmax()]
                stays[row], of[row], similarity[row] = False, places[found][at], values[found][at]
    result, of_row = np.empty(size, np.float32), np.empty(size, np.int64)
    result[order], of_row[order] = similarity, order[of]
    return of_row, result


# -- which threshold -----------------------------------------------------------------------------------------------


class SimilarPairs(NamedTuple):
    """What a threshold would mean: the share of rows with a neighbour above it, and pairs just above."""

    similarity: float
    share: float
    pairs: list[tuple[int, int, float]]  # two rows and their similarity


def similar_pairs(
    features: Any,
    similarities: Sequence[float] = (0.99, 0.98, 0.95, 0.9, 0.85, 0.8),
    *,
    examples: int = 4,
    sample: int = 10_000,
    seed: int = 0,
) -> list[SimilarPairs]:
    """Pairs of rows at several similarities, to look at and choose a threshold by: the lowest whose pairs are alike.

    Of up to ``sample`` random rows the most similar other row is found, among all of them.

    Args:
        features: (N, d), as of :func:`near_duplicates`, of two rows or more.
        similarities: floats in (0, 1).
        examples: pairs to show of each, the least similar ones that are above it.
        sample: how many rows to look at, an int >= 1; the cost is sample · N · d.
        seed: an int >= 0, of the sample.

    Raises:
        ArgumentError: an argument breaks its rule.

    >>> (found,) = similar_pairs(np.array([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [0.1, -1.0]]), [0.9])
    >>> found.share, [(first, second, round(at, 3)) for first, second, at in found.pairs]
    (0.5, [(1, 2, 0.995)])
    """
    features = features if isinstance(features, Features) else Features(features)
    present = features.present
    if len(present) < 2:
        raise ArgumentError("features", "must be of two rows or more", len(present))
    for each in similarities:
        check_similarity(each)
    directions, sample = features.only(present).directions(), min(check_int("sample", sample, 1), len(present))
    places = np.sort(np.random.default_rng(mix(check_int("seed", seed))).choice(len(present), sample, replace=False))
    value, other = (np.concatenate(each) for each in zip(*_neighbours(directions, places), strict=True))
    rows, other = present[places], present[other]
    found = []
    for each in similarities:
        above = np.flatnonzero(value > each)
        pairs: dict[tuple[int, int], float] = {}
        for at in above[value[above].argsort()]:
            first, second = sorted((int(rows[at]), int(other[at])))
            pairs.setdefault((first, second), float(value[at]))
            if len(pairs) == check_int("examples", examples):
                break
        found.append(SimilarPairs(float(each), len(above) / sample, [(*pair, at) for pair, at in pairs.items()]))
    return found


def _neighbours(directions: Features, rows: Int64s) -> Iterator[tuple[Any, Any]]:
    """Of some rows the similarity to the nearest other row, and which one it is."""
    for start in range(0, len(rows), _BLOCK):
        these = torch.from_numpy(rows[start : start + _BLOCK]).to(directions.device)
        block, first = directions.at(these), 0
        best, whose = torch.full((len(block),), -2.0, device=directions.device), torch.zeros_like(these)
        for others in directions.blocks(_BLOCK):
            products = block @ others.T
            own = (these >= first) & (these < first + len(others))
            products[own, these[own] - first] = -2
            value, at = products.max(dim=1)
            whose = torch.where(value > best, at + first, whose)
            best, first = torch.maximum(best, value), first + len(others)
        yield best.cpu().numpy(), whose.cpu().numpy()
