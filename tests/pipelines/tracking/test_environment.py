"""Results record the commit or version, and the packages, that they were computed with."""

import importlib.metadata
import subprocess
from pathlib import Path

import pytest

from pipelines.tracking import environment
from pipelines.tracking.environment import git_commit


def test_package_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.metadata.version

    def version(name: str) -> str:
        if name == "decord":
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    packages = environment.environment()["packages"]
    assert "decord" not in packages
    assert packages["torch"] == installed("torch")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that has our packages: a subfolder of another project's repository."""
    monkeypatch.delenv("STOP_GIT_COMMIT", raising=False)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "a-project"\n')
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", "pyproject.toml")
    _git(tmp_path, "commit", "-qm", "a commit of another project")
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.setattr(environment, "ROOT", folder)
    return folder


def _git(folder: Path, *arguments: str) -> str:
    user = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(
        ["git", *user, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def _installed() -> str:
    return f"stop-video {importlib.metadata.version('stop-video')}"


def test_commit_of_another_repository_is_never_recorded(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert git_commit() == _installed()  # a wheel
    ours = '[project]\nname = "stop-video"\n'
    (root / "pyproject.toml").write_text(ours)
    assert git_commit() == _installed()  # an sdist that was unpacked there
    monkeypatch.setenv("STOP_GIT_COMMIT", "0123abc")
    assert git_commit() == "0123abc"
    monkeypatch.setattr(environment, "ROOT", root.parent)
    assert git_commit() == "0123abc"  # `pip install --target` next to another pyproject.toml


def test_commit_of_a_checkout_is_recorded_with_its_changes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOP_GIT_COMMIT", "0123abc")
    (root / "pyproject.toml").write_text('[project]\nname = "stop-video"\n')
    _git(root, "init", "-q")
    _git(root, "add", ".")
    _git(root, "commit", "-qm", "ours")
    commit = _git(root, "rev-parse", "HEAD")
    assert git_commit() == commit
    (root / "pyproject.toml").write_text('[project]\nname = "stop-video"\n# edited\n')
    assert git_commit() == f"{commit}+changes"


def test_nothing_known_is_unknown(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert git_commit() == "unknown"
