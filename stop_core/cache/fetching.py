"""Downloads the shards of a cache from an object store, once per machine.

    ABSENT --lock, download, hash--> PRESENT

A shard gets its name after its bytes have been verified, so an interrupted download leaves no file
of that name. The processes of a machine share the folder; a lock per shard prevents two of them
from downloading the same one.
"""

import fcntl
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stop_core.cache.files import DATA, shard_path
from stop_core.cache.hashed import FOLDER_VARIABLE, HashedFiles, local_folder
from stop_core.cache.manifest import Manifest, ShardEntry
from stop_core.storage.atomic import appearing, hash_file
from stop_core.storage.names import inside, open_lock
from stop_core.storage.paths import StoragePath

_CONNECTIONS = 8


def fetch_shards(cache: StoragePath, manifest: Manifest, shards: Sequence[ShardEntry]) -> Path:
    """Returns a local folder with these shards of a cache: the cache itself if it is local.

    Raises:
        OSError: if the disk has no room for them, or the store cannot be reached.
        ValueError: if a downloaded shard does not have the SHA-256 of the manifest.
    """
    if isinstance(cache, Path):
        return cache
    # Named by content: an address can be reused for other data.
    folder = inside(local_folder(), manifest.data_hash[:32])
    inside(folder, DATA).mkdir(parents=True, exist_ok=True)
    missing = [entry for entry in shards if not shard_path(folder, entry.name).is_file()]
    _require_room(folder, sum(entry.file_bytes for entry in missing))
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        for _ in pool.map(lambda entry: _fetch(cache, entry, folder), missing):
            pass
    return folder


def _fetch(cache: StoragePath, entry: ShardEntry, folder: Path) -> None:
    source, target = shard_path(cache, entry.name), shard_path(folder, entry.name)
    with open_lock(inside(folder, f".{entry.name}.lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_file():  # another process has downloaded it meanwhile
            return
        with appearing(target) as staging:
            try:
                with source.open("rb") as remote, staging.open("wb") as file:
                    shutil.copyfileobj(remote, file, 1 << 22)
            except FileNotFoundError as error:
                raise ValueError(
                    f"the shard {source} is gone: run the same preprocess command again"
                ) from error
            if hash_file(staging) != entry.sha256:
                raise ValueError(
                    f"the shard {source} is damaged: its hash differs from the manifest. Delete it "
                    "and run the same preprocess command"
                )
        HashedFiles(folder).add(target, entry.sha256)


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{needed / 1e9:.1f} GB of shards are to be fetched and {folder} has room for "
            f"{free / 1e9:.1f}: set {FOLDER_VARIABLE} to a folder with more"
        )
