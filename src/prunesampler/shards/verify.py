"""Whether a new shard holds what it should."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from prunesampler.errors import CorruptFileError
from prunesampler.shards.layout import Layout
from prunesampler.shards.scan import scan_shard
from prunesampler.shards.store import Shard

__all__ = ["verified"]


def verified(layout: Layout, number: int, url: str) -> tuple[Shard, pa.Table]:
    """Read the headers of a new shard as anybody would, and compare them with what was planned.

    Args:
        layout: the plan.
        number: of the new shard.
        url: where it is now.

    Returns:
        The shard and its samples, with the labels that they had.

    Raises:
        CorruptFileError: it does not hold the files that it should, in their order, with their sizes.
        OSError: it cannot be read.
    """
    shard, table = scan_shard(url, None)
    first, end = layout.first[number : number + 2].tolist()
    held, order = layout.locations, layout.order[first:end]
    files = np.concatenate([np.arange(held.starts[place], held.starts[place + 1]) for place in order])
    members = pa.concat_arrays(table["members"].chunks)
    extensions = pa.array(held.extensions, pa.string()).take(pa.array(held.codes[files]))
    if not (
        pa.concat_arrays(table["key"].chunks).equals(layout.keys[first:end].cast(pa.large_string()))
        and np.array_equal(np.diff(members.offsets.to_numpy()), held.starts[order + 1] - held.starts[order])
        and members.flatten().field("extension").equals(extensions)
        and np.array_equal(members.flatten().field("size").to_numpy(), held.sizes[files])
    ):
        raise CorruptFileError(f"{url} does not hold what was written to it")
    labels = layout.index.labels
    if labels is None:
        return shard, table
    kept = labels[held.rows[order]]
    column = pa.array(kept, pa.int32(), mask=kept < 0)
    return shard, table.set_column(table.schema.get_field_index("label"), "label", column)
