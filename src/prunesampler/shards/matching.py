"""Whether a coreset and an index speak of the same samples."""

from __future__ import annotations

from prunesampler.coreset import Coreset
from prunesampler.errors import MismatchError
from prunesampler.fingerprint import matches
from prunesampler.shards.index import ShardIndex

__all__ = ["check_coreset"]


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
