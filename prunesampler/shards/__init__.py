"""Tar shards as webdataset reads them: an index that gives every sample a row."""

from prunesampler.shards.build import build_index
from prunesampler.shards.index import Member, ShardIndex
from prunesampler.shards.keep import keep
from prunesampler.shards.reader import IndexedShards
from prunesampler.shards.repack import repack
from prunesampler.shards.track import track

__all__ = ["IndexedShards", "Member", "ShardIndex", "build_index", "keep", "repack", "track"]
