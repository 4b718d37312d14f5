"""The checkpoints in the folder of a run: writing, finding the latest, moving damaged ones aside.

    <run>/checkpoint_000007                  of a training under Ray Train
    <run>/checkpoints/checkpoint_000007      of one without it

Each is written atomically before it is reported. On an object store, a checkpoint without
SHA256SUMS, its last object, is not complete.
"""

import re
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError

from stop_core.storage.atomic import SUMS, appearing_folder, fetched_folder, remove_folder
from stop_core.storage.names import P, inside
from stop_core.storage.paths import RemotePath, StoragePath
from stop_core.training.run_state import read_progress

from ..cli.console import RunError, warn
from ..cli.folders import is_full

Write = Callable[[Path], None]
CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints of a training without Ray Train, below the folder of the run. Those of
Ray Train's workers are in the folder of the run itself."""
_STAGING = ".checkpoint_"


def write_checkpoint(folder: P, write: Write) -> P:
    """Writes the next checkpoint below `folder` atomically; `write` fills a local folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        done = list_checkpoints(folder)
        number = int(done[-1].name.removeprefix("checkpoint_")) + 1 if done else 0
        checkpoint = folder / f"checkpoint_{number:06d}"
        with appearing_folder(checkpoint) as staging:
            write(staging)
    except (OSError, SafetensorError) as problem:
        reason = "the disk is full" if is_full(problem) else getattr(problem, "strerror", None)
        raise OSError(
            f"a checkpoint cannot be written to {folder} ({reason or problem}); free some space or "
            "get write permission, and run the same command to resume from the last checkpoint"
        ) from problem
    return checkpoint


def list_checkpoints(folder: P) -> list[P]:
    """Returns the checkpoints that were written below a folder, the newest last."""
    return sorted(p for p in folder.glob("checkpoint_*") if re.fullmatch(r"\w+_\d{6,}", p.name))


def latest_checkpoint(
    run: P, preferred: StoragePath | None = None, states: Collection[str] | None = None
) -> P | None:
    """Returns the readable checkpoint of a run with the most steps; None if there is none.

    Of several with as many steps, it is `preferred`. With `states`, the current ones of the cache's
    files (`BackgroundCheck.state`), those trained on unverified data that has changed are skipped.
    """
    for path in by_progress(run_checkpoints(run), preferred):
        if damage_of(path) is not None:
            continue
        if states is None or read_progress(path).may_resume(states):
            return path
        warn(
            f"not resumed from {path.name}: the cache has changed since, and had not been "
            "verified then"
        )
    return None


def move_damaged_aside(run: StoragePath) -> None:
    """Moves damaged checkpoints out of the way, and reports them; RunError if none is readable.

    Call it before the training, while no other process works in the folder.
    """
    for path in [*run.glob(f"{_STAGING}*"), *inside(run, CHECKPOINTS).glob(f"{_STAGING}*")]:
        remove_folder(path)  # left by an interruption
    if isinstance(run, RemotePath):
        for path in run_checkpoints(run):
            if not (path / SUMS).exists():  # its upload was interrupted
                remove_folder(path)
    damages = {path: damage for path in run_checkpoints(run) if (damage := damage_of(path))}
    for path, damage in damages.items():
        latest = latest_checkpoint(run)
        if latest is None:
            raise RunError(
                f"no checkpoint below {run} can be read (the first: {damage}): check whether its "
                "disk is failing, or move the folder elsewhere to train from the start"
            )
        aside = path.parent / f"damaged-{time.time_ns()}-{path.name}"
        cast(Any, path).rename(aside)  # to a path of its own kind
        warn(f"{damage}: it is now {aside}, and the training resumes from {latest}")


def run_checkpoints(run: P) -> list[P]:
    """Returns the checkpoints in both places of a run's folder, readable or not."""
    return [*run.glob("checkpoint_*[0-9]"), *inside(run, CHECKPOINTS).glob("checkpoint_*[0-9]")]


def by_progress(checkpoints: Collection[P], preferred: StoragePath | None = None) -> list[P]:
    """Sorts checkpoints by their number of steps, the latest first; unreadable ones come last."""

    def key(path: P) -> tuple[tuple[int, int, bool], bool, str]:
        try:
            order = read_progress(path).order
        except (OSError, ValueError):
            order = (-1, 0, False)
        return order, path == preferred, path.name

    return sorted(checkpoints, key=key, reverse=True)


def damage_of(checkpoint: StoragePath) -> str | None:
    """Returns why a checkpoint is not readable; None if every file is as it was written."""
    from stop_core.training.checkpoint import check_whole  # imports torch

    try:
        with fetched_folder(checkpoint) as here:
            check_whole(here)
    except ValueError as problem:
        return str(problem)
    return None
