"""Tar shards as webdataset reads them: an index that gives every sample a row."""

from prunesampler.shards.build import build_index
from prunesampler.shards.dataset import IndexedShards
from prunesampler.shards.index import Member, ShardIndex
from prunesampler.shards.kept_stream import keep
from prunesampler.shards.pipeline import track
from prunesampler.shards.repack import repack
from prunesampler.shards.streamed import StreamedShards

__all__ = ["IndexedShards", "Member", "ShardIndex", "StreamedShards", "build_index", "keep", "repack", "track"]
