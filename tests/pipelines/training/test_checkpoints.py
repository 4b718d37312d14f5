"""Checkpoints are written atomically; a damaged one does not stop a training."""

import errno
from pathlib import Path

import pytest
import torch

from pipelines.cli.console import RunError
from pipelines.training.checkpoints import (
    CHECKPOINTS,
    latest_checkpoint,
    list_checkpoints,
    move_damaged_aside,
    write_checkpoint,
)
from stop_core.training.checkpoint import OPTIMIZER, Checkpoint
from stop_core.training.run_state import Origin, RunProgress

ORIGIN = Origin("run", "c" * 12, "d" * 64, "", {})


def _checkpoint(folder: Path, step: int, final: dict[str, float] | None = None) -> Path:
    weights = {"a": torch.full((100,), float(step))}
    progress = RunProgress(step=step, final=final)
    whole = Checkpoint(progress, ORIGIN, weights, weights, {}, {}, {"state": {0: weights}})
    return write_checkpoint(folder, whole.save)


def _truncate(checkpoint: Path) -> None:
    file = checkpoint / OPTIMIZER
    file.write_bytes(file.read_bytes()[:-40])


def test_an_interrupted_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    first = _checkpoint(tmp_path, 1)

    def interrupted(folder: Path) -> None:
        (folder / "state").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, interrupted)
    assert list(tmp_path.iterdir()) == list_checkpoints(tmp_path) == [first]


def test_a_full_disk_is_reported_and_no_partial_checkpoint_is_left(tmp_path: Path) -> None:
    def fills(folder: Path) -> None:
        (folder / "state").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        OSError, match=r"cannot be written to .* \(the disk is full\); free some space"
    ):
        write_checkpoint(tmp_path, fills)
    assert not list(tmp_path.iterdir())


def test_the_checkpoint_with_the_most_steps_is_the_latest(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    first = _checkpoint(tmp_path, 10)
    second = _checkpoint(tmp_path, 12)
    _checkpoint(tmp_path / CHECKPOINTS, 11)
    assert latest_checkpoint(tmp_path, first) == second
    # The checkpoint of a finished training has as many steps as that of its last epoch.
    ended = _checkpoint(tmp_path / CHECKPOINTS, 12, {"test/top1": 0.5})
    assert latest_checkpoint(tmp_path, second) == ended
    again = _checkpoint(tmp_path, 12, {"test/top1": 0.5})
    assert (latest_checkpoint(tmp_path, ended), latest_checkpoint(tmp_path, again)) == (
        ended,
        again,
    )


def test_a_damaged_checkpoint_is_moved_aside_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (_checkpoint(tmp_path, step) for step in (1, 2))
    move_damaged_aside(tmp_path)
    assert not capsys.readouterr().err
    _truncate(second)
    move_damaged_aside(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"the checkpoint {second} cannot be read (")
    assert line.endswith(f"the training resumes from {first}")
    assert latest_checkpoint(tmp_path) == first
    assert len(list(tmp_path.glob("damaged-*"))) == 1


def test_a_training_does_not_restart_by_itself_if_no_checkpoint_is_readable(
    tmp_path: Path,
) -> None:
    only = _checkpoint(tmp_path / CHECKPOINTS, 1)
    _truncate(only)
    with pytest.raises(RunError, match=r"no checkpoint below .* to train from the start"):
        move_damaged_aside(tmp_path)
    assert only.exists()


def test_partial_checkpoints_of_an_interruption_are_removed(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / CHECKPOINTS):
        (folder / ".checkpoint_abc").mkdir(parents=True)
    move_damaged_aside(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / CHECKPOINTS]
    assert not list((tmp_path / CHECKPOINTS).iterdir())
