"""--resume-from finds the latest readable checkpoint, and names a missing file."""

from pathlib import Path

import pytest
import torch

from pipelines.training.task import find_checkpoint
from stop_core.training.checkpoint import Checkpoint
from stop_core.training.run_state import Origin, RunProgress


def _checkpoint(folder: Path, step: int) -> Path:
    folder.mkdir(parents=True)
    weights, origin = {"a": torch.ones(3)}, Origin("run", "c", "d", "", {})
    state = {"state": {0: weights}}
    Checkpoint(RunProgress(step=step), origin, weights, weights, {}, {}, state).save(folder)
    return folder


_FILES = (
    "progress.json",
    "origin.json",
    "last_prompts.safetensors",
    "best_prompts.safetensors",
    "optimizer.safetensors",
    "average.safetensors",
    "behaviour.safetensors",
    "SHA256SUMS",
)


@pytest.mark.parametrize("name", _FILES)
@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_is_skipped_or_reported(
    tmp_path: Path, name: str, harm: object
) -> None:
    first = _checkpoint(tmp_path / "runs/run/checkpoints/checkpoint_1", 1)
    second = _checkpoint(tmp_path / "runs/run/checkpoints/checkpoint_2", 2)
    assert sorted(path.name for path in second.iterdir()) == sorted(_FILES)
    assert find_checkpoint(Path("run"), tmp_path) == second
    harm(second / name)  # type: ignore[operator]
    assert find_checkpoint(Path("run"), tmp_path) == first
    with pytest.raises(ValueError, match=rf"{second} cannot .*{name}.* Give another"):
        find_checkpoint(second, tmp_path)


def test_a_missing_run_is_reported_with_the_existing_ones(tmp_path: Path) -> None:
    _checkpoint(tmp_path / "runs/mine/checkpoints/checkpoint_1", 1)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint or run other; .* are mine"):
        find_checkpoint(Path("other"), tmp_path)
