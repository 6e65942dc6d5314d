"""One shard, read: its samples in the order of the tar, with their labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from prunesampler.errors import UnsupportedError
from prunesampler.shards.headers import tar_members
from prunesampler.shards.labels import Label, LabelReader, class_index
from prunesampler.shards.names import split_name
from prunesampler.shards.sources import open_source
from prunesampler.shards.store import SCHEMA, Shard, key_digest, row_digest

__all__ = ["scan_shard"]


def scan_shard(url: str, label: Label = "cls") -> tuple[Shard, pa.Table]:
    """Read the headers of a shard, and of the files only what labels need.

    Args:
        url: as :func:`prunesampler.shards.sources.open_source` takes it.
        label: see :func:`prunesampler.shards.build_index`.

    Returns:
        The shard and its samples.

    Raises:
        OSError: it cannot be read.
        CorruptFileError: it is no tar, damaged, or cut short.
        UnsupportedError: the files of a sample are not neighbours, or two have one extension; a label is not an int;
            or see :func:`prunesampler.shards.headers.tar_members`.
    """
    names: list[str] = []
    small: list[bytes] = []
    offsets, sizes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    reader = LabelReader(label, url) if callable(label) else None
    with open_source(url) as source:
        for members in tar_members(source):
            names += members.names
            small += members.small
            offsets.append(members.offsets)
            sizes.append(members.sizes)
            if reader is not None:
                reader.add(source, members)
        values: list[int | None] = reader.end() if reader is not None else []
    parts = [split_name(name) for name in names]
    places = [place for place, part in enumerate(parts) if part is not None]
    keys = [part[0] for part in parts if part is not None]
    extensions = [part[1] for part in parts if part is not None]
    starts = [place for place, key in enumerate(keys) if not place or key != keys[place - 1]]
    sample_keys = [keys[start] for start in starts]
    _check(url, keys, sample_keys, extensions)
    if isinstance(label, str):
        held = {
            keys[i]: class_index(url, keys[i], small[places[i]])
            for i, name in enumerate(extensions)
            if name.lower() == label
        }
        values = [held.get(key) for key in sample_keys]
    elif label is None:
        values = [None] * len(sample_keys)
    inside = {
        "extension": pa.array(extensions, pa.string()),
        "offset": pa.array(np.concatenate(offsets)[places]),
        "size": pa.array(np.concatenate(sizes)[places]),
    }
    struct = pa.StructArray.from_arrays(list(inside.values()), list(inside))
    listed = pa.ListArray.from_arrays(pa.array([*starts, len(keys)], pa.int32()), struct)
    columns = [pa.array(sample_keys, pa.large_string()), listed, pa.array(values, pa.int32())]
    table = pa.Table.from_arrays(columns, names=SCHEMA.names).cast(SCHEMA)
    shard = Shard(url, len(table), source.size, source.modified, source.seekable, key_digest(table), row_digest(table))
    return shard, table


def _check(url: str, keys: Sequence[str], sample_keys: Sequence[str], extensions: Sequence[str]) -> None:
    if len(set(sample_keys)) < len(sample_keys):
        key = _first_repeated(sample_keys)
        raise UnsupportedError(
            f"{url}: the files of sample {key!r} are not neighbours, so webdataset would take them for several samples"
        )
    files = list(zip(keys, extensions, strict=True))
    if any(name != name.lower() for name in set(extensions)):
        files = [(key, name.lower()) for key, name in files]
    if len(set(files)) < len(files):
        key, extension = _first_repeated(files)
        raise UnsupportedError(f"{url}: sample {key!r} has two files with the extension {extension!r}")


def _first_repeated(values: Sequence[Any]) -> Any:
    counts = Counter(values)
    return next(value for value in values if counts[value] > 1)
