"""Origin and progress of a training: the JSON files of a checkpoint."""

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from stop_core.storage.documents import Number, Whole, build, parse_json, read_text
from stop_core.storage.paths import StoragePath

LAST_PROMPTS = "last_prompts.safetensors"
PROGRESS = "progress.json"
ORIGIN = "origin.json"


@dataclass
class RunProgress:
    """Progress of a training, its best epoch by validation, and its pending records.

    `step` is the position of the sampler, too: the order of an epoch, the captions of its clips and
    the dropout of a step follow from the seed and the number of the epoch or step. So no random
    state is stored, and a training can resume with another number of workers.
    """

    step: Whole = 0  # steps done, of the whole training
    epochs_done: Whole = 0  # epochs trained and validated
    best_epoch: Whole | None = None  # from 1; None before the first epoch
    best_metrics: dict[str, Number] = field(default_factory=dict)
    curve: list[dict[str, Number]] = field(default_factory=list)
    """Metrics of each epoch."""
    records: dict[str, Any] = field(default_factory=dict)
    """Records for the tracking server that were not sent before this checkpoint."""
    unverified: list[str] = field(default_factory=list)
    """States of the cache files (`BackgroundCheck.state`) that were used and not yet compared with
    the manifest; empty after the comparison."""
    problems: list[str] = field(default_factory=list)
    """Problems that did not end the training, for its result."""
    final: dict[str, Number] | None = None
    """Test metrics of a finished training."""
    costs: dict[str, Number] = field(default_factory=dict)
    """Seconds per step and memory of a finished training; they differ between equal runs."""

    @property
    def order(self) -> tuple[int, int, bool]:
        """Increases from each checkpoint of a training to the next."""
        return self.step, self.epochs_done, self.final is not None

    def may_resume(self, states: Collection[str]) -> bool:
        """Returns whether its data was verified or is in `states`, which will be verified."""
        return set(self.unverified) <= set(states)


@dataclass(frozen=True)
class Origin:
    """The training that a checkpoint belongs to."""

    run: str
    """Name of the training run."""
    config_hash: str
    data_hash: str
    mlflow_run_id: str
    """Empty until the tracking server has been reached."""
    config: dict[str, Any]
    """Settings of the experiment by name."""

    def differences(self, other: "Origin") -> list[str]:
        """Returns one phrase for each difference between the training `other` and this one."""
        # Through JSON: one of the two can come from a file, where a tuple is a list.
        there, here = (json.loads(json.dumps(origin.config)) for origin in (self, other))
        found = [
            f"{name} is {there.get(name)} there and {here.get(name)} here"
            for name in sorted(there.keys() | here.keys())
            if there.get(name) != here.get(name)
        ]
        if self.data_hash != other.data_hash:
            found.append(f"the data is {self.data_hash[:12]} there and {other.data_hash[:12]} here")
        return found


def read_origin(directory: StoragePath) -> Origin:
    """Returns the origin of a checkpoint; raises OSError or ValueError if there is none."""
    return build(Origin, parse_json(read_text(directory / ORIGIN)), directory / ORIGIN)


def read_progress(directory: StoragePath) -> RunProgress:
    """Returns the progress of a checkpoint; raises OSError or ValueError if there is none."""
    return build(RunProgress, parse_json(read_text(directory / PROGRESS)), directory / PROGRESS)
