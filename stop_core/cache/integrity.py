"""Whether the shards of a finished cache are those that its manifest lists.

Sizes and footers are compared before anything is read, which takes milliseconds. Contents are
hashed once a machine; a training does so in the background of its first epoch.
"""

import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stop_core.cache.config import CacheConfig
from stop_core.cache.fetching import fetch_shards, local_shard
from stop_core.cache.hashed import HashedFiles, stamp
from stop_core.cache.layout import CONFIG_KEY, SHARD
from stop_core.cache.manifest import Manifest, ShardEntry
from stop_core.cache.mapping import read_footer, remedy
from stop_core.storage.atomic import hash_json
from stop_core.storage.paths import StoragePath

_THREADS = 8
_NICENESS = 10


class ChangedDataError(ValueError):
    """A shard is not the one that the manifest lists."""


def local_shards(cache: StoragePath, manifest: Manifest, entries: Sequence[ShardEntry]) -> Path:
    """Returns a local folder that holds these shards, after a look at their sizes and footers.

    Raises:
        OSError: if they cannot be fetched.
        ValueError: if one is gone, damaged, or of another cache, split or place.
    """
    folder = fetch_shards(cache, manifest, entries)
    check_footers(folder, manifest.config, entries)
    return folder


def check_footers(folder: Path, config: CacheConfig, entries: Sequence[ShardEntry]) -> None:
    """Compares size and footer of shards with the manifest; reads nothing else of them.

    Raises:
        ValueError: if one is gone, damaged, or of another cache, split or place.
    """
    expected = json.dumps(config.to_dict(), sort_keys=True)
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(lambda entry: _check_footer(folder, expected, entry), entries):
            pass


def _check_footer(folder: Path, config: str, entry: ShardEntry) -> None:
    path = local_shard(folder, entry)
    footer = read_footer(path)
    metadata = footer.metadata or {}
    # Early shards of the format's version 2 do not name themselves; their hashes tell.
    name = metadata.get(SHARD.encode(), entry.name.encode()).decode(errors="replace")
    options = metadata.get(CONFIG_KEY.encode(), b"").decode(errors="replace")
    for what, found, wanted in (
        ("size", path.stat().st_size, entry.file_bytes),
        ("number of rows", footer.num_rows, entry.rows),
        ("name", name, entry.name),
        ("options", options, config),
    ):
        if found != wanted:
            numbers = "" if what == "options" else f", {wanted!r}, but {found!r}"
            raise ChangedDataError(
                f"the shard {path} is not the one of this cache: its {what} is not the "
                f"manifest's{numbers}; delete it, then {remedy(path)}"
            )


def check_contents(folder: Path, entries: Sequence[ShardEntry]) -> None:
    """Compares every byte of shards with the manifest; what this machine has read it knows.

    Raises:
        ValueError: if one is gone or differs.
    """
    files = HashedFiles(folder)
    for entry in entries:
        _check_content(folder, entry, files)


def _check_content(folder: Path, entry: ShardEntry, files: HashedFiles) -> None:
    path = local_shard(folder, entry)
    found = "its SHA-256 is not the one in the manifest"
    try:
        if files.has(path, entry.sha256):
            return
    except OSError as problem:
        found = f"it cannot be read ({problem.strerror or problem})"
    raise ChangedDataError(
        f"the shard {path} is not as it was made: {found}; delete it, then {remedy(path)}"
    )


class BackgroundCheck:
    """Hashes the shards that a training reads while it trains.

        RUNNING --all hashes fit--> VERIFIED --a file changes--> hashed again
           \\--one differs--> every look raises

    Start it before the first read: a shard that changes before it was hashed may have been read
    in another state, so it is refused whatever it is by then.
    """

    def __init__(self, folder: Path, entries: Sequence[ShardEntry]) -> None:
        self._folder = folder
        self._files = HashedFiles(folder)
        self._begun = {entry: stamp(local_shard(folder, entry)) for entry in entries}
        self._verified: set[ShardEntry] = set()
        self._problem: Exception | None = None
        self.state = hash_json(list(self._begun.values()))
        """Tells the files of this session from changed ones."""
        self._thread = threading.Thread(target=self._work, daemon=True, name="hashing")
        self._thread.start()

    def is_verified(self) -> bool:
        """Whether all contents have been compared by now; does not wait.

        Raises:
            ChangedDataError: if a shard differs.
        """
        if self._thread.is_alive():
            return False
        self.wait()
        return True

    def wait(self) -> None:
        """Waits until all contents have been compared, and looks for changes since.

        Raises:
            ChangedDataError: if a shard differs, or was changed before it was compared.
        """
        self._thread.join()
        if self._problem is not None:
            raise self._problem
        self._compare()

    def _work(self) -> None:
        # Of this thread only. The training has the processors first; what is left of the hashing
        # at its end then has them for itself.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        try:
            self._compare()
        except (OSError, ValueError) as problem:
            self._problem = problem

    def _compare(self) -> None:
        for entry, begun in self._begun.items():
            _check_content(self._folder, entry, self._files)
            path = local_shard(self._folder, entry)
            if entry not in self._verified and stamp(path) != begun:
                raise ChangedDataError(
                    f"the shard {path} was changed while it was being trained on, before it was "
                    "compared with the manifest: give the same command again"
                )
            self._verified.add(entry)
