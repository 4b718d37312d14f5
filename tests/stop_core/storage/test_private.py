"""No other user can enter our folders, and no text shows a password."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stop_core.storage.paths import scratch_file
from stop_core.storage.private import private_folder, without_password


def _is_closed(folder: Path) -> bool:
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o700


def test_private_folder_is_the_same_each_time(tmp_path: Path) -> None:
    folder = private_folder(str(tmp_path))
    assert folder == private_folder(str(tmp_path)) == tmp_path / f"stop-{os.getuid()}"
    assert _is_closed(folder)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_umask_does_not_open_the_private_folder(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        assert _is_closed(private_folder(str(tmp_path)))
    finally:
        os.umask(before)


@pytest.mark.parametrize("planted", ["open", "group", "link", "dangling", "file", "another's"])
def test_planted_folder_is_not_used(planted: str, tmp_path: Path) -> None:
    usual, elsewhere = tmp_path / f"stop-{os.getuid()}", tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    match planted:
        case "open" | "group":
            usual.mkdir()
            usual.chmod(0o777 if planted == "open" else 0o710)
        case "link" | "dangling":
            usual.symlink_to(elsewhere if planted == "link" else tmp_path / "nowhere")
        case "file":
            usual.touch(mode=0o644)
        case "another's":
            usual.mkdir(mode=0o700)
            if os.getuid() != 0:
                pytest.skip("only root can give a folder away")
            os.chown(usual, 65534, 65534)
    folder = private_folder(str(tmp_path))
    assert folder != usual
    assert folder.parent == tmp_path
    assert _is_closed(folder)
    assert folder == private_folder(str(tmp_path)), "a process has one folder"
    assert list(elsewhere.iterdir()) == []
    assert not (tmp_path / "nowhere").exists()


def test_scratch_files_are_in_the_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"stop-{os.getuid()}").symlink_to("/dev")
    with scratch_file() as path:
        assert tmp_path in path.parents
        assert all(_is_closed(folder) for folder in path.parents if tmp_path in folder.parents)


_SECRETS = st.text(st.characters(exclude_categories=("Z", "C")), min_size=1).map(
    lambda text: f"CANARY{text}CANARY"
)


@given(
    secret=_SECRETS,
    form=st.sampled_from(
        [
            "{scheme}://me:{}@host:5000/path",
            "{scheme}://:{}@host",
            "{scheme}://me@corp:{}@host/db",
            "{scheme}://host/db?user=me&password={}",
            "{scheme}://host/db?sslPassword={}#x",
            "{scheme}://bucket/a?endpoint_override=http://me:{}@host",
            "API request to {scheme}://me:{}@host/api failed with: no answer",
        ]
    ),
    scheme=st.sampled_from(["http", "https", "postgresql+psycopg2", "mysql", "s3", "redis"]),
)
def test_no_password_is_shown(secret: str, form: str, scheme: str) -> None:
    if "?" in form:
        secret = secret.replace("&", "").replace("#", "")
    shown = without_password(form.format(secret, scheme=scheme))
    assert "CANARY" not in shown
    assert "***" in shown
    assert "host" in shown, "the message is still useful"
    assert without_password(shown) == shown


@pytest.mark.parametrize("uri", ["http://TOKEN@host/x", "https://TOKEN@host"])
def test_token_instead_of_a_user_is_not_shown(uri: str) -> None:
    assert "TOKEN" not in without_password(uri)


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/a",
        "sqlite:////a:b@c/d.db",
        "postgresql://me@host:5432/db",
        "gs://anonymous@bucket/a@b",
        "s3://bucket/a:b@c?region=x&endpoint_override=host:9000",
        "see ~/.mlflow/credentials: me@host",
    ],
)
def test_text_without_a_password_is_unchanged(text: str) -> None:
    assert without_password(text) == text
