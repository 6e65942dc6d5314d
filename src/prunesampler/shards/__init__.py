"""Tar shards as webdataset reads them: an index that gives every sample a row."""

from prunesampler.shards.build import build_index
from prunesampler.shards.index import Member, ShardIndex
from prunesampler.shards.keep import keep

__all__ = ["Member", "ShardIndex", "build_index", "keep"]
