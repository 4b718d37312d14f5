"""Copies of shards: fetched once, verified, within the bound, and never evicted while read."""

import fcntl
import hashlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest

from stop_core.cache import fetching
from stop_core.cache.fetching import LocalShards
from stop_core.cache.integrity import ChangedDataError
from stop_core.cache.manifest import ShardEntry

SIZE = 1000
NAMES = [f"train-{number:05d}" for number in range(6)]


class Store:
    """A store that logs the name of every object that is opened, across processes."""

    def __init__(self, root: Path, key: str = "") -> None:
        self.root, self.key = root, key

    def __truediv__(self, part: str) -> "Store":
        return Store(self.root, f"{self.key}/{part}".lstrip("/"))

    def __str__(self) -> str:
        return f"s3://bucket/{self.key}"

    def open(self, mode: str) -> IO[bytes]:
        with (self.root / "log").open("a") as log:
            log.write(f"{Path(self.key).stem}\n")
        return (self.root / self.key).open(mode)

    @property
    def opened(self) -> Counter[str]:
        return Counter((self.root / "log").read_text().split())


def _content(name: str) -> bytes:
    return hashlib.shake_256(name.encode()).digest(SIZE)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("STOP_CACHE_FOLDER", str(tmp_path / "local"))
    (tmp_path / "store/data").mkdir(parents=True)
    (tmp_path / "store/log").touch()
    for name in NAMES:
        (tmp_path / f"store/data/{name}.parquet").write_bytes(_content(name))
    return Store(tmp_path / "store")


def _shards(store: Store, copies: float = 100) -> LocalShards:
    entries = tuple(
        ShardEntry(name, "train", 1, SIZE, hashlib.sha256(_content(name)).hexdigest())
        for name in NAMES
    )
    manifest: Any = SimpleNamespace(data_hash="d" * 64, shards=entries)
    return LocalShards(store, manifest, int(copies * SIZE))  # type: ignore[arg-type]


def _here() -> list[str]:
    """The files of the local folder: copies, and downloads."""
    folder = fetching.local_folder()
    return sorted(path.name for path in folder.glob("*/data/*"))


def _read(shards: LocalShards, name: str) -> None:
    with shards.opened(name) as path:
        assert path.read_bytes() == _content(name)


def _read_in_turn(shards: LocalShards, numbers: range) -> None:
    for number in numbers:
        _read(shards, NAMES[number % len(NAMES)])


def test_each_shard_is_fetched_once_by_two_processes(store: Store) -> None:
    shards, context = _shards(store), multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_read_in_turn, args=(pickle.loads(pickle.dumps(shards)), order))
        for order in (range(12), range(12, 0, -1))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert store.opened == Counter(NAMES)
    assert _here() == [f"{name}.parquet" for name in NAMES]


def test_the_files_never_exceed_the_bound(store: Store) -> None:
    """Threads and processes read all shards, with room for two of them."""
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=_read_in_turn, args=(_shards(store, 2.5), range(60)))
    worker.start()
    readers = [
        threading.Thread(target=_read_in_turn, args=(_shards(store, 2.5), range(n, n + 60)))
        for n in (1, 3)
    ]
    for reader in readers:
        reader.start()
    most = 0
    while worker.is_alive() or any(reader.is_alive() for reader in readers):
        with fetching._room():
            most = max(most, sum(status.st_size for _, status in fetching._copies()))
        time.sleep(0.001)
    assert worker.exitcode == 0
    assert 0 < most <= 2.5 * SIZE
    assert store.opened.total() > len(NAMES), "some were evicted"


def test_a_shard_that_is_read_is_not_evicted(store: Store) -> None:
    shards = _shards(store, 2)
    with shards.opened(NAMES[0]) as first:
        for name in NAMES[1:]:
            _read(shards, name)
            assert first.read_bytes() == _content(NAMES[0])
    _read(shards, NAMES[0])
    assert store.opened[NAMES[0]] == 1
    with ExitStack() as opened:
        for name in NAMES[:2]:
            opened.enter_context(shards.opened(name))
        waiting = threading.Thread(target=_read, args=(shards, NAMES[2]))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive(), "it waits for room"
    waiting.join(30)
    assert not waiting.is_alive()


def _wait_for(*names: str) -> None:
    deadline = time.monotonic() + 30
    while _here() != [f"{name}.parquet" for name in names]:
        assert time.monotonic() < deadline, _here()
        time.sleep(0.005)


def test_shards_are_fetched_in_the_order_of_need_and_those_needed_latest_make_room(
    store: Store,
) -> None:
    shards, (a, b, c, d, e, _) = _shards(store, 3), NAMES
    for name in (e, d):
        _read(shards, name)
    # d is needed last: it makes room for b, which is needed sooner.
    with shards.expect([[a], [e], [b], [c], [d]]) as reached:
        _wait_for(a, b, e)
        time.sleep(0.05)
        assert _here() == [f"{name}.parquet" for name in (a, b, e)]
        reached(1)
        _wait_for(b, c, e)
        reached(2)
        _wait_for(b, c, d)
    assert store.opened == Counter([a, b, c, d, d, e])


def test_a_read_that_was_not_expected_evicts_what_is_needed_latest(store: Store) -> None:
    shards, (a, b, c, *_) = _shards(store, 2), NAMES
    with shards.expect([[a], [b]]):
        _wait_for(a, b)
        _read(shards, c)
        assert f"{a}.parquet" in _here()


def test_batches_of_more_shards_than_the_bound_are_read_all_the_same(store: Store) -> None:
    shards = _shards(store, 1)
    with shards.expect([NAMES, NAMES]) as reached:
        for number in range(2):
            reached(number)
            readers = [threading.Thread(target=_read, args=(shards, name)) for name in NAMES]
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join(60)
                assert not reader.is_alive()


@pytest.mark.parametrize("change", [b"x" + _content(NAMES[0])[1:], _content(NAMES[0]) + b"x", b""])
def test_an_object_with_another_hash_is_refused(store: Store, change: bytes) -> None:
    (store.root / f"data/{NAMES[0]}.parquet").write_bytes(change)
    shards = _shards(store)
    with shards.expect([[NAMES[0]], [NAMES[1]]]):
        _wait_for(NAMES[1])  # the others are fetched
        for _ in range(2):
            with pytest.raises(ChangedDataError, match=rf"{NAMES[0]}.parquet is damaged: its hash"):
                _read(shards, NAMES[0])
    assert _here() == [f"{NAMES[1]}.parquet"]
    (store.root / f"data/{NAMES[0]}.parquet").unlink()
    with pytest.raises(ChangedDataError, match=r"is gone: run the same preprocess command again"):
        _read(shards, NAMES[0])


def test_a_copy_that_is_changed_is_refused(store: Store) -> None:
    shards = _shards(store)
    with shards.opened(NAMES[0]) as path:
        pass
    path.write_bytes(path.read_bytes()[::-1])
    for reader in (shards, _shards(store)):
        with pytest.raises(ChangedDataError, match=r"delete it, then run .* downloads it again"):
            _read(reader, NAMES[0])
    path.unlink()
    _read(shards, NAMES[0])


def test_a_shard_larger_than_the_bound_is_refused_with_a_remedy(store: Store) -> None:
    with pytest.raises(OSError, match=r"copies .* can have .*: give a larger --local-cache-gb, or"):
        _read(_shards(store, 0.9), NAMES[0])
    assert not _here()


class _Stalled(Store):
    """A store that sends half of an object, and nothing more."""

    def __truediv__(self, part: str) -> "_Stalled":
        return _Stalled(self.root, f"{self.key}/{part}".lstrip("/"))

    def open(self, mode: str) -> Any:
        blocks = iter([_content(Path(self.key).stem)[: SIZE // 2]])

        class Half:
            __enter__ = lambda self: self  # noqa: E731
            __exit__ = lambda self, *problem: None  # noqa: E731

            def read(self, size: int) -> bytes:
                for block in blocks:
                    return block
                time.sleep(60)
                return b""

        return Half()


@pytest.fixture
def killed(store: Store) -> None:
    """The files that a process leaves that is killed in the middle of a download."""
    context = multiprocessing.get_context("fork")
    stalled = _shards(_Stalled(store.root))
    worker = context.Process(target=_read, args=(stalled, NAMES[0]))
    worker.start()
    part = f".{NAMES[0]}.parquet.part"
    while _here() != [part] or not next(iter(fetching._copies()))[1].st_size:
        time.sleep(0.005)
    with (next(iter(fetching._copies()))[0]).open("rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert _here() == [part], "nothing that reads as a whole shard"


@pytest.mark.usefixtures("killed")
def test_the_download_of_a_killed_process_is_taken_over(store: Store) -> None:
    _read(_shards(store), NAMES[0])
    assert _here() == [f"{NAMES[0]}.parquet"]


@pytest.mark.usefixtures("killed")
def test_the_download_of_a_killed_process_makes_room(store: Store) -> None:
    _read(_shards(store, 1), NAMES[1])
    assert _here() == [f"{NAMES[1]}.parquet"]
