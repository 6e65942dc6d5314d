"""The URLs of shards: what a pattern stands for, how a URL is opened, and which indexed shard a URL means."""

from __future__ import annotations

import glob
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

from prunesampler.errors import ArgumentError, CorruptFileError, UnsupportedError, missing

_LOCAL = ("file", "local")  # fsspec's names for this machine's files


def url_kind(url: str) -> Literal["file", "http", "pipe", "fsspec"]:
    """How a shard is opened. Everything that opens a URL asks here."""
    scheme = _scheme(url)
    if scheme == "pipe":
        return "pipe"
    if scheme in _LOCAL or "://" not in url:
        return "file"
    return "http" if scheme in ("http", "https") else "fsspec"


def _scheme(url: str) -> str:
    return url.partition(":")[0].strip().lower()  # as those who open URLs read it


def local_path(url: str) -> str | None:
    """The path of a local shard, None for any other URL."""
    if url_kind(url) != "file":
        return None
    return url2pathname(urlsplit(url.strip()).path) if ":" in url and _scheme(url) in _LOCAL else url


def check_commands(argument: str, urls: Iterable[str], allowed: bool) -> None:
    """Refuse commands among the URLs of a call that does not allow them."""
    for url in () if allowed else urls:
        if url_kind(url) == "pipe":
            raise ArgumentError(argument, "may hold a command (pipe:) only with allow_commands=True", url)


def check_stored_urls(path: str | os.PathLike[str], urls: Iterable[object], allow_commands: bool) -> None:
    """Refuse URLs of a file that are none, or that would do more than name a place to read from."""
    for url in urls:
        if not isinstance(url, str) or not url or "\0" in url:
            raise CorruptFileError(f"{path} is damaged: {url!r:.200} is not the URL of a shard")
        kind = url_kind(url)
        if kind == "pipe" and not allow_commands:
            raise UnsupportedError(
                f"{path} names as a shard the command {url!r:.200}, which would run whenever that shard is read: if "
                "you trust whoever made the file, load it with allow_commands=True (--allow-commands)"
            )
        if kind == "fsspec" and "::" in url:
            raise UnsupportedError(
                f"{path} names as a shard a chain of file systems, {url!r:.200}, which can do more than read a file"
            )


def remote_file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the place in it; UnsupportedError where it has none."""
    try:
        import fsspec
    except ImportError as error:
        raise missing("webdataset", error) from error
    try:
        system, place = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError, TypeError) as error:
        raise UnsupportedError(f"{url} cannot be opened: {error}") from error
    return system, place


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
        words = _words(url) if url_kind(url) == "pipe" else [url]
        named = {self._by_name[name] for word in words if (name := _file_name(word)) in self._by_name}
        if len(named) != 1 or -1 in named:
            several = "has the file name of several shards, so it must be written as in" if named else "must be in"
            rule = f"{several} the index, which has {len(self._urls)} shards like {self._urls[0]}"
            raise ArgumentError("url", rule, url)
        number, path = named.pop(), local_path(url)
        if path is not None and os.path.exists(path) and self._sizes[number] not in (-1, os.path.getsize(path)):
            raise ArgumentError("url", f"has another size than {self._urls[number]} had when it was indexed", url)
        return number


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command.partition(":")[2])
    except ValueError:  # a quotation without an end
        return []


def _file_name(url: str) -> str:
    return os.path.basename(urlsplit(url).path if "://" in url else url)
