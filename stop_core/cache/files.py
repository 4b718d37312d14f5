"""The paths in a cache folder, and its JSON files, which are written atomically with a checksum.

<cache>/job.json                    its options and the size of its shards; written first
<cache>/data/train-00003.parquet    a shard: some clips of one split
<cache>/records/train-00003.json    marks the shard as complete; holds a hash of its sources
<cache>/clips.parquet               the ids, labels and captions of all clips, in order
<cache>/failures.parquet            the clips that are in no shard, with the reason
<cache>/manifest.json               marks the cache as finished; written last
<cache>/retry.json                  during --retry-failed: the records before the retry
<cache>/.lock                       locked by the process that makes the cache
"""

import json
from typing import Any

from stop_core.storage.atomic import hash_json, is_leftover, write_whole
from stop_core.storage.documents import parse_json, read_text, shown
from stop_core.storage.names import P, inside
from stop_core.storage.paths import StoragePath

CACHE_FORMAT = 2
CLIPS_PER_SHARD = 64
"""The number for caches whose `job.json` does not record it."""
MOST_CLIPS_PER_SHARD = 512
JOB = "job.json"
MANIFEST = "manifest.json"
CLIP_LIST = "clips.parquet"
FAILURES = "failures.parquet"
RETRY = "retry.json"
LOCK = ".lock"
DATA = "data"
RECORDS = "records"
CHECKSUM = "checksum"
"""The field of every JSON file with the hash of its other fields."""


def shard_path(cache: P, name: str) -> P:
    """Returns the path of the shard `name`."""
    return inside(cache, f"{DATA}/{name}.parquet")


def record_path(cache: P, name: str) -> P:
    """Returns the path of the record of the shard `name`."""
    return inside(cache, f"{RECORDS}/{name}.json")


def write_checked_json(path: StoragePath, value: dict[str, Any], *, new: bool = False) -> None:
    """Writes a JSON object with a checksum, atomically."""
    write_whole(path, _render(value), new=new)


def read_checked_json(path: StoragePath) -> dict[str, Any]:
    """Reads a file of `write_checked_json`; ValueError if it is damaged, or of another format."""
    remedy = "delete it and run the same preprocess command again"
    try:
        text = read_text(path)
        value = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): {remedy}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object: {remedy}")
    version = value.get("format_version", CACHE_FORMAT)
    if shown(version) != str(CACHE_FORMAT):
        raise ValueError(
            f"{path} was made by another version of this project (cache format {shown(version)}, "
            f"not {CACHE_FORMAT}): choose another --cache"
        )
    value.pop(CHECKSUM, None)
    if text != _render(value):
        raise ValueError(f"{path} is damaged, its checksum does not fit: {remedy}")
    return value


def _render(value: dict[str, Any]) -> str:
    return json.dumps(value | {CHECKSUM: hash_json(value)}, indent=1, sort_keys=True) + "\n"


def remove_leftovers(cache: StoragePath) -> None:
    """Removes the staging files of interrupted processes from a cache."""
    for folder in (cache, inside(cache, DATA), inside(cache, RECORDS)):
        for path in filter(is_leftover, folder.iterdir()):
            path.unlink(missing_ok=True)
