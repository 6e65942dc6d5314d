"""Whether a coreset, or a sample of a stream, is of an index."""

from __future__ import annotations

from typing import Any

from prunesampler.errors import MismatchError, UnsupportedError
from prunesampler.shards.index import ShardIndex
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.fingerprint import matches

__all__ = ["check_coreset", "shard_and_row"]


def check_coreset(coreset: Coreset, index: ShardIndex) -> None:
    """Refuse a coreset of another dataset.

    Raises:
        MismatchError: it has another number of rows, or another fingerprint.
    """
    if coreset.num_rows != len(index):
        raise MismatchError(f"the coreset is of {coreset.num_rows} rows, the index has {len(index)}")
    if not matches(coreset.fingerprint, index.fingerprint):
        raise MismatchError(
            f"the coreset belongs to a dataset with fingerprint {coreset.fingerprint}, the index has "
            f"{index.fingerprint}"
        )


def shard_and_row(sample: Any, index: ShardIndex) -> tuple[int, int]:
    """Where a sample of a webdataset pipeline is in the index.

    Raises:
        UnsupportedError: it has lost its identity.
        ArgumentError: it is not there.
    """
    if not isinstance(sample, dict) or "__key__" not in sample or "__url__" not in sample:
        raise UnsupportedError(
            "samples must have __key__ and __url__ here, as webdataset's tarfile_to_samples gives them: put this "
            "stage right behind the reading of the tars"
        )
    shard = index.shard_number(sample["__url__"])
    return shard, index.row(shard, sample["__key__"])
