"""Ray's token is readable by its owner only before Ray starts, whoever created it."""

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.cli.console import RunError
from pipelines.cluster.ray_token import keep_token_private, token_file


@pytest.fixture(autouse=True)
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the path of the token in a new home folder."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".ray" / "auth_token"


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_new_token_is_private_and_long(token: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        keep_token_private(create=True)
    finally:
        os.umask(before)
    assert (_mode(token), _mode(token.parent)) == (0o600, 0o700)
    assert len(token.read_text()) == 64
    assert list(token.parent.iterdir()) == [token], "no temporary file is left"


def test_without_create_no_token_is_created(token: Path) -> None:
    keep_token_private(create=False)
    assert not token.parent.exists()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o666])
def test_open_token_is_made_private_and_reported_once(
    token: Path, mode: int, capsys: pytest.CaptureFixture[str]
) -> None:
    token.parent.mkdir()
    token.write_text("a" * 64)
    token.chmod(mode)
    token.parent.chmod(0o777)
    keep_token_private(create=False)
    assert (_mode(token), _mode(token.parent), token.read_text()) == (0o600, 0o755, "a" * 64)
    message = capsys.readouterr().err
    assert f"mode {mode:04o}" in message
    assert "a" * 8 not in message
    keep_token_private(create=True)
    assert capsys.readouterr().err == ""


def test_file_of_ray_auth_token_path_is_made_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "for all" / "given"
    given.parent.mkdir()
    given.parent.chmod(0o1777)
    given.touch(mode=0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(given))
    keep_token_private(create=True)
    assert _mode(given) == 0o600
    assert token_file() == given
    assert _mode(given.parent) == 0o1777, "it may be /tmp"


def test_link_is_refused_and_its_target_unchanged(token: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.touch(mode=0o644)
    token.parent.mkdir()
    token.symlink_to(target)
    with pytest.raises(RunError, match=f"{token}.*remove it"):
        keep_token_private(create=True)
    assert _mode(target) == 0o644


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("whose", ["file", "folder"])
def test_token_of_another_user_is_refused(token: Path, whose: str) -> None:
    token.parent.mkdir(mode=0o700)
    token.touch(mode=0o600)
    os.chown(token if whose == "file" else token.parent, 65534, 65534)
    with pytest.raises(RunError, match="belongs to another user"):
        keep_token_private(create=True)


def test_processes_that_start_together_get_one_token(token: Path) -> None:
    def read(_: int) -> str:
        keep_token_private(create=True)
        return token.read_text()

    with ThreadPoolExecutor(8) as pool:
        (one,) = set(pool.map(read, range(32)))
    assert len(one) == 64


@pytest.mark.parametrize("given", [{"RAY_AUTH_TOKEN": "x"}, {"RAY_AUTH_MODE": "disabled"}])
def test_no_file_is_created_if_ray_reads_none(
    token: Path, given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    keep_token_private(create=True)
    assert not token.exists()


def test_ray_accepts_the_token(token: Path) -> None:
    keep_token_private(create=True)
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    ray = Path(sys.executable).with_name("ray")
    shown = subprocess.run(
        [ray, "get-auth-token"], env=environment, capture_output=True, text=True, check=True
    )
    assert shown.stdout == token.read_text()
