"""A training checkpoint: safetensors and JSON, which cannot run code when loaded.

A few MB for prompts; for clip4clip, several times the size of both towers.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stop_core.storage.atomic import check_sums, write_sums
from stop_core.storage.documents import require_file
from stop_core.training.run_state import (
    LAST_PROMPTS,
    ORIGIN,
    PROGRESS,
    Origin,
    RunProgress,
    read_origin,
    read_progress,
)

BEST_PROMPTS = "best_prompts.safetensors"
AVERAGE = "average.safetensors"
OPTIMIZER = "optimizer.safetensors"
BEHAVIOUR = "behaviour.safetensors"
_TENSORS = (LAST_PROMPTS, BEST_PROMPTS, AVERAGE, BEHAVIOUR, OPTIMIZER)
_FILES = (*_TENSORS, PROGRESS, ORIGIN)


@dataclass(frozen=True)
class Checkpoint:
    """The complete state of a training: it resumes bit for bit after its last step."""

    progress: RunProgress
    origin: Origin
    prompts: dict[str, Tensor]
    best_prompts: dict[str, Tensor]
    average: dict[str, Tensor]
    """State of `MovingAverage`; empty if there is none."""
    behaviour: dict[str, Tensor]
    """Prompt statistics of the last epoch, for comparison with those of the next one."""
    optimizer: dict[str, Any]
    """State of AdamW, without the learning rates, which follow from the step."""

    def save(self, directory: Path) -> None:
        """Writes the checkpoint into a private directory, whose other files become part of it."""
        optimizer = _optimizer_tensors(self.optimizer)
        parts = (self.prompts, self.best_prompts, self.average, self.behaviour, optimizer)
        for name, tensors in zip(_TENSORS, parts, strict=True):
            save_file(tensors, directory / name)
        (directory / PROGRESS).write_text(json.dumps(asdict(self.progress), indent=2))
        (directory / ORIGIN).write_text(json.dumps(asdict(self.origin), indent=2))
        write_sums(directory)

    @classmethod
    def load(cls, directory: Path, param_groups: list[dict[str, Any]]) -> "Checkpoint":
        """Reads a checkpoint for an optimiser; ValueError if a file is missing or damaged."""
        with _readable(directory, ": check its disk, or give another checkpoint"):
            check_sums(directory, _FILES)
            progress = read_progress(directory)
            origin = read_origin(directory)
            parts = (load_file(require_file(directory / name)) for name in _TENSORS)
            prompts, best, average, behaviour, optimizer = parts
        state = _optimizer_state(optimizer, param_groups)
        return cls(progress, origin, prompts, best, average, behaviour, state)


def check_whole(directory: Path) -> None:
    """Compares every file of a checkpoint with its checksum; ValueError as `Checkpoint.load`."""
    with _readable(directory):
        check_sums(directory, _FILES)
        read_progress(directory)
        read_origin(directory)


@contextmanager
def _readable(directory: Path, advice: str = "") -> Iterator[None]:
    try:
        yield
    except Exception as problem:  # safetensors has its own exception type
        missing = problem.filename if isinstance(problem, FileNotFoundError) else None
        found = f"it has no {Path(missing).name}" if missing else str(problem)
        wrong = f"the checkpoint {directory} cannot be read ({found}){advice}"
        raise ValueError(wrong) from problem


def _optimizer_tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the tensors of an AdamW state, named `<parameter number>.<name>`."""
    return {
        f"{number}.{name}": torch.as_tensor(value).clone()
        for number, values in state["state"].items()
        for name, value in values.items()
    }


def _optimizer_state(
    tensors: dict[str, Tensor], param_groups: list[dict[str, Any]]
) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    return {"state": state, "param_groups": param_groups}
