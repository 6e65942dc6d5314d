"""The URLs of shards: what a pattern stands for, and which shard a URL means."""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import urlsplit
from urllib.request import url2pathname

from prunesampler.errors import ArgumentError
from prunesampler.shards.store import Shard

__all__ = ["expand_urls", "find_shard", "local_path"]


def expand_urls(urls: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """The shards that patterns stand for, in their order.

    Braces and ``::`` mean what they mean to webdataset, ``*``, ``?`` and ``[…]`` what a shell gives for local files,
    sorted. A name that exists is never taken for a pattern.

    Raises:
        ArgumentError: no shard at all, one twice, or a pattern that matches nothing.
        ImportError: braces without the package ``braceexpand``, which comes with webdataset.

    >>> expand_urls("http://host/{00..02}.tar")
    ['http://host/00.tar', 'http://host/01.tar', 'http://host/02.tar']
    """
    given = [urls] if isinstance(urls, str | os.PathLike) else list(urls)
    found: list[str] = []
    for text in [os.fspath(url) for url in given]:
        for pattern in [text] if text.startswith("pipe:") else text.split("::"):
            for url in [pattern] if os.path.exists(pattern) else _braces(pattern):
                found += _matches(url)
    if not found:
        raise ArgumentError("urls", "must name at least one shard", urls)
    seen: set[str] = set()
    for url in found:
        if url in seen:
            raise ArgumentError("urls", "must name each shard once", url)
        seen.add(url)
    return found


def local_path(url: str) -> str | None:
    """The path of a local shard, None for any other URL.

    >>> local_path("file:///data/a.tar"), local_path("a.tar"), local_path("http://host/a.tar")
    ('/data/a.tar', 'a.tar', None)
    """
    scheme = url.partition(":")[0]
    if scheme == "file":
        return url2pathname(urlsplit(url).path)
    return None if scheme == "pipe" or "://" in url else url


def find_shard(url: str, by_url: Mapping[str, int], by_name: Mapping[str, int], shards: Sequence[Shard]) -> int:
    """The number of the shard that a URL means.

    Args:
        url: as webdataset spells it.
        by_url: URL, and absolute path of a local shard → number.
        by_name: file name → number, −1 where several shards have it.
        shards: all of them.

    Raises:
        ArgumentError: it is none of them, or could be several.
    """
    for spelled in (url, absolute_path(url)):
        if spelled in by_url:
            return by_url[spelled]
    words = shlex.split(url[5:]) if url.startswith("pipe:") else [url]
    named = {by_name[name] for word in words if (name := file_name(word)) in by_name}
    if len(named) != 1 or -1 in named:
        several = "its file name is that of several shards, so it must be spelled as in" if named else "must be of"
        raise ArgumentError("url", f"{several} the index, which has {len(shards)} shards like {shards[0].url}", url)
    number = named.pop()
    path = local_path(url)
    if path is not None and os.path.exists(path) and shards[number].size not in (-1, os.path.getsize(path)):
        raise ArgumentError("url", f"has another size than {shards[number].url} had when it was indexed", url)
    return number


def absolute_path(url: str) -> str:
    """The path of a local shard from the root, other URLs as they are."""
    path = local_path(url)
    return url if path is None else os.path.abspath(path)


def file_name(url: str) -> str:
    """The last part of a URL or path, without a query."""
    return os.path.basename(urlsplit(url).path if "://" in url else url)


def _braces(pattern: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    from braceexpand import braceexpand

    return list(braceexpand(pattern))


def _matches(url: str) -> list[str]:
    path = local_path(url)
    if path is None or os.path.exists(path) or not glob.has_magic(path):
        return [url]
    found = sorted(glob.glob(path))
    if not found:
        raise ArgumentError("urls", "must match at least one file", url)
    return found
