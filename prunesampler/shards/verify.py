"""What a new shard should hold, and whether it does."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from prunesampler.errors import CorruptFileError
from prunesampler.shards.repack_plan import Layout
from prunesampler.shards.scan import scan_shard
from prunesampler.shards.store import SCHEMA, Shard, key_digest, row_digest
from prunesampler.shards.stretches import Stretch

__all__ = ["planned", "verified"]


def planned(layout: Layout, number: int, url: str, modified: int) -> tuple[Shard, pa.Table]:
    """What scanning a new shard would give, but for the labels, which are those that its samples had.

    Args:
        layout: the plan.
        number: of the new shard.
        url: where it is.
        modified: nanoseconds since 1970, −1 where unknown.
    """
    stretch = Stretch(layout, *layout.first[number : number + 2].tolist())
    held = layout.locations
    inside = {
        "extension": pa.array(held.extensions, pa.string()).take(pa.array(held.codes[stretch.files])),
        "offset": pa.array(stretch.offsets),
        "size": pa.array(stretch.sizes),
    }
    members = pa.ListArray.from_arrays(
        pa.array(stretch.starts, pa.int32()), pa.StructArray.from_arrays(list(inside.values()), list(inside))
    )
    keys = layout.keys[stretch.first : stretch.end]
    labels = np.full(len(keys), -1) if layout.index.labels is None else layout.index.labels[held.rows[stretch.places]]
    columns = [keys, members, pa.array(labels, pa.int32(), mask=labels < 0)]
    table = pa.Table.from_arrays(columns, names=SCHEMA.names).cast(SCHEMA)
    size = int(layout.sizes[number])
    return Shard(url, len(table), size, modified, True, key_digest(table), row_digest(table)), table


def verified(layout: Layout, number: int, url: str) -> tuple[Shard, pa.Table]:
    """Read the headers of a new shard as anybody would, and compare them with what was planned.

    Args:
        layout: the plan.
        number: of the new shard.
        url: where it is now.

    Returns:
        The shard and its samples.

    Raises:
        CorruptFileError: it does not hold the files that it should, in their order, with their sizes.
        OSError: it cannot be read.
    """
    shard, found = scan_shard(url, None)
    _, table = planned(layout, number, url, shard.modified)
    if not found.drop_columns("label").equals(table.drop_columns("label")):
        raise CorruptFileError(f"{url} does not hold what was written to it")
    return shard, table
