"""A checkpoint restores the saved state, and training resumes as if it had not stopped."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from stop_core.training import run_state
from stop_core.training.checkpoint import (
    AVERAGE,
    BEHAVIOUR,
    BEST_PROMPTS,
    OPTIMIZER,
    Checkpoint,
    check_whole,
)
from stop_core.training.run_state import (
    LAST_PROMPTS,
    Origin,
    RunProgress,
    read_origin,
    read_progress,
)

PROGRESS = RunProgress(
    step=30,
    epochs_done=3,
    best_epoch=2,
    best_metrics={"val/top1": 0.5},
    records={"points": [[20, 1700000000000, {"train/loss": 0.1}]], "recent": []},
)
ORIGIN = Origin("run", "c" * 12, "d" * 64, "mlflow", {"learning_rate": 0.1, "depth": None})


def _step(layer: nn.Linear, optimizer: torch.optim.AdamW) -> None:
    optimizer.zero_grad()
    layer(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()


def _layer_and_optimizer() -> tuple[nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    groups = [{"params": [layer.weight], "lr": 0.1}, {"params": [layer.bias], "lr": 0.01}]
    return layer, torch.optim.AdamW(groups)


def _saved(layer: nn.Linear, optimizer: torch.optim.AdamW, folder: Path) -> None:
    state = {name: p.detach().clone() for name, p in layer.named_parameters()}
    Checkpoint(PROGRESS, ORIGIN, state, state, {}, {}, optimizer.state_dict()).save(folder)


def test_training_resumes_bit_for_bit_from_a_checkpoint(tmp_path: Path) -> None:
    layer, optimizer = _layer_and_optimizer()
    for _ in range(3):
        _step(layer, optimizer)
    _saved(layer, optimizer, tmp_path)
    for _ in range(3):
        _step(layer, optimizer)

    again, other = _layer_and_optimizer()
    loaded = Checkpoint.load(tmp_path, other.state_dict()["param_groups"])
    again.load_state_dict(loaded.prompts)
    other.load_state_dict(loaded.optimizer)
    for _ in range(3):
        _step(again, other)
    assert torch.equal(again.weight, layer.weight)
    assert torch.equal(again.bias, layer.bias)
    assert loaded.progress == read_progress(tmp_path) == PROGRESS
    assert loaded.origin == read_origin(tmp_path) == ORIGIN


def test_a_checkpoint_before_the_first_step_can_be_loaded(tmp_path: Path) -> None:
    layer, optimizer = _layer_and_optimizer()
    _saved(layer, optimizer, tmp_path)
    groups = optimizer.state_dict()["param_groups"]
    assert Checkpoint.load(tmp_path, groups).optimizer["state"] == {}


@pytest.mark.parametrize(
    "name",
    [
        run_state.PROGRESS,
        run_state.ORIGIN,
        LAST_PROMPTS,
        BEST_PROMPTS,
        AVERAGE,
        BEHAVIOUR,
        OPTIMIZER,
    ],
)
def test_a_damaged_checkpoint_is_refused_with_its_folder_and_file(
    tmp_path: Path, name: str
) -> None:
    layer, optimizer = _layer_and_optimizer()
    _saved(layer, optimizer, tmp_path)
    whole = (tmp_path / name).read_bytes()
    check_whole(tmp_path)
    for part in (b"half", b"", whole[:-1], None):
        if part is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_bytes(part)
        with pytest.raises(ValueError, match=rf"{tmp_path} .*{name}"):
            Checkpoint.load(tmp_path, optimizer.state_dict()["param_groups"])
        with pytest.raises(ValueError, match=rf"{tmp_path} .*{name}"):
            check_whole(tmp_path)


def test_the_differences_between_two_trainings_are_listed() -> None:
    other = replace(ORIGIN, config={"learning_rate": 0.2, "depth": None}, data_hash="e" * 64)
    assert ORIGIN.differences(ORIGIN) == []
    rate, data = ORIGIN.differences(other)
    assert rate == "learning_rate is 0.1 there and 0.2 here"
    assert data.startswith("the data is ddd")
