"""What numbers were computed with: the commit, the packages and the machine."""

import importlib.metadata
import os
import platform
import subprocess
from typing import Any

from ..cli.folders import ROOT

_PACKAGES = ("torch", "open_clip_torch", "ray", "mlflow", "decord", "pyarrow", "pandas", "numpy")


def git_commit() -> str:
    """The commit of this checkout, with "+changes" if it has any.

    A container and the copy that a Ray job works in have no history: they are told the commit in
    STOP_GIT_COMMIT, or else it is "unknown".
    """
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return os.environ.get("STOP_GIT_COMMIT") or "unknown"
    return commit + ("+changes" if _git("status", "--porcelain", "-uno") else "")


def environment() -> dict[str, Any]:
    """What the numbers were computed with."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    """None if it is not installed: decord has no wheels for some processors."""
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
