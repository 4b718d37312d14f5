"""Folders: of this installation, of the YAML files in `sweeps/`, and of results."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from stop_core.cache.files import LOCK
from stop_core.datasets.registry import division
from stop_core.storage.locks import EXPIRED, locked
from stop_core.storage.names import P
from stop_core.storage.paths import StoragePath, storage_path

from ..ray_internals.driver import in_ray_job
from .console import say

_PATIENCE = 300.0  # seconds
_PACKAGE = Path(__file__).resolve().parents[1]

ROOT = _PACKAGE.parent
"""The folder that holds the packages: the root of a checkout, or site-packages."""

CHECKOUT = _PACKAGE.name == "pipelines"
"""Whether this is a checkout, whose entry points are files. A wheel renames the package."""

SWEEPS = (ROOT if CHECKOUT else _PACKAGE) / "sweeps"
"""Search spaces, tables, recipes and published rows. A wheel has them inside its package."""


def named_file(given: P, folder: str = ".") -> P | Path:
    """Returns `given`, or the file of `sweeps/<folder>` that it names: `motion` is `motion.yaml`.

    An existing path is never taken for a name.
    """
    own = SWEEPS / folder / f"{given}.yaml"
    return own if given.name == str(given) and not given.exists() and own.is_file() else given


def default_output() -> Path:
    """Returns `outputs` in the working directory; in a Ray job, `stop-outputs` in the home folder.

    The working directory of a Ray job is a temporary copy, which is deleted after the job.
    """
    if in_ray_job():
        return Path.home() / "stop-outputs"
    return Path("outputs")


def output_folder(text: str) -> StoragePath:
    """Returns the folder for results at a path or URI; a store may be away for some minutes."""
    folder = storage_path(text)
    return folder if isinstance(folder, Path) else replace(folder, patience=_PATIENCE)


def results_folder(parent: P, dataset: str, fold: int, rest: str) -> P:
    """Returns the folder of results: `hmdb51-fold1-REST`, or `motion-REST` if there is one fold.

    Before 2026-12 it was called `hmdb511-REST`. Such a folder is used if it exists.
    """
    folder = parent / f"{division(dataset, fold, '-fold')}-{rest}"
    earlier = parent / f"{dataset}{fold}-{rest}"
    return earlier if earlier.is_dir() and not folder.is_dir() else folder


def is_full(problem: object) -> bool:
    """Returns whether an error is about a full disk, by its text: not all have an error number."""
    return any(word in str(problem) for word in ("No space left", "Disk quota exceeded"))


@contextmanager
def alone_in(folder: StoragePath) -> Iterator[None]:
    """Waits until no other process works in this folder; the lock of a killed process is free.

    On an object store, its lock expires after a minute.
    """
    expires = "" if isinstance(folder, Path) else f" (or {EXPIRED:.0f} s after it was killed)"
    message = f"another process works in {folder}; waiting until it ends{expires}"
    with locked(folder / LOCK, lambda: say(message)):
        yield
