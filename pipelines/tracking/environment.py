"""Provenance of results: the commit, the packages and the machine."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from stop_core.storage.private import without_password

from ..cli.folders import ROOT

_DISTRIBUTION = "stop-video"
_PACKAGES = ("torch", "open_clip_torch", "ray", "mlflow", "decord", "pyarrow", "pandas", "numpy")

_LONGEST = 1000  # characters of a command; MLflow's limit is 5000


def git_commit() -> str:
    """Returns the commit of this checkout, with "+changes" if files differ from it.

    A container and the working directory of a Ray job have no history: they give the commit in
    STOP_GIT_COMMIT. Otherwise it is the installed version, or "unknown" if there is none.
    """
    if commit := _git("rev-parse", "HEAD") if _is_checkout() else None:
        return commit + ("+changes" if _git("status", "--porcelain", "-uno") else "")
    if given := os.environ.get("STOP_GIT_COMMIT"):
        return given
    version = installed_version(_DISTRIBUTION)
    return f"{_DISTRIBUTION} {version}" if version else "unknown"


def command_line() -> str:
    """Returns the command of this process, for a record: `stop train --seed 1`."""
    program, *words = sys.argv
    path = Path(program).resolve()
    shown = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    text = shlex.join([*(["python"] if path.suffix == ".py" else []), shown, *words])
    return without_password(text)[:_LONGEST]


def environment() -> dict[str, Any]:
    """Returns the versions and the machine that the numbers were computed with."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {name: found for name in _PACKAGES if (found := installed_version(name))},
    }


def _is_checkout() -> bool:
    """Returns whether git tracks this project here: site-packages may be in another repository."""
    try:
        project = (ROOT / "pyproject.toml").read_text()
    except OSError:
        return False
    ours = f'name = "{_DISTRIBUTION}"' in project
    return ours and _git("ls-files", "--error-unmatch", "pyproject.toml") is not None


def installed_version(package: str) -> str | None:
    """Returns None if it is not installed: decord has no wheels for some processors."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
