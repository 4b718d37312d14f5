"""The frame cache: a folder of plain Parquet files, written once and read at memory speed."""

from stop_core.cache.config import CacheConfig
from stop_core.cache.job import CacheJob, read_failures
from stop_core.cache.manifest import Manifest
from stop_core.cache.reading import CachedClips, FrameCache
from stop_core.cache.shards import Failure, ShardPlan, ShardRecord
from stop_core.cache.views import View
from stop_core.cache.writing import write_shard

__all__ = [
    "CacheConfig",
    "CacheJob",
    "CachedClips",
    "Failure",
    "FrameCache",
    "Manifest",
    "ShardPlan",
    "ShardRecord",
    "View",
    "read_failures",
    "write_shard",
]
