"""The URLs of shards: what a pattern stands for, how a URL is opened, and which indexed shard a URL means."""

from __future__ import annotations

import glob
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

from prunesampler.errors import ArgumentError


def url_kind(url: str) -> Literal["file", "http", "pipe", "fsspec"]:
    """How a shard is opened. Everything that opens a URL asks here."""
    scheme = url.partition(":")[0]
    if scheme == "pipe":
        return "pipe"
    if scheme == "file" or "://" not in url:
        return "file"
    return "http" if scheme in ("http", "https") else "fsspec"


def local_path(url: str) -> str | None:
    """The path of a local shard, None for any other URL."""
    if url_kind(url) != "file":
        return None
    return url2pathname(urlsplit(url).path) if url.startswith("file:") else url


def absolute_path(url: str) -> str:
    """The absolute path of a local shard, other URLs as they are."""
    path = local_path(url)
    return url if path is None else os.path.abspath(path)


def expand_urls(urls: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """The shards that patterns stand for, in their order.

    Braces and ``::`` mean what they mean to webdataset; ``*``, ``?`` and ``[…]`` match local files, sorted. A name that
    exists is never taken for a pattern.
    """
    found: list[str] = []
    for text in [os.fspath(url) for url in ([urls] if isinstance(urls, str | os.PathLike) else urls)]:
        for pattern in [text] if url_kind(text) == "pipe" else text.split("::"):
            expanded = [pattern]
            if "{" in pattern and not os.path.exists(pattern):
                from braceexpand import braceexpand

                expanded = list(braceexpand(pattern))
            for url in expanded:
                found += _matches(url)
    if not found:
        raise ArgumentError("urls", "must name at least one shard", urls)
    if len(set(found)) < len(found):
        raise ArgumentError("urls", "must name each shard once", next(url for url in found if found.count(url) > 1))
    return found


def _matches(url: str) -> list[str]:
    path = local_path(url)
    if path is None or os.path.exists(path) or not glob.has_magic(path):
        return [url]
    found = sorted(glob.glob(path))
    if not found:
        raise ArgumentError("urls", "must match at least one file", url)
    return found


class ShardUrls:
    """Finds the indexed shard that a URL means. ``sizes`` of the shards are in bytes, −1 where unknown."""

    def __init__(self, urls: Sequence[str], sizes: Sequence[int]) -> None:
        self._urls, self._sizes = urls, sizes
        self._by_path = {absolute_path(url): number for number, url in enumerate(urls)}
        self._found = {url: number for number, url in enumerate(urls)}
        names = [_file_name(url) for url in urls]
        repeated = {name for name, count in Counter(names).items() if count > 1}
        self._by_name = {name: -1 if name in repeated else number for number, name in enumerate(names)}

    def number(self, url: str) -> int:
        """The position of the shard; see :meth:`prunesampler.shards.ShardIndex.shard_number`."""
        if url not in self._found:
            number = self._by_path.get(absolute_path(url))
            self._found[url] = self._named(url) if number is None else number
        return self._found[url]

    def _named(self, url: str) -> int:
        words = shlex.split(url[5:]) if url_kind(url) == "pipe" else [url]
        named = {self._by_name[name] for word in words if (name := _file_name(word)) in self._by_name}
        if len(named) != 1 or -1 in named:
            several = "has the file name of several shards, so it must be written as in" if named else "must be in"
            rule = f"{several} the index, which has {len(self._urls)} shards like {self._urls[0]}"
            raise ArgumentError("url", rule, url)
        number, path = named.pop(), local_path(url)
        if path is not None and os.path.exists(path) and self._sizes[number] not in (-1, os.path.getsize(path)):
            raise ArgumentError("url", f"has another size than {self._urls[number]} had when it was indexed", url)
        return number


def _file_name(url: str) -> str:
    return os.path.basename(urlsplit(url).path if "://" in url else url)
