"""Checkpoints, records and folders survive an interruption of the process that writes them."""

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.cli.folders import alone_in
from pipelines.tracking.outbox import Courier, Outbox, Record, RefusedError
from pipelines.training.checkpoints import list_checkpoints, write_checkpoint
from stop_core.cache.files import LOCK
from stop_core.storage.names import open_lock

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Records the names of the files that are flushed and renamed, in order."""
    made: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        fsync(descriptor)
        made.append(("sync", Path(f"/proc/self/fd/{descriptor}").resolve().name))

    def note_replace(source: Path, target: Path) -> None:
        replace(source, target)
        made.append(("replace", Path(target).name))

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    return made


def _write(folder: Path) -> None:
    (folder / "weights").write_text("weights")
    (folder / "progress").write_text("progress")


def test_a_checkpoint_is_on_the_disk_with_all_its_files_before_it_has_its_name(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    run = tmp_path / "run"
    for number in range(2):
        calls.clear()
        made = write_checkpoint(run, _write)
        assert made == run / f"checkpoint_{number:06d}"
        files, staging = calls[:2], calls[2]
        assert sorted(files) == [("sync", "progress"), ("sync", "weights")]
        assert staging[0] == "sync"
        assert staging[1].startswith(".checkpoint_")
        assert calls[3:] == [("replace", made.name), ("sync", "run")]
    assert [path.name for path in list_checkpoints(run)] == [
        "checkpoint_000000",
        "checkpoint_000001",
    ]
    assert sorted(run.iterdir()) == list_checkpoints(run)
    # Numbers only grow: what was removed does not come back under its name.
    for file in (run / "checkpoint_000000").iterdir():
        file.unlink()
    (run / "checkpoint_000000").rmdir()
    assert write_checkpoint(run, _write).name == "checkpoint_000002"


@pytest.mark.parametrize("at", ["write", "fsync", "replace"])
@pytest.mark.parametrize("problem", [FULL, KeyboardInterrupt()], ids=repr)
def test_a_checkpoint_that_fails_leaves_the_one_before_and_no_half_of_its_own(
    problem: BaseException, at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write_checkpoint(tmp_path, _write)

    def fail(*arguments: object) -> None:
        raise problem

    def write(folder: Path) -> None:
        _write(folder)
        if at == "write":
            raise problem

    if at != "write":
        monkeypatch.setattr(os, at, fail)
    with pytest.raises(type(problem)) as failed:
        write_checkpoint(tmp_path, write)
    if problem is FULL:
        assert str(tmp_path) in str(failed.value)
        assert "the disk is full" in str(failed.value)
    assert list(tmp_path.iterdir()) == [before]
    assert (before / "weights").read_text() == "weights"


def test_a_record_is_on_the_disk_when_put_returns(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    outbox = Outbox(tmp_path / "outbox")
    outbox.put({"kind": "metrics", "value": 1})
    (path,) = outbox.waiting()
    assert path.name.endswith("-metrics.json")
    assert [kind for kind, _ in calls] == ["sync", "replace", "sync"]
    assert calls[1:] == [("replace", path.name), ("sync", "outbox")]


def test_records_keep_their_order_however_fast_they_are_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000_000_000)
    outbox = Outbox(tmp_path)
    for number in range(12):
        outbox.put({"kind": "zyx"[number % 3], "number": number})
    taken: list[int] = []
    assert outbox.deliver(lambda record: taken.append(record["number"])) is None
    assert taken == list(range(12))


def test_a_record_leaves_the_disk_when_the_store_has_it_and_not_before(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    for number in range(3):
        outbox.put({"kind": "k", "number": number})

    def send(record: Record) -> None:
        assert len(outbox.waiting()) == 3 - record["number"]
        if record["number"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outbox.deliver(send)
    assert len(outbox.waiting()) == 2


def test_records_that_another_process_delivers_are_left_to_it(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.put({"kind": "k"})
    sent: list[Record] = []
    with open_lock(tmp_path / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert outbox.deliver(sent.append) is None
        assert not sent
        assert len(outbox.waiting()) == 1
    outbox.deliver(sent.append)
    assert sent == [{"kind": "k"}]

    def nested(record: Record) -> None:
        assert Outbox(tmp_path).deliver(sent.append) is None

    outbox.put({"kind": "other"})
    outbox.deliver(nested)
    assert sent == [{"kind": "k"}]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"kind": 1}', "{", '"text"'])
def test_a_file_that_is_no_record_is_refused_and_the_next_one_sent(
    content: str, tmp_path: Path
) -> None:
    outbox = Outbox(tmp_path)
    (tmp_path / "00000000000000000000-000000-1-k.json").write_text(content)
    outbox.put({"kind": "k", "number": 7})
    sent: list[Record] = []
    assert outbox.deliver(sent.append) is None
    assert sent == [{"kind": "k", "number": 7}]
    assert not outbox.waiting()
    (refused,) = outbox.refused()
    assert "00000000000000000000-000000-1-k.json" in refused.read_text()


def test_a_refused_record_is_stored_whole_with_its_reason(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.put({"kind": "k", "number": 7})

    def refuse(record: Record) -> None:
        raise RefusedError("too long")

    assert outbox.deliver(refuse) is None
    (refused,) = outbox.refused()
    assert refused.read_text() == '{"kind": "k", "number": 7, "refused": "too long"}'


def test_the_courier_backs_off_after_failures_and_resets_after_a_success(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float | None] = []
    done = threading.Event()
    results: list[Exception | None] = [OSError()] * 7 + [None] + [OSError()] * 2
    plain = threading.Event.wait

    def wait(event: threading.Event, timeout: float | None = None) -> bool:
        if threading.current_thread().name != "courier":
            return plain(event, timeout)
        waits.append(timeout)
        if not results:
            done.set()
            return plain(event)
        return True

    def deliver() -> Exception | None:
        if not results:
            return None
        problem = results.pop(0)
        if problem is not None and len(results) % 2:
            raise problem  # raised by a full disk
        return problem

    monkeypatch.setattr(threading.Event, "wait", wait)
    courier = Courier(deliver)
    assert done.wait(10)
    courier.close()
    assert waits == [None, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, None, 2.0, 4.0]


def test_closing_the_courier_delivers_once_more_and_does_not_wait_for_ever() -> None:
    calls: list[int] = []
    courier = Courier(lambda: calls.append(1))  # type: ignore[func-returns-value,arg-type,return-value]
    courier.close()
    assert calls == [1]
    assert not courier._thread.is_alive()
    assert courier._thread.daemon
    stuck = Courier(lambda: time.sleep(5))  # type: ignore[func-returns-value,arg-type,return-value]
    stuck.close(0.05)
    assert stuck._thread.is_alive()


def _second_in(folder: Path, note: Callable[[str], None]) -> threading.Thread:
    def work() -> None:
        with alone_in(folder), open_lock(folder / LOCK) as lock:
            with pytest.raises(BlockingIOError):  # it may not be shared either
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            note("second")

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_second_process_waits_for_the_folder_and_reports_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order: list[str] = []
    with alone_in(tmp_path):
        assert capsys.readouterr() == ("", "")
        thread = _second_in(tmp_path, order.append)
        while not (said := "".join(capsys.readouterr())):
            time.sleep(0.005)
        time.sleep(0.05)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert said == f"another process works in {tmp_path}; waiting until it ends\n"
    assert (tmp_path / LOCK).exists()


def test_a_failure_releases_the_folder(
    tmp_path: Path,
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()

    def interrupted() -> None:
        with alone_in(tmp_path / "one"), alone_in(tmp_path / "two"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with open_lock(tmp_path / "one" / LOCK) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
