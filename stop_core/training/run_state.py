"""What can be said of a training's checkpoint without its tensors: whose it is, and how far."""

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stop_core.storage.documents import Number, Whole, build, parse_json, read_text

LAST_PROMPTS = "last_prompts.safetensors"
PROGRESS = "progress.json"
ORIGIN = "origin.json"


@dataclass
class RunProgress:
    """How far a training is, its best epoch so far by validation, and what it has to tell.

    `step` is the sampler's position too: the order of an epoch, the caption that a clip has in it
    and the dropout of a step follow from the seed and the number of the epoch or step. So there is
    no random state to keep, and none that another number of workers could not take up.
    """

    step: Whole = 0  # steps done, of the whole training
    epochs_done: Whole = 0  # epochs trained and validated
    best_epoch: Whole | None = None  # from 1; empty before the first epoch
    best_metrics: dict[str, Number] = field(default_factory=dict)
    curve: list[dict[str, Number]] = field(default_factory=list)
    """What each epoch reported."""
    records: dict[str, Any] = field(default_factory=dict)
    """What is to be told to the tracking server, and has not been told before this checkpoint."""
    unverified: list[str] = field(default_factory=list)
    """States of cache files (`BackgroundCheck.state`) that it was trained on and that were not yet
    compared with the manifest; empty once all were."""
    problems: list[str] = field(default_factory=list)
    """What went wrong and did not end the training, for its result."""
    final: dict[str, Number] | None = None
    """The measures of a training that is finished."""
    costs: dict[str, Number] = field(default_factory=dict)
    """Of a training that is finished: seconds a step and memory, which no two runs have alike."""

    @property
    def order(self) -> tuple[int, int, bool]:
        """Grows from each checkpoint of a training to its next."""
        return self.step, self.epochs_done, self.final is not None

    def may_resume(self, states: Collection[str]) -> bool:
        """Whether its data is known to be whole, or is in one of `states`, which will be checked.

        A cache that was repaired is in another state than when it was damaged.
        """
        return set(self.unverified) <= set(states)


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
        # As JSON keeps them: one of the two may have come from a file, where a tuple is a list.
        there, here = (json.loads(json.dumps(origin.config)) for origin in (self, other))
        found = [
            f"{name} is {there.get(name)} there and {here.get(name)} here"
            for name in sorted(there.keys() | here.keys())
            if there.get(name) != here.get(name)
        ]
        if self.data_hash != other.data_hash:
            found.append(f"the data is {self.data_hash[:12]} there and {other.data_hash[:12]} here")
        return found


def read_origin(directory: Path) -> Origin:
    """Whose checkpoint a directory holds; raises OSError or ValueError if none."""
    return build(Origin, parse_json(read_text(directory / ORIGIN)), directory / ORIGIN)


def read_progress(directory: Path) -> RunProgress:
    """How far the training of a checkpoint was; raises OSError or ValueError if none."""
    return build(RunProgress, parse_json(read_text(directory / PROGRESS)), directory / PROGRESS)
