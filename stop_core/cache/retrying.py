"""Which shards a command with `--retry-failed` has still to try again.

From its beginning to the manifest, `retry.json` holds the hash of every record with a clip that did
not decode. A shard that has been tried has another record, even if every clip of it failed once
more; so after a kill, or when Ray runs a task a second time, no clip is tried twice.
"""

from collections.abc import Sequence

from stop_core.cache.files import RETRY, read_checked_json, write_checked_json
from stop_core.cache.shards import ShardRecord
from stop_core.storage.atomic import hash_json
from stop_core.storage.paths import StoragePath


def begin_retry(cache: StoragePath, records: Sequence[ShardRecord]) -> None:
    """Takes down the records whose failed clips are to be tried again, unless that was begun."""
    hashes = {r.name: hash_json(r.to_dict()) for r in records if r.has_retriable}
    if hashes and not (cache / RETRY).is_file():
        write_checked_json(cache / RETRY, {"records": hashes})


def still_to_retry(cache: StoragePath, records: Sequence[ShardRecord]) -> frozenset[str]:
    """Returns the names of the shards, of these, that have not been tried again."""
    if not (cache / RETRY).is_file():
        return frozenset()
    begun = read_checked_json(cache / RETRY).get("records")
    if not isinstance(begun, dict):
        raise ValueError(f"{cache / RETRY} lists no records: delete it, and run the command again")
    return frozenset(r.name for r in records if begun.get(r.name) == hash_json(r.to_dict()))
