"""A training checkpoint: safetensors and JSON, a few MB, nothing that runs code when loaded."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

PROMPTS = "prompts.safetensors"
BEST_PROMPTS = "best_prompts.safetensors"
OPTIMIZER = "optimizer.safetensors"
PROGRESS = "progress.json"


@dataclass
class Progress:
    """How far a training is, and its best epoch so far by validation."""

    epochs_done: int = 0
    best_epoch: int | None = None  # from 1; empty before the first epoch
    best_metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """All that a training needs to go on after the last finished epoch.

    Random states are not part of it: every epoch seeds its own.
    """

    progress: Progress
    prompts: dict[str, Tensor]
    best_prompts: dict[str, Tensor]
    optimizer: dict[str, Any]

    def save(self, directory: Path) -> None:
        """Writes the files of the checkpoint into an existing, private directory."""
        save_file(self.prompts, directory / PROMPTS)
        save_file(self.best_prompts, directory / BEST_PROMPTS)
        save_file(_optimizer_tensors(self.optimizer), directory / OPTIMIZER)
        (directory / PROGRESS).write_text(json.dumps(asdict(self.progress), indent=2))

    @classmethod
    def load(cls, directory: Path, param_groups: list[dict[str, Any]]) -> "Checkpoint":
        """Reads a checkpoint back; `param_groups` are those of the optimiser it is for.

        Raises:
            ValueError: if a file of the checkpoint is missing or damaged.
        """
        try:
            progress = Progress(**json.loads((directory / PROGRESS).read_text()))
            tensors = [load_file(directory / name) for name in (PROMPTS, BEST_PROMPTS, OPTIMIZER)]
        except Exception as problem:  # safetensors raises a type of its own
            raise ValueError(
                f"the checkpoint {directory} cannot be read ({problem}); remove it, and the run "
                "continues from the checkpoint before it"
            ) from problem
        prompts, best_prompts, optimizer = tensors
        return cls(progress, prompts, best_prompts, _optimizer_state(optimizer, param_groups))


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
