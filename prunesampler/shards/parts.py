"""Parts of shards that are not local files."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request

from prunesampler.errors import MismatchError, UnsupportedError
from prunesampler.shards.store import Shard

__all__ = ["check_size", "read_part"]

_ATTEMPTS = 3
_TIMEOUT = 60


def check_size(record: Shard, size: int) -> None:
    """Refuse a shard of another size than the one that was indexed.

    Raises:
        MismatchError: naming it.
    """
    if record.size not in (-1, size):
        raise MismatchError(
            f"{record.url} has changed since it was indexed, from {record.size} to {size} bytes: index it anew"
        )


def read_part(record: Shard, first: int, end: int) -> bytes:
    """The bytes from ``first`` to below ``end``: by one request over HTTP, else by fsspec.

    Raises:
        OSError: they cannot be read, tried three times where a connection breaks.
        MismatchError: the shard has another size than when it was indexed.
        UnsupportedError: the server gives whole files only.
    """
    if not record.url.startswith(("http://", "https://")):
        import fsspec

        system, path = fsspec.core.url_to_fs(record.url)
        data: bytes = system.cat_file(path, first, end)
        return data
    for _ in range(_ATTEMPTS - 1):
        data_or_none = _tried(record, first, end)
        if data_or_none is not None:
            return data_or_none
    return _requested(record, first, end)


def _tried(record: Shard, first: int, end: int) -> bytes | None:
    try:
        return _requested(record, first, end)
    except urllib.error.HTTPError:
        raise
    except (http.client.HTTPException, OSError):
        return None


def _requested(record: Shard, first: int, end: int) -> bytes:
    headers = {"Range": f"bytes={first}-{end - 1}", "Accept-Encoding": "identity"}
    with urllib.request.urlopen(urllib.request.Request(record.url, headers=headers), timeout=_TIMEOUT) as response:
        if response.status != http.client.PARTIAL_CONTENT:
            raise UnsupportedError(
                f"{record.url}: the server gives whole files only: stream the shards, or repack them"
            )
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if total.isdigit():
            check_size(record, int(total))
        body: bytes = response.read()
        return body
