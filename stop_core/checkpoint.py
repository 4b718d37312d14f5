"""A training checkpoint: safetensors and JSON, a few MB, nothing that runs code when loaded."""

import errno
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

PROMPTS = "prompts.safetensors"
BEST_PROMPTS = "best_prompts.safetensors"
AVERAGE = "average.safetensors"
OPTIMIZER = "optimizer.safetensors"
PROGRESS = "progress.json"
ORIGIN = "origin.json"


@dataclass
class Progress:
    """How far a training is, its best epoch so far by validation, and what it has to tell.

    `step` is the sampler's position too: the order of an epoch, the caption that a clip has in it
    and the dropout of a step follow from the seed and the number of the epoch or step. So there is
    no random state to keep, and none that another number of workers could not take up.
    """

    step: int = 0  # steps done, of the whole training
    epochs_done: int = 0  # epochs trained and validated
    best_epoch: int | None = None  # from 1; empty before the first epoch
    best_metrics: dict[str, float] = field(default_factory=dict)
    records: dict[str, Any] = field(default_factory=dict)
    """What is to be told to the tracking server, and has not been told before this checkpoint."""
    final: dict[str, float] | None = None
    """The measures of a training that is finished."""


@dataclass(frozen=True)
class Origin:
    """Whose checkpoint it is."""

    run: str
    """Name of the training."""
    config_hash: str
    data_hash: str
    mlflow_run_id: str
    """Empty as long as the tracking server has not been reached."""
    config: dict[str, Any]
    """The settings of the experiment by name."""

    def differences(self, other: "Origin") -> list[str]:
        """One phrase for everything in which the training `other` is not this one."""
        names = sorted(self.config.keys() | other.config.keys())
        found = [
            f"{name} is {self.config.get(name)} there and {other.config.get(name)} here"
            for name in names
            if self.config.get(name) != other.config.get(name)
        ]
        if self.data_hash != other.data_hash:
            found.append(f"the data is {self.data_hash[:12]} there and {other.data_hash[:12]} here")
        return found


@dataclass(frozen=True)
class Checkpoint:
    """All that a training needs to go on after its last step, to the same bits."""

    progress: Progress
    origin: Origin
    prompts: dict[str, Tensor]
    best_prompts: dict[str, Tensor]
    average: dict[str, Tensor]
    """Of `MovingAverage`; empty without one."""
    optimizer: dict[str, Any]
    """State of AdamW. Its learning rates are not part of it: they follow from the step."""

    def save(self, directory: Path) -> None:
        """Writes the files of the checkpoint into an existing, private directory.

        Raises:
            OSError: if they cannot be written; the message says what to do.
        """
        try:
            save_file(self.prompts, directory / PROMPTS)
            save_file(self.best_prompts, directory / BEST_PROMPTS)
            save_file(self.average, directory / AVERAGE)
            save_file(_optimizer_tensors(self.optimizer), directory / OPTIMIZER)
            (directory / PROGRESS).write_text(json.dumps(asdict(self.progress), indent=2))
            (directory / ORIGIN).write_text(json.dumps(asdict(self.origin), indent=2))
        except (OSError, SafetensorError) as problem:
            raise OSError(
                f"a checkpoint cannot be written to {directory} ({_reason(problem)}); make room or "
                "ask for the permission, and the same command goes on from the last checkpoint"
            ) from problem

    @classmethod
    def load(cls, directory: Path, param_groups: list[dict[str, Any]]) -> "Checkpoint":
        """Reads a checkpoint back; `param_groups` are those of the optimiser it is for.

        Raises:
            ValueError: if a file of the checkpoint is missing or damaged.
        """
        try:
            progress = Progress(**_read_json(directory / PROGRESS))
            origin = read_origin(directory)
            names = (PROMPTS, BEST_PROMPTS, AVERAGE, OPTIMIZER)
            prompts, best, average, optimizer = (load_file(directory / name) for name in names)
        except Exception as problem:  # safetensors raises a type of its own
            raise ValueError(
                f"the checkpoint {directory} cannot be read ({problem}); remove it, and the run "
                "continues from the checkpoint before it"
            ) from problem
        state = _optimizer_state(optimizer, param_groups)
        return cls(progress, origin, prompts, best, average, state)


def read_origin(directory: Path) -> Origin:
    """Whose checkpoint a directory holds; raises OSError, KeyError or TypeError if none."""
    return Origin(**_read_json(directory / ORIGIN))


def read_progress(directory: Path) -> Progress:
    """How far the training of a checkpoint was; raises OSError, ValueError or TypeError if none."""
    return Progress(**_read_json(directory / PROGRESS))


def _read_json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def _reason(problem: Exception) -> str:
    full = getattr(problem, "errno", None) == errno.ENOSPC or "No space left" in str(problem)
    return "the disk is full" if full else (getattr(problem, "strerror", None) or str(problem))


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
