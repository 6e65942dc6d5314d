"""Which sample each row of a collated batch was made of.

A collate function may sort a batch, leave samples out of it or fill it up. What it hands out is compared with the
samples that it was given: labels, inputs (padded or cut short too), texts, the very objects. Where they are found in
another order the rows follow; where they cannot, the batch is in doubt.
"""

from __future__ import annotations

import functools
import numbers
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.utils.data import default_collate, default_convert

from prunesampler.errors import PruneSamplerWarning, UnsupportedError

Path = tuple[Any, ...]
Matches = NDArray[np.bool_]  # (rows of the batch, samples): whether a row may be of a sample

_FIRST, _EVERY = 4, 16  # batches that are compared in full: the first ones, and then one of so many
_LEAVES, _DEPTH = 16, 4  # columns compared, and how deep they may lie
_VALUES = 32  # compared of each sample in a column, unless they are alike
_MANY = 8  # values that are not equal by chance
_REPEATS = 3  # equal labels in a batch, from which on a renaming of labels is believed

_CURE = (
    "let the dataset return its index beside each sample, and give row_fn=, a function from the batch to its rows, or "
    "collate in the order of the samples"
)


class CollateOrder:
    """Compares what a collate function makes with what it was given, in the process that calls it."""

    def __init__(self, collate_fn: Callable[[Any], Any]) -> None:
        self._trusted = collate_fn in (default_collate, default_convert)
        self._name = getattr(collate_fn, "__name__", type(collate_fn).__name__)
        self._batches = self._verified = 0
        self._moves = False  # since a batch was not in order, all are compared in full
        self._witness: tuple[Path, Path] | None = None

    def collate(
        self, collate_fn: Callable[[Any], Any], samples: Any
    ) -> tuple[Any, NDArray[np.int64] | None, UnsupportedError | PruneSamplerWarning | None]:
        """The batch; which sample each row is of, None for the same order; what is doubtful about that."""
        if self._trusted or not isinstance(samples, list) or len(samples) < 2:
            return collate_fn(samples), None, None
        given = Samples(samples)
        batch = collate_fn(samples)
        number, self._batches = self._batches, self._batches + 1
        in_share = self._moves or number < _FIRST or number % _EVERY == 0
        if not in_share and self._witness is not None and given.agree(self._witness, batch):
            return batch, None, None
        order = order_of(given, batch)
        self._verified += order.verified
        if order.sources is None:
            return batch, None, self._mixed()
        if len(order.sources) != len(samples) or (order.sources != np.arange(len(samples))).any():
            self._moves = True
            return batch, order.sources, None
        self._witness = order.witness
        return batch, None, self._unverified() if number == _FIRST - 1 and not self._verified else None

    def _mixed(self) -> UnsupportedError:
        return UnsupportedError(
            f"{self._name} collates a batch in another order than its samples, or puts others in their place, and it "
            f"cannot be told which row is of which: {_CURE}"
        )

    def _unverified(self) -> PruneSamplerWarning:
        return PruneSamplerWarning(
            f"nothing of the samples is found in what {self._name} makes of them, so it cannot be verified that the "
            f"batch is in their order, as is assumed: to be sure, {_CURE}"
        )


class Samples:
    """The samples of one batch, as they are before they are collated, perhaps in place."""

    def __init__(self, samples: list[Any]) -> None:
        self._objects = list(samples)
        self._samples = [dict(sample) if isinstance(sample, dict) else sample for sample in samples]

    def __len__(self) -> int:
        return len(self._samples)

    @functools.cached_property
    def columns(self) -> dict[Path, list[Any]]:
        """Values that can be compared, by where they lie in a sample; None where one has none."""
        first = next((sample for sample in self._samples if sample is not None), None)
        paths = [path for path, _ in islice(_leaves(first), _LEAVES)]
        return {path: [_at(sample, path) for sample in self._samples] for path in paths}

    @functools.cached_property
    def arrays(self) -> dict[Path, list[NDArray[Any] | None]]:
        """Those of them that are numbers."""
        return {path: [_array(value) for value in column] for path, column in self.columns.items()}

    @functools.cached_property
    def names(self) -> list[list[Any]]:
        """Those of them that are texts or single numbers, such as labels."""
        single = [
            [v.item() if getattr(v, "shape", None) == () else v for v in column] for column in self.columns.values()
        ]
        return [names for names in single if all(isinstance(name, (numbers.Real, str, bytes)) for name in names)]

    @functools.cached_property
    def absent(self) -> NDArray[np.int64]:
        """Which samples are None."""
        return np.array([number for number, sample in enumerate(self._samples) if sample is None], np.int64)

    @functools.cached_property
    def owners(self) -> dict[int, int]:
        """The sample that an object is (in), by its id."""
        owners: dict[int, int] = {}
        for number, (whole, sample) in enumerate(zip(self._objects, self._samples, strict=True)):
            for thing in (whole, *(value for _, value in islice(_things(sample), _LEAVES))):
                if not isinstance(thing, (numbers.Number, str, bytes, type(None))):
                    owners[id(thing)] = number if owners.get(id(thing), number) == number else -1
        return owners

    def agree(self, witness: tuple[Path, Path], batch: Any) -> bool:
        """Whether the numbers at a place in the samples are those at one in the batch, and not all the same."""
        here, there = witness
        found = _at(batch, there)
        if not isinstance(found, Tensor) or not found.is_cpu:
            return False
        values = found.tolist()
        return values == [_at(sample, here) for sample in self._samples] and min(values) != max(values)


@dataclass
class Order:
    """What is known of a batch.

    Attributes:
        sources: (B,) the sample that each row is of; None where they are not in order, and it cannot be told in which.
        verified: whether anything spoke for that.
        witness: where a number lies, in a sample and in the batch, that shows the same at little cost.
    """

    sources: NDArray[np.int64] | None
    verified: bool = True
    witness: tuple[Path, Path] | None = None


@dataclass
class _Column:
    """One column of a batch: where it lies, its rows, and of which samples they may be (None: nothing is alike)."""

    path: Path
    rows: Any
    matches: Matches | None = None
    of: Path | None = None
    strays: Any = None  # (B,) rows of no sample; they may be of any

    def __post_init__(self) -> None:
        self.in_place = self.matches is not None and _in_place(self.matches)
        self.strength = 0.0 if self.matches is None else _strength(self.matches)

    @classmethod
    def found(cls, path: Path, rows: Any, matches: Matches, of: Path, samples: Samples) -> _Column:
        """A column that is in the samples too."""
        strays = ~matches.any(1)
        matches[strays] = True
        matches[:, samples.absent] = False
        return cls(path, rows, matches, of, strays)

    @property
    def is_scalar(self) -> bool:
        """Whether each row is one number."""
        return isinstance(self.rows, np.ndarray) and self.rows.ndim == 1


def order_of(samples: Samples, batch: Any) -> Order:
    """Compare a batch with the samples that it was made of."""
    n = len(samples)
    columns = [_explained(path, rows, samples) for path, rows in _batch_columns(batch, samples)]
    known = [column for column in columns if column.strength > 0]
    if not known:
        mixed = any(_is_mixed(column.rows, samples) for column in columns)
        return Order(None if mixed else np.arange(n), verified=False)
    size = max((len(column.rows) for column in known), key=lambda s: (s == n, _weight(known, s)))
    columns, known = ([c for c in some if len(c.rows) == size] for some in (columns, known))
    inside = [column for column in known if column.in_place]
    outside = [column for column in known if not column.in_place]
    if inside and (not outside or _strength(_all(inside)) >= _strength(_all(outside))):
        if _is_refilled(inside, columns, samples):
            return Order(None)
        witness = next(((c.of, c.path) for c in inside if c.is_scalar and c.of is not None), None)
        return Order(np.arange(size), witness=witness)
    return Order(_assigned(_all(outside), alike=all(column.matches is not None for column in columns)))


def _explained(path: Path, rows: Any, samples: Samples, turned: bool = False) -> _Column:
    """Look for a column of the batch in the samples."""
    if isinstance(rows, _Objects):
        return _Column(path, rows, np.asarray(rows)[:, None] == np.arange(len(samples)))
    found: list[_Column] = []
    for of in sorted(samples.columns, key=lambda of: of != path):  # what has the same place is the same, often
        matches = _matches(samples, of, rows)
        if matches is None or not _is_no_chance(matches, rows):
            continue
        found.append(_Column.found(path, rows, matches, of, samples))
        if found[-1].strength > 0.9 and (found[-1].in_place or (of == path and not _is_small(rows))):
            return found[-1]
    best = max((one for one in found if one.in_place), key=lambda one: one.strength, default=None)
    if best is not None:
        return best
    whole = [one.matches for one in found if not one.strays.any() and one.matches is not None]
    if whole:  # which of them it was made of is not known
        return _Column(path, rows, np.logical_or.reduce(whole))
    if found:
        return max(found, key=lambda one: one.strength)
    if getattr(rows, "ndim", 0) in (2, 3) and not turned:  # in some batches of sequences time goes first
        other = _explained(path, np.moveaxis(rows, 1, 0), samples, turned=True)
        if other.matches is not None:
            return other
    keys = _keys(rows)
    if len(rows) == len(samples) and any(_renames(names, keys) for names in samples.names):
        return _Column(path, rows, np.array([[key == other for other in keys] for key in keys]))
    return _Column(path, rows)


def _matches(samples: Samples, of: Path, rows: Any) -> Matches | None:
    """Which rows hold which sample's value, at their beginning or end where they are padded or cut short."""
    if not isinstance(rows, np.ndarray):
        texts = _numbers_of(samples.columns[of], range(len(samples)))
        return _marked(_pairs(rows, texts), (len(rows), len(samples)))
    values = samples.arrays[of]
    present = [value for value in values if value is not None]
    if not present or len({value.ndim for value in present}) > 1:
        return None
    if present[0].ndim != rows.ndim - 1:
        if any(value.size != rows[:1].size for value in present):
            return None
        values = [None if value is None else value.reshape(-1) for value in values]
        rows = rows.reshape(len(rows), -1)
    matches = _prefix_matches(values, rows)
    if not matches.any(1).all() and rows.ndim == 2:  # padded on the left
        left = _prefix_matches([None if value is None else value[::-1] for value in values], rows[:, ::-1])
        matches = max(matches, left, key=lambda found: found.any(1).sum())
    return matches


def _prefix_matches(values: list[NDArray[Any] | None], rows: NDArray[Any]) -> Matches:
    pairs: list[tuple[int, int]] = []
    regions: dict[tuple[int, ...], list[int]] = {}
    short = False
    for number, value in enumerate(values):
        if value is not None:
            regions.setdefault(tuple(map(min, value.shape, rows.shape[1:])), []).append(number)
    for region, members in regions.items():
        size = int(np.prod(region))
        if not size:
            continue
        for compared in sorted({min(_VALUES, size), size}):
            places = _spread(region, compared)
            given = np.stack([values[number][places] for number in members]).reshape(len(members), -1)  # type: ignore[index]
            kind = _common(given.dtype, rows.dtype)
            keys = _keys(given.astype(kind))
            if len(set(keys)) == len(keys):
                break  # else all of their values
        padded = np.flatnonzero(_is_padded(rows, region))
        found = (rows[(padded[:, None], *places)] if places else rows[padded, None]).astype(kind)
        pairs += [(int(padded[row]), number) for row, number in _pairs(_keys(found), _numbers_of(keys, members))]
        short |= size < _MANY
    matches = _marked(pairs, (len(rows), len(values)))
    if short and not matches.any(1).all():  # a few values are equal by chance
        for number, value in enumerate(values):
            matches[:, number] &= value is not None and value.size >= _MANY
    return matches


def _pairs(keys: Sequence[Any], numbers_of: dict[Any, list[int]]) -> list[tuple[int, int]]:
    return [(row, number) for row, key in enumerate(keys) for number in numbers_of.get(key, ())]


def _marked(pairs: list[tuple[int, int]], shape: tuple[int, int]) -> Matches:
    matches = np.zeros(shape, bool)
    if pairs:
        matches[tuple(np.array(pairs).T)] = True
    return matches


def _numbers_of(keys: Sequence[Any], numbers: Iterable[int]) -> dict[Any, list[int]]:
    of: dict[Any, list[int]] = {}
    for number, key in zip(numbers, keys, strict=True):
        if isinstance(key, (str, bytes)):
            of.setdefault(key, []).append(number)
    return of


@functools.lru_cache(1024)
def _spread(region: tuple[int, ...], count: int) -> tuple[NDArray[np.int64], ...]:
    """So many places in an array of this shape, spread evenly and in step with no width."""
    size = int(np.prod(region))
    flat = np.arange(size) if count == size else (np.arange(1, count + 1) * 0.6180339887498949 % 1 * size).astype(int)
    return tuple(np.unravel_index(flat, region)) if region else ()


def _is_padded(rows: NDArray[Any], region: tuple[int, ...]) -> Matches:
    """(B,) whether there is nothing but one value outside of a region."""
    if region == rows.shape[1:]:
        return np.ones(len(rows), bool)
    padded = np.ones(len(rows), bool)
    for axis, (end, length) in enumerate(zip(region, rows.shape[1:], strict=True), 1):
        if end < length:
            outside = rows.take(range(end, length), axis).reshape(len(rows), -1)
            padded &= (outside == outside[:, :1]).all(1)
    return padded


def _common(given: np.dtype[Any], found: np.dtype[Any]) -> Any:
    """What both are compared as: floats as the batch has them, integers exactly."""
    if found.kind == "f":
        return found
    return np.float64 if given.kind == "f" else np.int64


def _keys(rows: Any) -> list[Any]:
    if not isinstance(rows, np.ndarray):
        return list(rows)
    if not rows.size:
        return [b""] * len(rows)
    flat = np.ascontiguousarray(rows.reshape(len(rows), -1) + rows.dtype.type(0))  # one zero, not two
    return flat.view(f"V{flat.shape[1] * flat.itemsize}").ravel().tolist()


def _is_small(rows: Any) -> bool:
    """Whether rows are labels and the like, which may be equal by chance."""
    return isinstance(rows, np.ndarray) and rows[:1].size < _MANY


def _is_no_chance(matches: Matches, rows: Any) -> bool:
    """Whether a likeness means something: of inputs mostly, of labels where all are there, and as often."""
    known = matches.any(1)
    if _is_small(rows):
        keys = _keys(rows)
        counts = Counter(keys)
        as_often = all(counts[key] <= has for key, has in zip(keys, matches.sum(1), strict=True))
        return bool(known.all()) and (as_often or len(rows) > matches.shape[1])
    return bool(known.mean() >= 0.5)


def _renames(names: list[Any], keys: list[Any]) -> bool:
    """Whether a batch renames its samples' labels in place: texts as numbers, numbers as one-hot vectors."""
    renamed: dict[Any, Any] = {}
    return (
        len(names) - len(set(names)) >= _REPEATS
        and len(set(keys)) > 1
        and all(renamed.setdefault(name, key) == key for name, key in zip(names, keys, strict=True))
    )


def _is_mixed(rows: Any, samples: Samples) -> bool:
    """Whether a batch has as many of each label as its samples, under other names and in another order."""
    if getattr(rows, "shape", None) != (len(samples),):
        return False
    keys = _keys(rows)
    profile = sorted(Counter(keys).values())
    alike = [names for names in samples.names if sorted(Counter(names).values()) == profile]
    return any(len(names) - len(set(names)) >= _REPEATS for names in alike) and len(profile) > 1


def _is_refilled(inside: list[_Column], columns: list[_Column], samples: Samples) -> bool:
    """Whether rows whose inputs are of no sample have another label than theirs: they were put there."""
    strays = np.logical_and.reduce([column.strays for column in inside if column.strays is not None])
    if not np.any(strays):
        return False
    labels = [column.rows for column in columns if column.is_scalar and not (column.in_place and column.of is not None)]
    for rows in labels:
        own = [np.diagonal(found) for of in samples.columns if (found := _matches(samples, of, rows)) is not None]
        if len(np.unique(rows[~strays])) > 1 and any(same[~strays].all() for same in own):
            return True
    return False


def _assigned(matches: Matches, *, alike: bool) -> NDArray[np.int64] | None:
    """One sample for each row; of several only where they are ``alike`` in all that the batch holds."""
    sources, used = np.empty(len(matches), np.int64), np.zeros(matches.shape[1], bool)
    for row, candidates in enumerate(map(np.flatnonzero, matches)):
        if not len(candidates) or (len(candidates) > 1 and not alike):
            return None
        free = candidates[~used[candidates]]
        sources[row] = free[0] if len(free) else candidates[0]
        used[sources[row]] = True
    return sources


def _all(columns: list[_Column]) -> Matches:
    matches: Matches = np.all([column.matches for column in columns if column.matches is not None], axis=0)
    return matches


def _weight(columns: list[_Column], size: int) -> float:
    return sum(column.strength for column in columns if len(column.rows) == size)


def _in_place(matches: Matches) -> bool:
    return matches.shape[0] <= matches.shape[1] and bool(np.diagonal(matches).all())


def _strength(matches: Matches) -> float:
    """From 0, where each row may be of any sample, to 1, where each is of one at most."""
    others = matches.sum(1).clip(1) - 1
    return 1 - float(others.mean()) / max(len(matches[0]) - 1, 1)


class _Objects(list[int]):
    """Samples whose own objects a batch lists."""


def _batch_columns(batch: Any, samples: Samples) -> Iterator[tuple[Path, Any]]:
    """What a batch holds for each of its rows: arrays, texts, and the samples' own objects."""
    for path, value in islice(_things(batch), 4 * _LEAVES):
        if isinstance(value, (list, tuple)) and 2 * len(value) > len(samples):
            owners = [samples.owners.get(id(item), -1) for item in value]
            if min(owners) >= 0:
                yield path, _Objects(owners)
            elif all(isinstance(item, (str, bytes)) for item in value):
                yield path, list(value)
        array = _array(value)
        if array is not None and array.ndim and array.size:
            yield path, array


def _leaves(value: Any) -> Iterator[tuple[Path, Any]]:
    """Texts and what :func:`_array` takes."""
    return ((p, item) for p, item in _things(value) if isinstance(item, (str, bytes)) or _array(item) is not None)


def _things(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """A value and all that lies in it, by where."""
    yield path, value
    if len(path) < _DEPTH:
        for key, item in _items(value):
            yield from _things(item, (*path, key))


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, PackedSequence):
        return iter([("padded", pad_packed_sequence(value, batch_first=True)[0])])
    if isinstance(value, Mapping):
        return iter(list(value.items()))
    if isinstance(value, (list, tuple)):
        return islice(enumerate(value), _LEAVES) if not _is_numbers(value) or len(value) < _DEPTH else iter(())
    if isinstance(value, (Tensor, np.ndarray, np.generic, nn.Module, type)) or callable(value):
        return iter(())
    return iter(list(getattr(value, "__dict__", {}).items()))


def _at(value: Any, path: Path) -> Any:
    try:
        for key in path:
            value = value[key] if isinstance(value, (list, tuple, Mapping)) else vars(value)[key]
    except (LookupError, TypeError):
        return None
    return value


def _is_numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], (numbers.Number, np.generic))


def _array(value: Any) -> NDArray[Any] | None:
    """A number, an array or an image as an array of numbers; None for anything else."""
    try:
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_nested:
                return None
            value = value.detach().cpu()
            array = (value.float() if value.dtype == torch.bfloat16 else value).numpy(force=True)
        elif (
            isinstance(value, (np.ndarray, np.generic, numbers.Real))
            or hasattr(value, "__array_interface__")
            or _is_numbers(value)
        ):
            array = np.asarray(value)
        else:
            return None
    except (OSError, RuntimeError, TypeError, ValueError):
        return None
    return array if array.dtype.kind in "biuf" else None
