"""The shards of a cache on an object store, brought to this machine once and kept.

    ABSENT --lock, download, hash--> PRESENT

A shard is PRESENT under its name when its bytes have been verified; a kill before leaves nothing of
that name. Processes of one machine share the folder, and a lock a shard keeps two of them from
fetching the same one.
"""

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from stop_core.cache.files import DATA, shard_path
from stop_core.cache.hashed import FOLDER_VARIABLE, HashedFiles, local_folder
from stop_core.cache.manifest import Manifest, ShardEntry
from stop_core.storage.atomic import appearing, hash_file
from stop_core.storage.names import inside, open_lock
from stop_core.storage.paths import StoragePath

_CONNECTIONS = 8


def fetch_shards(cache: StoragePath, manifest: Manifest, shards: Sequence[ShardEntry]) -> Path:
    """Returns a local folder that holds these shards of a cache: the cache itself if it is local.

    Raises:
        OSError: if there is no room for them, or the store cannot be reached.
        ValueError: if a shard did not arrive as the manifest describes it.
    """
    if isinstance(cache, Path):
        return cache
    # Named by content, so that an address that is reused for other data cannot mislead.
    folder = inside(local_folder(), manifest.data_hash[:32])
    inside(folder, DATA).mkdir(parents=True, exist_ok=True)
    missing = [entry for entry in shards if not local_shard(folder, entry).is_file()]
    _require_room(folder, sum(entry.file_bytes for entry in missing))
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        for _ in pool.map(lambda entry: _fetch(cache, entry, folder), missing):
            pass
    return folder


def local_shard(folder: Path, entry: ShardEntry) -> Path:
    """Returns where a shard lies below a local folder."""
    return shard_path(folder, entry.name)


def _fetch(cache: StoragePath, entry: ShardEntry, folder: Path) -> None:
    source, target = shard_path(cache, entry.name), local_shard(folder, entry)
    with _alone(inside(folder, f".{entry.name}.lock")):
        if target.is_file():  # another process has fetched it meanwhile
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
                    f"the shard {source} is damaged, its hash is not the manifest's: delete it "
                    "and run the same preprocess command"
                )
        HashedFiles(folder).add(target, entry.sha256)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with open_lock(path) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{needed / 1e9:.1f} GB of shards are to be fetched and {folder} has room for "
            f"{free / 1e9:.1f}: set {FOLDER_VARIABLE} to a folder with more"
        )
