"""Which sample a file in a tar belongs to."""

from __future__ import annotations

import re

__all__ = ["split_name"]

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
