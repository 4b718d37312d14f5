"""The checkpoints in the folder of a run: how one appears, which is the furthest, what is damaged.

    <run>/checkpoint_000007                  of a training under Ray Train
    <run>/checkpoints/checkpoint_000007      of one without it
    <run>/checkpoint_manager_snapshot.json   those that Ray Train has taken note of

Each appears whole or not at all, before anybody is told of it. So the furthest on the disk is the
one to go on from, whether Ray Train came to note it or not.
"""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection
from importlib.metadata import version
from pathlib import Path

from safetensors import SafetensorError

from stop_core.storage.atomic import sync
from stop_core.storage.documents import parse_json, read_text
from stop_core.storage.names import inside
from stop_core.training.checkpoint import check_whole
from stop_core.training.run_state import read_progress

from ..cli.console import say
from ..cli.errors import RunError
from ..cli.output import is_full
from .task import ALONE

Write = Callable[[Path], None]
SNAPSHOT = "checkpoint_manager_snapshot.json"
_NOTED = "checkpoint_results"  # in it
_STAGING = ".checkpoint_"


def keep(folder: Path, write: Write) -> Path:
    """Makes the next checkpoint below `folder` of the files that `write` fills a folder with.

    Raises:
        OSError: if they cannot be written; the message says what to do.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=folder))
        try:
            write(staging)
            for path in (*staging.iterdir(), staging):
                sync(path)
            done = numbered(folder)
            number = int(done[-1].name.removeprefix("checkpoint_")) + 1 if done else 0
            checkpoint = folder / f"checkpoint_{number:06d}"
            os.replace(staging, checkpoint)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)  # on a full disk, it is in the way
            raise
        sync(folder)
    except (OSError, SafetensorError) as problem:
        reason = "the disk is full" if is_full(problem) else getattr(problem, "strerror", None)
        raise OSError(
            f"a checkpoint cannot be written to {folder} ({reason or problem}); make room or "
            "ask for the permission, and the same command goes on from the last checkpoint"
        ) from problem
    return checkpoint


def numbered(folder: Path) -> list[Path]:
    """The checkpoints that `keep` has made below a folder, the newest last."""
    return sorted(p for p in folder.glob("checkpoint_*") if re.fullmatch(r"\w+_\d{6,}", p.name))


def furthest(
    run: Path, result: Path | None = None, states: Collection[str] | None = None
) -> Path | None:
    """The checkpoint of a run that has come furthest, of those that can be read.

    Args:
        run: its folder.
        result: the checkpoint that is preferred to others that have come as far.
        states: of the cache's files now (`BackgroundCheck.state`); leaves out the checkpoints of
            data that has changed since and was not verified then.
    """
    whole = [path for path in _all_of(run) if _damage(path) is None]
    if states is not None:
        fit = [path for path in whole if read_progress(path).may_resume(states)]
        if dropped := [path.name for path in whole if path not in fit]:
            say(
                f"not resumed from {', '.join(dropped)}: the cache has changed since, and had not "
                "been verified then"
            )
        whole = fit
    return _furthest_of(whole, result)


def _furthest_of(whole: list[Path], result: Path | None = None) -> Path | None:
    return max(whole, key=lambda p: (read_progress(p).order, p == result, p.name), default=None)


def set_damage_aside(run: Path) -> None:
    """Moves out of the way what would end a training before it has gone on, and says so.

    Call it before the training, when nobody else works in the folder.

    Raises:
        RunError: if there are checkpoints, and none can be read.
    """
    for path in [*run.glob(f"{_STAGING}*"), *inside(run, ALONE).glob(f"{_STAGING}*")]:
        shutil.rmtree(path, ignore_errors=True)  # of a process that was killed while it wrote
    found = {path: _damage(path) for path in _all_of(run)}
    damaged = {path: damage for path, damage in found.items() if damage is not None}
    whole = _furthest_of([path for path in found if path not in damaged])
    if damaged and whole is None:
        damage = next(iter(damaged.values()))
        raise RunError(
            f"no checkpoint below {run} can be read (the first: {damage}): see whether its disk is "
            "failing; with the folder moved elsewhere, the training begins again"
        )
    for path, damage in damaged.items():
        say(f"{damage}: it is kept as {_move_aside(path)}, and the training goes on from {whole}")
    if not _is_sound(run / SNAPSHOT):
        # Ray would raise. Without it, the workers find the furthest checkpoint themselves.
        _move_aside(run / SNAPSHOT)


def _all_of(run: Path) -> list[Path]:
    return [*run.glob("checkpoint_*[0-9]"), *inside(run, ALONE).glob("checkpoint_*[0-9]")]


def _damage(checkpoint: Path) -> str | None:
    try:
        check_whole(checkpoint)
    except ValueError as problem:
        return str(problem)
    return None


def _move_aside(path: Path) -> Path:
    return path.rename(path.with_name(f"damaged-{time.time_ns()}-{path.name}"))


def _is_sound(snapshot: Path) -> bool:
    """Whether Ray can read its list, and finds all that it names."""
    if not snapshot.exists():
        return True
    try:
        values = parse_json(read_text(snapshot))
        noted = [inside(snapshot.parent, one["checkpoint_dir_name"]) for one in values[_NOTED]]
        return values["ray_version"] == version("ray") and all(path.is_dir() for path in noted)
    except (ValueError, KeyError, TypeError):
        return False
