"""The wheel and the sdist: names that are ours alone, everything that a user needs, a version."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the wheel from a copy of the tracked files, because the build leaves folders
    behind."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(lambda name: name and (ROOT / name).is_file(), tracked):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"),
            *("--quiet", "--wheel-dir", str(out), str(source)),
        ],
        check=True,
        env=os.environ | {"SETUPTOOLS_SCM_PRETEND_VERSION": "9.8.7"},
    )
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_has_two_names_that_are_ours(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        *("stop_core", "stop_pipelines", "stop_video-9.8.7.dist-info")
    }


def test_the_wheel_has_every_module_and_every_data_file(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, installed in (
        ("stop_core", "stop_core"),
        ("pipelines", "stop_pipelines"),
        ("sweeps", "stop_pipelines/sweeps"),
    ):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"{installed}/{path.relative_to(ROOT / folder)}" in names


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel as site-packages would."""
    site = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(site)
    return site


def _run(installed: Path, folder: Path, *words: str, code: int = 0) -> str:
    """Runs Python with the installed packages, and returns its output."""
    ran = subprocess.run(
        [sys.executable, "-P", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == code, ran.stderr
    return ran.stdout + ran.stderr


@pytest.mark.slow
def test_an_installed_command_finds_a_space_by_name(installed: Path, tmp_path: Path) -> None:
    # A refusal that depends on the contents of the space needs neither a cache nor Ray.
    words = ("-m", "stop_pipelines.stop", "sweep", "--space", "paper_sensitivity", "--trials", "3")
    said = _run(installed, tmp_path, *words, code=1)
    assert "trials is 3, but paper_sensitivity is searched by one-at-a-time" in said


def test_an_installed_run_records_the_version_and_no_strange_commit(
    installed: Path, tmp_path: Path
) -> None:
    """site-packages may lie inside somebody's repository."""
    subprocess.run(["git", "init", "--quiet", str(installed)], check=True)
    code = "from stop_pipelines.tracking.environment import git_commit; print(git_commit())"
    assert "9.8.7" in _run(installed, tmp_path, "-c", code)
