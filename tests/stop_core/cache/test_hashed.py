"""A machine hashes a file once, and again after any sign of a change."""

import fcntl
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from stop_core.cache import hashed
from stop_core.cache.hashed import FOLDER_VARIABLE, HashedFiles, local_folder, stamp
from stop_core.storage.atomic import hash_file


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this machine keeps its lists."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "machine"))
    return tmp_path / "machine" / "hashed"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read."""
    names: list[str] = []

    def read(path: Path) -> str:
        names.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(hashed, "hash_file", read)
    return names


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "shard").write_text("frames")
    return tmp_path / "cache" / "shard"


@pytest.mark.usefixtures("memory")
def test_a_file_is_read_once_by_all_sessions(shard: Path, reads: list[str]) -> None:
    sha256 = hash_file(shard)
    for _ in range(2):
        session = HashedFiles(shard.parent)
        assert session.has(shard, sha256)
        assert session.has(shard, sha256)
    assert reads == ["shard"]
    # Two sessions at a time know of each other's files.
    first, second = HashedFiles(shard.parent), HashedFiles(shard.parent)
    for name in ("one", "two"):
        (shard.parent / name).write_text(name)
        assert first.has(shard.parent / name, hash_file(shard.parent / name))
        assert second.has(shard.parent / name, hash_file(shard.parent / name))
    assert reads == ["shard", "one", "two"]


def _touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def _replace(path: Path) -> None:
    shutil.copy2(path, path.with_name("copy"))
    os.replace(path.with_name("copy"), path)


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("change", [_touch, _replace, lambda path: path.write_text("frameS")])
def test_a_file_that_may_be_another_is_read_again(
    change: Callable[[Path], object], shard: Path, reads: list[str]
) -> None:
    session, sha256 = HashedFiles(shard.parent), hash_file(shard)
    assert session.has(shard, sha256)
    change(shard)
    assert session.has(shard, sha256) == (shard.read_text() == "frames")
    assert reads == ["shard", "shard"]


@pytest.mark.usefixtures("memory")
def test_a_file_of_another_sum_is_not_remembered(shard: Path, reads: list[str]) -> None:
    session = HashedFiles(shard.parent)
    for _ in range(2):
        assert not session.has(shard, "0" * 64)
    assert reads == ["shard", "shard"]
    with pytest.raises(FileNotFoundError):
        session.has(shard.with_name("absent"), "0" * 64)


@pytest.mark.usefixtures("memory")
def test_a_file_that_changes_while_it_is_read_is_read_again(
    shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums, sha256 = [], hash_file(shard)

    def read(path: Path) -> str:
        if not sums:
            _touch(path)
        sums.append(hash_file(path))
        return sums[-1]

    monkeypatch.setattr(hashed, "hash_file", read)
    assert HashedFiles(shard.parent).has(shard, sha256)
    assert len(sums) == 2


def test_what_was_hashed_while_it_was_written_is_not_read(
    shard: Path, reads: list[str], memory: Path
) -> None:
    session = HashedFiles(shard.parent)
    session.add(shard, "f" * 64)
    assert session.has(shard, "f" * 64)
    assert HashedFiles(shard.parent).has(shard, "f" * 64)
    assert reads == []
    (file,) = memory.iterdir()
    assert json.loads(file.read_text()) == [str(shard), "f" * 64, *stamp(shard)]
    assert file.stat().st_mode & 0o777 == 0o600
    assert memory.stat().st_mode & 0o777 == 0o700


def test_each_folder_of_each_machine_has_its_own_list(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for host in ("one", "two"):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / "file").touch()
            HashedFiles(tmp_path / folder).add(tmp_path / folder / "file", "f" * 64)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    HashedFiles(tmp_path / "link").add(tmp_path / "link" / "file", "f" * 64)
    assert len(list(memory.iterdir())) == 4


def test_one_process_of_a_machine_reads_and_the_others_wait(
    shard: Path, reads: list[str], memory: Path
) -> None:
    sha256 = hash_file(shard)
    HashedFiles(shard.parent).add(shard.parent, sha256)
    (file,) = memory.iterdir()
    waiting = threading.Thread(target=lambda: HashedFiles(shard.parent).has(shard, sha256))
    with file.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        assert reads == []
    waiting.join()
    assert reads == ["shard"]


@pytest.mark.parametrize("hindrance", ["a file", "a link", "another user"])
def test_without_a_list_every_session_reads_and_finds_the_same(
    hindrance: str,
    shard: Path,
    memory: Path,
    reads: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sha256 = hash_file(shard)
    if hindrance == "a file":
        memory.parent.mkdir(parents=True)
        memory.write_text("")
    elif hindrance == "a link":
        HashedFiles(shard.parent).add(shard, "f" * 64)
        (file,) = memory.iterdir()
        file.rename(tmp_path / "precious")
        file.symlink_to(tmp_path / "precious")
    else:
        uid = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    for _ in range(2):
        session = HashedFiles(shard.parent)
        assert session.has(shard, sha256)
        assert session.has(shard, sha256)
        assert not session.has(shard, "e" * 64)
    assert reads == ["shard"] * 4


def test_the_folder_of_a_machine_is_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "own"))
    assert local_folder() == tmp_path / "own"
    monkeypatch.delenv(FOLDER_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert local_folder() == tmp_path / "xdg" / "stop-video"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_folder() == tmp_path / ".cache" / "stop-video"


def test_a_file_that_changes_during_hashing_is_hashed_again(
    memory: Path, shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256, reads = hash_file(shard), []

    def change_once(path: Path) -> str:
        reads.append(path)
        if len(reads) == 1:
            os.utime(path, ns=(1, 1))  # another writer, with the same content
        return hash_file(path)

    monkeypatch.setattr(hashed, "hash_file", change_once)
    files = HashedFiles(shard.parent)
    assert files.has(shard, sha256)
    assert len(reads) == 2
    assert files.has(shard, sha256)
    assert len(reads) == 2
