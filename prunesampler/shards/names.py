"""Which sample a file in a tar belongs to."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prunesampler.tables.columns import Int64s

__all__ = ["split_name", "split_names"]

_RULE = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_META = re.compile(r"__[^/]*__($|/)")


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension, by the rule of webdataset: the extension begins at the first dot after the last slash.

    Args:
        name: of a file in a tar.

    Returns:
        Key and extension, the latter in the case that it has; None for what webdataset passes over: names without
        key or dot, and those that begin with ``__…__``.

    >>> split_name("a.b/7.seg.PNG"), split_name("README"), split_name("__meta__/7.png")
    (('a.b/7', 'seg.PNG'), None, None)
    """
    if name.startswith("__") and (("/" not in name and name.endswith("__")) or _META.match(name)):
        return None
    folder, slash, file = name.rpartition("/")
    stem, dot, extension = file.partition(".")
    if stem and dot and "\n" not in name:
        return folder + slash + stem, extension
    found = _RULE.match(name)  # its corners: names such as "folder/.hidden", and line breaks
    return (found[1], found[2]) if found else None


def split_names(names: pa.LargeStringArray) -> tuple[Int64s, pa.LargeStringArray, pa.DictionaryArray]:
    """:func:`split_name` of many names at once.

    Returns:
        The positions of those that belong to samples, their keys, and their extensions.

    >>> places, keys, extensions = split_names(pa.array(["7.png", "README", "7.cls"], pa.large_string()))
    >>> places, keys.to_pylist(), extensions.to_pylist()
    (array([0, 2]), ['7', '7'], ['png', 'cls'])
    """
    parts = pc.split_pattern(names, ".", max_splits=1)
    halves = parts.flatten()
    if len(halves) == 2 * len(names):
        first = np.arange(0, len(halves), 2)
        keys, extensions = halves.take(pa.array(first)), halves.take(pa.array(first + 1)).dictionary_encode()
        corner = pc.match_substring_regex(keys, r"^__|/$|\n|^$")
        kinds = extensions.dictionary.to_pylist()
        if not pc.any(corner).as_py() and not any("/" in kind or "\n" in kind for kind in kinds):
            return np.arange(len(names)), keys, extensions
    split = [(place, *part) for place, name in enumerate(names.to_pylist()) if (part := split_name(name))]
    keys = pa.array([key for _, key, _ in split], pa.large_string())
    extensions = pa.array([extension for _, _, extension in split], pa.large_string())
    return np.array([place for place, _, _ in split], np.int64), keys, extensions.dictionary_encode()
