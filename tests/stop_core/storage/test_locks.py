"""One process at a time holds a lock, on a disk and on an object store."""

import threading
import time
from pathlib import Path

import pytest

from stop_core.storage import locks
from stop_core.storage.locks import locked
from stop_core.storage.paths import FENCED, RemotePath, StoragePath


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> StoragePath:
    if request.param == "disk":
        return tmp_path
    store: RemotePath = request.getfixturevalue("bucket")
    return store


def _claim(bucket: RemotePath, tmp_path: Path, name: str = "other") -> RemotePath:
    """Writes the claim of another process."""
    (tmp_path / "claim").write_text("host 1")
    (bucket / ".lock" / name).upload(tmp_path / "claim")
    return bucket / ".lock" / name


def test_a_lock_is_held_by_one_and_is_free_afterwards(folder: StoragePath) -> None:
    with locked(folder / ".lock") as first, locked(folder / ".lock") as second:
        assert (first, second) == (True, False)
    with locked(folder / ".lock") as again:
        assert again


def test_no_two_threads_are_ever_in_a_lock_together(
    folder: StoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_PAUSE", 1.0)
    monkeypatch.setattr(locks.random, "uniform", lambda low, high: threading.get_ident() % 7 / 50)
    inside, most, waited = [0], [0], []

    def work() -> None:
        with locked(folder / ".lock", lambda: waited.append(1)):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.05)
            inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert waited


def test_the_claim_of_a_killed_process_holds_until_it_expires(
    bucket: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = _claim(bucket, tmp_path)
    with locked(bucket / ".lock") as mine:
        assert not mine
    monkeypatch.setattr(locks, "EXPIRED", 0.0)
    with locked(bucket / ".lock") as mine:
        assert mine
        assert not other.exists()


def test_a_claim_is_renewed_while_it_is_held(
    bucket: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "RENEWED", 0.05)
    with locked(bucket / ".lock"):
        (claim,) = (bucket / ".lock").iterdir()
        first = claim.stat().st_mtime_ns
        for _ in range(200):
            if claim.stat().st_mtime_ns > first:
                return
            time.sleep(0.05)
    pytest.fail("the claim was not renewed")


@pytest.mark.parametrize("is_removed", [True, False])
def test_a_process_whose_claim_has_expired_writes_nothing_after_another_took_over(
    bucket: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_removed: bool
) -> None:
    file = tmp_path / "result"
    file.write_text("late")
    monkeypatch.setattr(locks, "RENEWED", 0.2)
    with locked(bucket / ".lock"):
        (claim,) = (bucket / ".lock").iterdir()
        (bucket / "before").upload(file)
        _claim(bucket, tmp_path)
        if is_removed:
            claim.unlink()
        monkeypatch.setattr(locks, "_OWN_EXPIRED", -1.0)
        for _ in range(100):
            if bucket in FENCED:
                break
            time.sleep(0.05)
        with pytest.raises(OSError, match=r"another process works in .* now"):
            (bucket / "after").upload(file)
    assert (bucket / "before").exists()
    assert not (bucket / "after").exists()
    (bucket / ".lock" / "other").unlink()
    with locked(bucket / ".lock"):  # as a command that is started again would
        (bucket / "after").upload(file)


def test_a_late_claim_that_no_one_took_over_is_kept(
    bucket: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "RENEWED", 0.05)
    monkeypatch.setattr(locks, "_OWN_EXPIRED", -1.0)
    with locked(bucket / ".lock"):
        time.sleep(0.3)
        assert bucket not in FENCED
        assert len(list((bucket / ".lock").iterdir())) == 1
