"""Files are whole after any interruption, and are flushed to disk before they are used."""

import errno
import fcntl
import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from stop_core.cache.files import write_checked_json
from stop_core.storage.atomic import (
    FileFollower,
    appearing,
    appearing_folder,
    is_leftover,
    sync,
    write_whole,
)
from stop_core.storage.names import create, open_lock
from stop_core.storage.paths import private_folder, scratch_file

OLD, NEW = "old " * 1000, "new " * 2000
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Records the system calls for durability in order, and the content at each fsync."""
    made: list[tuple[str, ...]] = []
    fsync, replace, link = os.fsync, os.replace, os.link

    def note_sync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        fsync(descriptor)
        content = path.read_text() if path.is_file() else "folder"
        made.append(("sync", _name(path), content))

    def note(name: str, call: Callable[..., None]) -> Callable[..., None]:
        def noted(source: Path, target: Path) -> None:
            call(source, target)
            made.append((name, _name(Path(source)), Path(target).name))

        return noted

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note("replace", replace))
    monkeypatch.setattr(os, "link", note("link", link))
    return made


def _name(path: Path) -> str:
    return "staging" if is_leftover(path) else path.name


def test_a_file_is_synced_before_it_has_its_name_and_its_folder_after(
    tmp_path: Path, calls: list[tuple[str, ...]]
) -> None:
    path = tmp_path / "file"
    in_folder = ("sync", tmp_path.name, "folder")
    for number in range(2):  # a new file, and one that takes the place of another
        calls.clear()
        write_whole(path, f"{NEW}{number}")
        whole = ("sync", "staging", f"{NEW}{number}")
        assert calls == [whole, ("replace", "staging", "file"), in_folder]
        assert path.read_text() == f"{NEW}{number}"
    calls.clear()
    write_whole(tmp_path / "other", NEW, new=True)
    assert calls == [("sync", "staging", NEW), ("link", "staging", "other"), in_folder]
    calls.clear()
    with appearing(path, lasting=False) as staging:
        staging.write_text(OLD)
    assert calls == [("replace", "staging", "file")]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "other"]


@pytest.mark.parametrize("lasting", [True, False])
def test_all_of_a_folder_is_synced_before_it_has_its_name(
    tmp_path: Path, calls: list[tuple[str, ...]], lasting: bool
) -> None:
    with appearing_folder(tmp_path / "folder", lasting=lasting) as staging:
        (staging / "part").mkdir()
        (staging / "part/file").write_text(NEW)
    moved = ("replace", "staging", "folder")
    if not lasting:
        assert calls == [moved]
        return
    before, after = calls[: calls.index(moved)], calls[calls.index(moved) + 1 :]
    inside = [("sync", "file", NEW), ("sync", "part", "folder"), ("sync", "staging", "folder")]
    assert sorted(before) == inside
    assert after == [("sync", tmp_path.name, "folder")]


def open_files() -> int:
    """Returns the number of file descriptors of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_sync_reaches_the_disk_and_closes_what_it_opened(
    tmp_path: Path, calls: list[tuple[str, ...]]
) -> None:
    (tmp_path / "file").write_text(NEW)
    before = open_files()
    sync(tmp_path / "file")
    sync(tmp_path)
    assert calls == [("sync", "file", NEW), ("sync", tmp_path.name, "folder")]
    assert open_files() == before


@pytest.mark.parametrize("leave", [True, False])
def test_the_pages_of_a_file_leave_memory_where_they_are_not_read_again(
    leave: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advice: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        os,
        "posix_fadvise",
        lambda file, *words: advice.append((Path(f"/proc/self/fd/{file}").resolve(), *words)),
    )
    path = tmp_path / "file"
    path.write_text(NEW)
    FileFollower(path, leave=leave).follow()
    assert advice == [(path, 0, 0, os.POSIX_FADV_DONTNEED)] * leave


def _raise(problem: BaseException) -> Callable[..., Any]:
    def fail(*arguments: object) -> None:
        raise problem

    return fail


@pytest.mark.parametrize("problem", [FULL, KeyboardInterrupt(), SystemExit(1)], ids=repr)
@pytest.mark.parametrize("at", ["write", "fsync", "replace"])
@pytest.mark.parametrize("there_was_one", [True, False])
def test_a_failure_leaves_the_old_file_whole_and_nothing_else(
    at: str,
    problem: BaseException,
    there_was_one: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "file"
    if there_was_one:
        path.write_text(OLD)
    if at != "write":
        monkeypatch.setattr(os, at, _raise(problem))

    def write() -> None:
        with appearing(path) as staging:
            staging.write_text(NEW[:100])
            if at == "write":
                raise problem

    with pytest.raises(type(problem)):
        write()
    assert [p.name for p in tmp_path.iterdir()] == ["file"] * there_was_one
    assert not there_was_one or path.read_text() == OLD


def test_a_disk_that_is_full_for_the_system_leaves_the_old_file_whole(tmp_path: Path) -> None:
    """A limit on the file size fails in the middle of a write, like a full disk."""
    path = tmp_path / "file"
    path.write_text(OLD)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            write_checked_json(path, {"value": NEW})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_text() == OLD
    assert list(tmp_path.iterdir()) == [path]


def test_of_two_new_files_the_first_stays_also_where_a_disk_has_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_whole(path, OLD, new=True)
    with pytest.raises(FileExistsError):
        write_whole(path, NEW, new=True)
    assert path.read_text() == OLD
    for code in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
        monkeypatch.setattr(os, "link", _raise(OSError(code, "no links here")))
        write_whole(tmp_path / str(code), NEW, new=True)
        assert (tmp_path / str(code)).read_text() == NEW
    for code in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
        monkeypatch.setattr(os, "link", _raise(OSError(code, "failed")))
        with pytest.raises(OSError, match="failed"):
            write_whole(tmp_path / str(code), NEW, new=True)
        assert not (tmp_path / str(code)).exists()
    assert not any(is_leftover(p) for p in tmp_path.iterdir())


def in_child(work: Callable[[], object]) -> int:
    """Runs `work` in a forked process and returns its id."""
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    return child


def test_a_process_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(OLD)

    def write_on() -> None:
        while True:
            for text in (NEW, OLD):
                write_whole(path, text)

    for moment in range(12):
        child = in_child(write_on)
        time.sleep(0.002 * (moment + 1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert path.read_text() in (OLD, NEW)
        # A leftover staging file can be recognized by its name.
        assert all(p == path or is_leftover(p) for p in tmp_path.iterdir())


def test_a_staging_file_is_the_users_own_and_hidden_from_readers_of_data(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        with appearing(tmp_path / "train.parquet") as staging:
            assert staging.parent == tmp_path  # on the same disk, or it could not be renamed
            assert is_leftover(staging)
            names.append(staging.name)
    assert len(set(names)) == 3
    assert not is_leftover(tmp_path / "train.parquet")
    assert not is_leftover(tmp_path / ".train.parquet")
    assert not is_leftover(tmp_path / "train.tmp")
    before = os.umask(0o027)
    try:
        create(tmp_path / "mine")
    finally:
        os.umask(before)
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o640


def test_a_lock_excludes_other_processes_and_is_released_by_sigkill(
    tmp_path: Path,
) -> None:
    path, held = tmp_path / ".lock", tmp_path / "held"

    def hold() -> None:
        with open_lock(path) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            held.touch()
            time.sleep(60)

    child = in_child(hold)
    while not held.exists():
        time.sleep(0.001)
    with open_lock(path) as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_lock_is_not_handed_to_a_program_that_is_started(tmp_path: Path) -> None:
    with open_lock(tmp_path / ".lock") as lock:
        assert fcntl.fcntl(lock, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert lock.writable()
        assert os.fstat(lock.fileno()).st_mode & 0o111 == 0


def test_opening_a_pipe_as_a_lock_neither_waits_nor_keeps_it_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    before = open_files()
    with pytest.raises(OSError, match="not a regular file"):
        open_lock(tmp_path / ".lock")
    assert open_files() == before
    with pytest.raises(FileNotFoundError):
        open_lock(tmp_path / "absent" / ".lock")


def test_scratch_files_in_use_stay_and_abandoned_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with scratch_file(".mp4") as first:
        abandoned = private_folder() / "scratch" / "abandoned"
        abandoned.touch()
        with scratch_file() as second:
            assert first.exists()
            assert first.suffix == ".mp4"
            assert first != second
            assert not abandoned.exists()
        assert not second.exists()
        assert first.exists()
    assert not first.exists()


@pytest.mark.parametrize("fails", [False, True])
def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, fails: bool) -> None:
    folder = tmp_path / "new" / "folder"
    with suppress(KeyboardInterrupt), appearing_folder(folder) as staging:
        (staging / "file").touch()
        assert not folder.exists()
        if fails:
            raise KeyboardInterrupt
    found = [path.relative_to(tmp_path) for path in sorted((tmp_path / "new").rglob("*"))]
    assert found == ([] if fails else [Path("new/folder"), Path("new/folder/file")])
    if not fails:
        with pytest.raises(OSError, match="not empty"), appearing_folder(folder):
            pass
        assert (folder / "file").exists()
