"""Paths and URIs are parsed alike, and scratch files are removed after their use."""

import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from stop_core.storage import paths
from stop_core.storage.paths import RemotePath, scratch_file, storage_path


def test_paths_and_uris_are_distinguished() -> None:
    assert storage_path("a/b") == Path("a/b")
    assert storage_path("file:///a%20b/c") == Path("/a b/c")
    remote = storage_path("s3://bucket/a b//c/?region=x")
    assert remote == RemotePath("s3", "bucket/a b/c", "region=x")
    assert str(remote / "d#e") == "s3://bucket/a b/c/d#e?region=x"
    assert storage_path(str(remote)) == pickle.loads(pickle.dumps(remote)) == remote
    assert ((remote / "d").name, (remote / "d").parent) == ("d", remote)
    public = storage_path("gs://anonymous@bucket/a")
    assert isinstance(public, RemotePath)
    assert (public.key, str(public / "b")) == ("bucket/a", "gs://anonymous@bucket/a/b")
    with pytest.raises(TypeError):
        os.fspath(remote)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("ftp://host/a", "ftp://host/a is neither a path nor"),
        ("s3://", "names no bucket"),
        ("s3://key:secret@bucket/a", "use s3://bucket/a and set the environment"),
        ("s3://secret@bucket/a", "use s3://bucket/a and set the environment"),
        ("s3://bucket/a?secret_key=secret", "use s3://bucket/a and set the environment"),
        ("s3://bucket/a?endpoint_override=http://u:secret@h", "use s3://bucket/a and set"),
        ("ftp://me:secret@host/a", "ftp://me:\\*\\*\\*@host/a is neither a path nor"),
        ("s3://?token=secret", "credentials|names no bucket"),
    ],
)
def test_other_uris_are_refused_without_showing_a_password(uri: str, found: str) -> None:
    with pytest.raises(ValueError, match=found) as caught:
        storage_path(uri)
    assert "secret" not in str(caught.value)


def test_scratch_files_are_removed_even_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    child = os.fork()
    if child == 0:
        with scratch_file() as path:
            path.write_text("left")
            time.sleep(60)
    while not (left := [p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size]):
        time.sleep(0.01)
    with scratch_file(".avi") as mine:
        assert left[0].exists(), "a file in use was taken away"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with scratch_file():
            assert not left[0].exists()
            assert mine.exists()
        assert mine.suffix == ".avi"
    assert not mine.exists()


@pytest.mark.parametrize("earlier", [None, "old!", "older"])
def test_an_upload_that_fails_without_an_error_is_noticed(
    bucket: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: str | None
) -> None:
    """As pyarrow's `copy_files` does if the store refuses a part, or the end of an upload."""
    file = tmp_path / "file"
    if earlier is not None:
        file.write_text(earlier)
        (bucket / "x").upload(file)
    file.write_text("new!")
    copy, failed = paths._copy, []

    def fails_once(source: str, *others: Any) -> None:
        if failed:
            copy(source, *others)
        failed.append(source)

    monkeypatch.setattr(paths, "_copy", fails_once)
    monkeypatch.setattr(paths.time, "sleep", lambda seconds: None)
    with pytest.raises(OSError, match="did not arrive whole"):
        (bucket.once() / "x").upload(file)
    failed.clear()
    (bucket / "x").upload(file)
    assert (bucket / "x").read_text() == "new!"
