"""Tracks the shards that a command with `--retry-failed` has not retried yet.

Until the manifest is written, `retry.json` holds the hash of every record with a clip that did not
decode. A retry changes the record, even if every clip fails again. So no clip is retried twice
after an interruption, or when Ray repeats a task.
"""

from collections.abc import Sequence

from stop_core.cache.files import RETRY, read_checked_json, write_checked_json
from stop_core.cache.shards import ShardRecord
from stop_core.storage.atomic import hash_json
from stop_core.storage.paths import StoragePath


def begin_retry(cache: StoragePath, records: Sequence[ShardRecord]) -> None:
    """Writes `retry.json` with the records that have retriable clips, unless it exists."""
    hashes = {r.name: hash_json(r.to_dict()) for r in records if r.has_retriable}
    if hashes and not (cache / RETRY).is_file():
        write_checked_json(cache / RETRY, {"records": hashes})


def still_to_retry(cache: StoragePath, records: Sequence[ShardRecord]) -> frozenset[str]:
    """Returns the names of the shards among `records` that have not been retried."""
    if not (cache / RETRY).is_file():
        return frozenset()
    begun = read_checked_json(cache / RETRY).get("records")
    if not isinstance(begun, dict):
        raise ValueError(f"{cache / RETRY} lists no records: delete it, and run the command again")
    return frozenset(r.name for r in records if begun.get(r.name) == hash_json(r.to_dict()))
