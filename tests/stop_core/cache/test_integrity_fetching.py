"""A shard is downloaded once by the processes of a machine, and only if it has room."""

import fcntl
import hashlib
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from stop_core.cache.files import shard_path
from stop_core.cache.integrity import _fetch, _require_room
from stop_core.cache.manifest import ShardEntry
from stop_core.storage.names import open_lock

NAME, FRAMES = "train-00000", b"frames" * 100
ENTRY = ShardEntry(NAME, "train", 1, len(FRAMES), hashlib.sha256(FRAMES).hexdigest())


def test_a_shard_that_another_process_downloads_is_waited_for(tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "local"
    for one in (store, folder):
        shard_path(one, NAME).parent.mkdir(parents=True)
    shard_path(store, NAME).write_bytes(FRAMES)
    target = shard_path(folder, NAME)
    thread = threading.Thread(target=_fetch, args=(store, ENTRY, folder))
    with open_lock(folder / f".{NAME}.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        assert not target.exists()
        target.write_bytes(b"theirs")
    thread.join(10)
    assert target.read_bytes() == b"theirs"
    target.unlink()
    _fetch(store, ENTRY, folder)
    assert target.read_bytes() == FRAMES
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_shards_that_do_not_fit_are_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2_000_000_000))
    _require_room(tmp_path, 2_000_000_000)
    with pytest.raises(OSError, match=r"2\.1 GB of shards .* room for 2\.0: set STOP_CACHE_FOLDER"):
        _require_room(tmp_path, 2_100_000_000)
