"""Recognising a dataset without reading a sample."""

from __future__ import annotations

import array
import hashlib
import logging
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from prunesampler.errors import ArgumentError, MismatchError
from prunesampler.tables.columns import identities

_log = logging.getLogger(__name__)

_MAX_ENTRIES = 65_536
_MAX_ELEMENTS = 64  # of one entry
_MAX_READ = 2**22  # elements of an array, so that a tensor of images is not copied
_MAX_DEPTH = 16
_LISTS = ("samples", "targets", "labels", "indices")


def fingerprint(dataset: object = None, *, keys: Any = None) -> str | None:
    """A short text that is equal for equal datasets and differs when one was re-sorted, cut or relabelled.

    It covers the length, the type's name, and at most 65,536 evenly spaced entries of what a dataset lists in memory:
    ``.samples`` (paths relative to ``.root``, so a copy elsewhere is the same), ``.targets``, ``.labels``, the
    ``.indices`` of a Subset, integer tensors of a TensorDataset, a Hugging Face ``_fingerprint``; and the same of the
    ``.dataset`` and ``.datasets`` inside. A dataset's own ``.fingerprint``, a str, is returned as it is. No sample is
    ever loaded. A change between the entries that are looked at goes unnoticed. ``keys``, one str or int per row,
    are used instead of the dataset.

    The text is ``"sha256:…"``; ``"size:…"`` when nothing but the length is known, logged at debug level; None without a
    length.
    """
    if keys is not None:
        column = identities("keys", keys, None)
        state = hashlib.sha256(_encode(["keys", len(column)], ""))
        _add_entries(state, column, "")
        return "sha256:" + state.hexdigest()
    if dataset is None:
        raise ArgumentError("dataset", "must be given unless keys are", None)
    own = _ask(getattr, dataset, "fingerprint", None)
    if isinstance(own, str):
        return own
    state = hashlib.sha256()
    known = _describe(state, dataset, 0)
    length = _ask(len, dataset)
    if known:
        return "sha256:" + state.hexdigest()
    if length is None:
        return None
    kind = type(dataset).__name__
    _log.debug("%s lists nothing to recognise it by but its size: with keys= a re-sorted one would be noticed", kind)
    return f"size:{length}"


def contents(dataset: object) -> str:
    """A text to compare datasets by within one process: of what is in memory, features too, not only of what it lists.

    As little of it is read, and no sample is loaded.
    """
    state = hashlib.sha256()
    _describe(state, dataset, 0)
    _add_attributes(state, dataset, 0)
    return state.hexdigest()


def _add_attributes(state: Any, dataset: object, depth: int) -> None:
    attributes = {"": dataset} if isinstance(dataset, list | tuple) else _ask(vars, dataset) or {}
    for name, value in attributes.items():
        parts = value if isinstance(value, tuple) else (value,)  # a TensorDataset's
        state.update(_encode(name, ""))
        for part in parts:
            state.update(_ask(_encode, _some(part), "") or b"?")
    for _, inner in _inner(dataset) if depth < _MAX_DEPTH else ():
        _add_attributes(state, inner, depth + 1)


def _some(value: Any) -> Any:
    """A few elements of a tensor, on the CPU; anything else as it is."""
    if not hasattr(value, "detach"):
        return value
    flat = value.detach().reshape(-1)
    return [tuple(value.shape), flat[:: -(-len(flat) // _MAX_ELEMENTS) or 1].double()]


def matches(first: str | None, second: str | None) -> bool:
    """Whether two fingerprints may be of the same dataset: they are equal, or one is unknown (None)."""
    return first is None or second is None or first == second


def check_same_dataset(what: str, stored: tuple[Any, str | None], own: tuple[int | None, str | None]) -> None:
    """Raise MismatchError unless both pairs of a number of rows and a fingerprint may be of one dataset.

    >>> check_same_dataset("scores.parquet", (1000, "size:1000"), (1500, "size:1500"))
    Traceback (most recent call last):
    prunesampler.errors.MismatchError: scores.parquet is of 1,000 rows, and this dataset has 1,500: if it has grown or \
shrunk, score with keys= and carry the scores over with ScoreTable.align(keys)
    """
    (rows, stored_print), (own_rows, own_print) = stored, own
    if isinstance(rows, int) and own_rows is not None and rows != own_rows:
        raise MismatchError(
            f"{what} is of {rows:,} rows, and this dataset has {own_rows:,}: if it has grown or shrunk, score with "
            "keys= and carry the scores over with ScoreTable.align(keys)"
        )
    if not matches(stored_print, own_print):
        raise MismatchError(
            f"{what} belongs to a dataset with fingerprint {stored_print}, this one has {own_print}: its samples or "
            "labels are others or in another order than they were (sorted, filtered, relabelled?)"
        )


def _describe(state: Any, dataset: object, depth: int) -> bool:
    """Add a dataset and those inside it; tell whether there was more than a type and a length."""
    length = _ask(len, dataset)
    state.update(_encode(["dataset", type(dataset).__qualname__, length], ""))
    if depth == _MAX_DEPTH:  # one that holds itself has no end
        return False
    for name in ("_fingerprint", "fingerprint"):
        own = _ask(getattr, dataset, name, None)
        if isinstance(own, str):
            state.update(_encode([name, own], ""))
            return True
    known = False
    root = _ask(getattr, dataset, "root", None)
    root = os.path.join(os.fspath(root), "") if isinstance(root, str | os.PathLike) and os.fspath(root) else ""
    for name, values in _listed(dataset):
        state.update(_encode([name, len(values)], ""))
        _add_entries(state, values, root)
        known = True
    for name, inner in _inner(dataset):
        state.update(_encode(["inside", name], ""))
        known |= _describe(state, inner, depth + 1)
    return known


def _listed(dataset: object) -> Iterator[tuple[str, Any]]:
    for name in _LISTS:
        values = _ask(getattr, dataset, name, None)
        if isinstance(values, list | tuple | range | array.array) or (
            (hasattr(values, "shape") or hasattr(values, "to_pylist")) and _ask(len, values)
        ):
            yield name, values
    tensors = _ask(getattr, dataset, "tensors", None)
    if isinstance(tensors, tuple):
        for index, tensor in enumerate(tensors):  # float features may differ in their last bit between machines
            if hasattr(tensor, "is_floating_point") and not tensor.is_floating_point() and tensor.ndim:
                yield f"tensors[{index}]", tensor


def _inner(dataset: object) -> Iterator[tuple[str, object]]:
    inside = _ask(getattr, dataset, "dataset", None)
    if inside is not None:
        yield "dataset", inside
    several = _ask(getattr, dataset, "datasets", None)
    if isinstance(several, Mapping):
        yield from ((str(name), inner) for name, inner in several.items())
    elif isinstance(several, list | tuple):
        yield from ((str(index), inner) for index, inner in enumerate(several))


def _ask(question: Callable[..., Any], *about: object) -> Any:
    """The answer, or None if it raises: a property that fails, no ``__len__``, an array of no dimension."""
    try:
        return question(*about)
    except MemoryError:
        raise  # which says nothing of the dataset
    except Exception:
        return None


def _add_entries(state: Any, values: Any, root: str) -> None:
    """Add at most ``_MAX_ENTRIES`` entries, the first and the last among them; only these are touched."""
    count = len(values)
    width = math.prod(getattr(values, "shape", ())[1:])
    taken = min(count, _MAX_ENTRIES, max(2, _MAX_READ // max(1, width)))
    places = [place * (count - 1) // max(1, taken - 1) for place in range(taken)]
    if hasattr(values, "detach"):
        entries = values.detach()[places].cpu().numpy()
    elif hasattr(values, "take") and hasattr(values, "to_pylist"):
        entries = values.take(places).to_pylist()
    elif hasattr(values, "iloc"):
        entries = values.iloc[places].to_numpy()
    elif isinstance(values, np.ndarray):
        entries = values[places]
    else:
        entries = [values[place] for place in places]
    for entry in entries.tolist() if isinstance(entries, np.ndarray) and entries.ndim == 1 else entries:
        state.update(_encode(entry, root))


def _encode(value: Any, root: str, depth: int = 0) -> bytes:
    """Bytes that are the same for the same value, be it a Python, numpy or torch one, on every machine."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and not value.ndim):
        value = value.item()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, int):  # bools too: a mask is 0 and 1 whatever holds it
        return b"i%d;" % value
    if isinstance(value, float):
        return b"f" + struct.pack("<d", value)
    if isinstance(value, str | bytes):
        text = value.removeprefix(root).encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        return b"s%d:" % len(text) + text
    if isinstance(value, np.ndarray) and value.ndim > 1:
        value = [value.shape, value.reshape(-1)]
    if isinstance(value, Mapping):
        value = [part for name in sorted(value, key=str) for part in (str(name), value[name])]
    if isinstance(value, list | tuple | np.ndarray) and depth < _MAX_DEPTH:
        some = value[:: -(-len(value) // _MAX_ELEMENTS) or 1]
        return b"l%d:" % len(value) + b"".join(_encode(part, root, depth + 1) for part in some)
    return b"o" + type(value).__qualname__.encode() + b";"
