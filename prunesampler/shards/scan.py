"""One shard, read: its samples in the order of the tar, with their labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prunesampler.errors import UnsupportedError
from prunesampler.shards.headers import tar_members
from prunesampler.shards.labels import Label, LabelReader, class_indices
from prunesampler.shards.names import split_names
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
        labels = None if reader is None else reader.end()
    places, keys, extensions = split_names(pa.array(names, pa.large_string()))
    changes = pc.not_equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.append([True], changes)) if len(keys) else np.zeros(0, np.int64)
    sample_keys = keys.take(pa.array(starts))
    _check(url, keys, sample_keys, extensions)
    if labels is None:
        labels = np.full(len(starts), -1, np.int32)
        kinds = [kind for kind, name in enumerate(extensions.dictionary.to_pylist()) if name.lower() == label]
        labelled = np.flatnonzero(np.isin(extensions.indices.to_numpy(), kinds))
        texts = [small[place] for place in places[labelled].tolist()]
        owners = np.searchsorted(starts, labelled, "right") - 1
        labels[owners] = class_indices(url, sample_keys.take(pa.array(owners)), texts)
    inside = {
        "extension": extensions.dictionary.cast(pa.string()).take(extensions.indices),
        "offset": pa.array(np.concatenate(offsets)[places]),
        "size": pa.array(np.concatenate(sizes)[places]),
    }
    struct = pa.StructArray.from_arrays(list(inside.values()), list(inside))
    listed = pa.ListArray.from_arrays(pa.array(np.append(starts, len(keys)), pa.int32()), struct)
    columns = [sample_keys, listed, pa.array(labels, mask=labels < 0)]
    table = pa.Table.from_arrays(columns, names=SCHEMA.names).cast(SCHEMA)
    shard = Shard(url, len(table), source.size, source.modified, source.seekable, key_digest(table), row_digest(table))
    return shard, table


def _check(
    url: str, keys: pa.LargeStringArray, sample_keys: pa.LargeStringArray, extensions: pa.DictionaryArray
) -> None:
    if pc.count_distinct(sample_keys).as_py() < len(sample_keys):
        key = _first_repeated(sample_keys.to_pylist())
        raise UnsupportedError(
            f"{url}: the files of sample {key!r} are not neighbours, so webdataset would take them for several samples"
        )
    names = extensions.dictionary.to_pylist()
    lower = {name: kind for kind, name in enumerate(dict.fromkeys(name.lower() for name in names))}
    kinds = np.array([lower[name.lower()] for name in names], np.int64)[extensions.indices.to_numpy()]
    changes = np.append([0], np.cumsum(pc.not_equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)))
    files = changes[: len(keys)] * len(lower) + kinds
    if len(np.unique(files)) < len(files):
        twice = files.tolist().index(_first_repeated(files.tolist()))
        raise UnsupportedError(
            f"{url}: sample {keys[twice].as_py()!r} has two files with the extension {extensions[twice].as_py()!r}"
        )


def _first_repeated(values: Sequence[Any]) -> Any:
    counts = Counter(values)
    return next(value for value in values if counts[value] > 1)
