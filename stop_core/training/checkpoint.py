"""A training checkpoint: safetensors and JSON, nothing that runs code when loaded.

A few MB with prompts; with clip4clip, both towers several times over.
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

from stop_core.storage.checksums import check_sums, write_sums
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
    """All that a training needs to go on after its last step, to the same bits."""

    progress: RunProgress
    origin: Origin
    prompts: dict[str, Tensor]
    best_prompts: dict[str, Tensor]
    average: dict[str, Tensor]
    """Of `MovingAverage`; empty without one."""
    behaviour: dict[str, Tensor]
    """Of `Observer`: what the prompts of the next epoch are compared with."""
    optimizer: dict[str, Any]
    """State of AdamW. Its learning rates are not part of it: they follow from the step."""

    def save(self, directory: Path) -> None:
        """Writes the files of the checkpoint into an existing, private directory.

        What else is there is taken to be part of it, and has its sum in the last file as well.
        """
        save_file(self.prompts, directory / LAST_PROMPTS)
        save_file(self.best_prompts, directory / BEST_PROMPTS)
        save_file(self.average, directory / AVERAGE)
        save_file(self.behaviour, directory / BEHAVIOUR)
        save_file(_optimizer_tensors(self.optimizer), directory / OPTIMIZER)
        (directory / PROGRESS).write_text(json.dumps(asdict(self.progress), indent=2))
        (directory / ORIGIN).write_text(json.dumps(asdict(self.origin), indent=2))
        write_sums(directory)

    @classmethod
    def load(cls, directory: Path, param_groups: list[dict[str, Any]]) -> "Checkpoint":
        """Reads a checkpoint back; `param_groups` are those of the optimiser it is for.

        Raises:
            ValueError: if a file of the checkpoint is missing or damaged.
        """
        with _readable(directory, ": see whether its disk is failing, or give another one"):
            check_sums(directory, _FILES)
            progress = read_progress(directory)
            origin = read_origin(directory)
            prompts, best, average, behaviour, optimizer = (
                load_file(require_file(directory / name)) for name in _TENSORS
            )
        state = _optimizer_state(optimizer, param_groups)
        return cls(progress, origin, prompts, best, average, behaviour, state)


def check_whole(directory: Path) -> None:
    """Compares every file of a checkpoint with its sum.

    Raises:
        ValueError: as `Checkpoint.load`.
    """
    with _readable(directory):
        check_sums(directory, _FILES)
        read_progress(directory)
        read_origin(directory)


@contextmanager
def _readable(directory: Path, advice: str = "") -> Iterator[None]:
    try:
        yield
    except Exception as problem:  # safetensors raises a type of its own
        missing = problem.filename if isinstance(problem, FileNotFoundError) else None
        found = f"it has no {Path(missing).name}" if missing else str(problem)
        raise ValueError(f"the checkpoint {directory} cannot be read ({found}){advice}") from (
            problem
        )


def _optimizer_tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of an AdamW state, as `<parameter number>.<name>`."""
    return {
        f"{number}.{name}": torch.as_tensor(value).clone()
        for number, values in state["state"].items()
        for name, value in values.items()
    }


def _optimizer_state(
    tensors: dict[str, Tensor], param_groups: list[dict[str, Any]]
) -> dict[str, Any]:
    """The inverse of `_optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    return {"state": state, "param_groups": param_groups}
