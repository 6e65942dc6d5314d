"""What a dataset calls its classes and its samples, as far as it says so itself. No sample is ever loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from prunesampler.tables.columns import identities
from prunesampler.tables.fingerprint import _ask

_LABELS = ("label", "labels", "target", "targets")
_MOST = 10_000_000  # paths, which are held in memory
_MOST_CLASSES = 1_000_000
_MAX_DEPTH = 16


def class_names(dataset: object, depth: int = 0) -> list[str] | None:
    """The names of the classes by label, as many as there are; None where the dataset does not say.

    They come from ``.classes`` or ``.class_to_idx`` (``ImageFolder`` and other datasets of torchvision, timm's
    ``.reader``), or the ``ClassLabel`` of a Hugging Face dataset; of a dataset inside another, as in a ``Subset``, and
    of several that agree. A ``target_transform`` may change labels, so under one they are not known.

    >>> class Pets:
    ...     classes = ["cat", "dog"]
    >>> class_names(Pets())
    ['cat', 'dog']
    """
    if dataset is None or depth > _MAX_DEPTH or _ask(getattr, dataset, "target_transform", None) is not None:
        return None
    numbers = _ask(getattr, dataset, "class_to_idx", None)
    if isinstance(numbers, Mapping) and sorted(numbers.values(), key=str) == sorted(range(len(numbers)), key=str):
        found = _names(sorted(numbers, key=numbers.__getitem__))
    else:
        found = _names(_ask(getattr, dataset, "classes", None)) or _of_features(dataset)
    if found is not None:
        return found
    several = _ask(getattr, dataset, "datasets", None)
    if isinstance(several, list | tuple) and several:
        named = [class_names(each, depth + 1) for each in several]
        return named[0] if all(each == named[0] for each in named) else None
    inside = [_ask(getattr, dataset, name, None) for name in ("dataset", "reader")]
    return next((names for each in inside if (names := class_names(each, depth + 1))), None)


def _names(values: Any) -> list[str] | None:
    """A list of distinct names; of several for one class the first."""
    if not isinstance(values, list | tuple) or not 1 < len(values) <= _MOST_CLASSES:
        return None
    names = [each[0] if isinstance(each, list | tuple) and each else each for each in values]
    return names if all(isinstance(each, str) for each in names) and len({*names}) == len(names) else None


def _of_features(dataset: object) -> list[str] | None:
    features = _ask(getattr, dataset, "features", None)
    if not isinstance(features, Mapping):
        return None
    named = {name: found for name, feature in features.items() if (found := _names(getattr(feature, "names", None)))}
    first = [named[name] for name in _LABELS if name in named]
    return first[0] if first else next(iter(named.values())) if len(named) == 1 else None


def sample_paths(dataset: object) -> Any:
    """The path or key of each sample, relative to ``.root``: a ``pyarrow.LargeStringArray``, or None for unknown.

    They come from the ``.samples`` of an ``ImageFolder``, the index of shards, and of these through ``Subset`` and
    ``ConcatDataset``.

    >>> class Folder:
    ...     root, samples = "/pets", [("/pets/cat/1.png", 0), ("/pets/dog/7.png", 1)]
    ...     __len__ = lambda self: 2
    >>> sample_paths(Folder()).to_pylist()
    ['cat/1.png', 'dog/7.png']
    """
    length = _ask(len, dataset)
    found = _ask(_paths, dataset, 0) if length and length <= _MOST else None
    return None if found is None else _ask(identities, "keys", found, length)


def _paths(dataset: Any, depth: int) -> Any:
    samples, kind = getattr(dataset, "samples", None), type(dataset).__name__
    index: Any = getattr(dataset, "index", None)
    if isinstance(samples, list | tuple) and len(samples) == len(dataset):
        root = os.path.join(getattr(dataset, "root", ""), "")
        return [os.fspath(path).removeprefix(root) for path, *_ in samples]
    if hasattr(index, "keys_of"):
        return pa.concat_arrays([index.keys_of(shard).cast(pa.large_string()) for shard in range(len(index.shards))])
    if kind not in ("ConcatDataset", "Subset") or depth == _MAX_DEPTH:
        return None
    parts = [_paths(each, depth + 1) for each in (dataset.datasets if kind == "ConcatDataset" else [dataset.dataset])]
    if any(part is None for part in parts):
        return None
    paths = pa.concat_arrays([pa.array(part, pa.large_string()) for part in parts])
    return paths.take(pa.array(np.asarray(dataset.indices, np.int64))) if kind == "Subset" else paths


def named_classes(table: Any) -> dict[int, str]:
    """The names that stand in the provenance of a score table, by label; empty where there are none."""
    provenance = table.provenance
    for _ in range(_MAX_DEPTH):  # of merged tables in the first
        merged = provenance.get("merged_from") if isinstance(provenance, Mapping) else None
        if not isinstance(merged, list) or not merged or not isinstance(merged[0], Mapping):
            break
        provenance = merged[0].get("provenance")
    names = _names(provenance.get("classes")) if isinstance(provenance, Mapping) else None
    return dict(enumerate(names or []))
