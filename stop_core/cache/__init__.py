"""The frame cache: a folder of plain Parquet files, written once and read at memory speed."""

from stop_core.cache.config import CacheConfig as CacheConfig
from stop_core.cache.job import CacheJob as CacheJob
from stop_core.cache.job import read_failures as read_failures
from stop_core.cache.manifest import Manifest as Manifest
from stop_core.cache.reading import CachedClips as CachedClips
from stop_core.cache.reading import FrameCache as FrameCache
from stop_core.cache.shards import Failure as Failure
from stop_core.cache.shards import ShardPlan as ShardPlan
from stop_core.cache.shards import ShardRecord as ShardRecord
from stop_core.cache.views import View as View
from stop_core.cache.writing import write_shard as write_shard
